"""Wrong command lines end with one clear message and status 2, never with a traceback."""

import subprocess
import sys

import pytest

from pipelines.command import kind, wrong_kinds


def peek(*overrides):
    command = [sys.executable, "-m", "pipelines.peek", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["shard=x"], "shard"), (["samples=many"], "samples=many must be a whole number"),
     (["run.dir=/proc/x"], "/proc/x"), (["run=7"], "run")],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, overrides, message):
    done = peek(f"run.dir={tmp_path}", *overrides) if "run" not in overrides[0] else peek(*overrides)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_kinds_of_values():
    written = {"steps": 5, "rate": 0.5, "size": [1, 2], "on": True, "free": None, "runs": [], "run": {"seed": 0}}
    assert not list(wrong_kinds({**written, "rate": 1, "free": "x", "runs": "x"}, written))
    given = {"steps": 1.5, "rate": "x", "size": 3, "on": 1, "run": {"seed": "x"}}
    assert [line.split("=")[0] for line in wrong_kinds(given, written)] == ["steps", "rate", "size", "on", "run.seed"]
    assert not kind(5)[1](True)
