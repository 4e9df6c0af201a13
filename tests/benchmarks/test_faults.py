"""A handful of each fault campaign, in a child: its forks must not inherit the children of other tests."""

import json
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import faults, faults_world  # noqa: F401 the latter: imported before the forks
from benchmarks.faults_mutations import mutate
from benchmarks.faults_processes import fork, wait


@pytest.fixture
def bench(tmp_path):
    """bench(arguments) -> (exit status, the numbers it wrote, what it printed)"""

    def run(*arguments):
        out, log = tmp_path / "out.json", tmp_path / "log"
        pid = fork(lambda: sys.exit(faults.main([*arguments, "--out", str(out)])), log)
        return wait(pid), json.loads(out.read_text()), log.read_text()

    return run


def test_killed_commands_end_as_if_they_had_not_been(bench):
    status, result, printed = bench("kills", "--count", "4", "--only", "ingest", "label")
    assert (status, result["problems"]) == (0, []), printed
    total = result["table"]["all"]
    assert total["kills"] >= 4 and total["identical"] == total["rounds"]


def test_damaged_inputs_are_refused_or_right(bench):
    light = ["videos", "action logs", "shard tars", "manifests, indexes", "model folders"]
    status, result, printed = bench("inputs", "--count", "40", "--only", *light)
    assert (status, result["problems"]) == (0, []), printed
    assert result["table"]["all"]["cases"] > 20 and result["table"]["all"]["rejected"] > 10


class Agreeable(int):
    """A checksum that never differs."""

    def __ne__(self, other):
        return False


def test_a_reader_that_compares_no_checksums_is_caught(bench, monkeypatch):
    monkeypatch.setattr("pipelines.tars.check_sha256", lambda *args: None)
    monkeypatch.setattr("pipelines.shards.zlib", SimpleNamespace(crc32=lambda data: Agreeable(), error=zlib.error))
    status, result, _ = bench("inputs", "--count", "30", "--only", "shard tars")
    assert status == 1 and result["table"]["shard tars"]["silent"] > 0


@pytest.mark.parametrize("text", [False, True])
def test_mutations_change_something_and_repeat(text):
    data = b'{"name": "a", "value": 12.5}\n' * 20
    for seed in range(50):
        one, other = (mutate(data, [data[::-1]], text, np.random.default_rng(seed)) for _ in range(2))
        assert one == other and one[1] != data
