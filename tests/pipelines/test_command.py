"""Wrong command lines end with one clear message and status 2, never with a traceback."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipelines import command as commands
from pipelines import peek as command
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError


def peek(*overrides):
    command = [sys.executable, "-m", "pipelines.peek", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["shard=x"], "there is no shard; did you mean shards?"),
     (["samples=many"], "samples=many must be a whole number"),
     (["+smaples=3", "bins=few", "shards=5"],
      "there is no smaples; did you mean samples?; shards=5 must be text (in quotes, if it looks like a number);"
      " bins=few must be a whole number"),
     (["run.dir=/proc/x"], "the output folder cannot be written; set run.dir=<folder>"), (["run=7"], "run")],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, overrides, message):
    done = peek(f"run.dir={tmp_path}", *overrides) if "run" not in overrides[0] else peek(*overrides)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", [b"\x9c", b"run: {dir: ", b"a: [1\n", b"\0", b"\nhydra:\n"])
def test_a_damaged_config_is_told_as_such(tmp_path, monkeypatch, capsys, damage):
    folder = shutil.copytree(CONFIGS, tmp_path / "configs")
    path = Path(folder, "peek.yaml")
    path.write_bytes(path.read_bytes() + damage)
    monkeypatch.setattr(sys, "argv", ["peek", "--config-path", str(folder), f"run.dir={tmp_path / 'run'}", "shards=x"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "peek: " in capsys.readouterr().err


def test_a_command_that_fails_leaves_the_description_of_an_earlier_run(tmp_path):
    def run(value, error=None, finished=False):
        def function(cfg):
            if finished:
                (tmp_path / "summary.json").write_text("{}")
            if error:
                raise error
            return {"value": cfg.value}

        return execute(function, OmegaConf.create({"run": {"dir": str(tmp_path)}, "value": value}))

    with pytest.raises(DataError):
        run(0, DataError("refused"))
    assert OmegaConf.load(tmp_path / "config.yaml").value == 0  # there was nothing to keep
    run(1)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept.keys() == {"config.yaml", "machine.json", "summary.json"}
    for error in (DataError("refused"), TypeError("a crash")):
        with pytest.raises(type(error)):
            run(2, error)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    with pytest.raises(DataError):
        run(2, DataError("strict=true"), finished=True)  # says so of its own results
    assert OmegaConf.load(tmp_path / "config.yaml").value == 2


def test_a_training_is_not_overwritten_by_another_command(tmp_path):
    (tmp_path / "last.ckpt").touch()
    cfg = OmegaConf.create({"run": {"dir": str(tmp_path)}})
    with pytest.raises(DataError, match="holds a training"):
        execute(lambda cfg: {}, cfg)
    cfg.trainer = {}
    execute(lambda cfg: {"minutes": 7.12345}, cfg)  # training goes on there
    assert '"minutes": 7.123' in (tmp_path / "summary.json").read_text()


def test_a_folder_in_which_one_trains_takes_no_second(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "LOCK_SECONDS", 0.1)
    second = "from pipelines.command import alone\nwith alone(Path('{}')): print('in', flush=True); input()"
    child = [sys.executable, "-c", "from pathlib import Path\n" + second.format(tmp_path)]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(DataError, match="another training writes to"), commands.alone(tmp_path):
            pass
        other.kill()
    with commands.alone(tmp_path):  # a killed process holds nothing
        pass


def test_an_interrupt_is_no_crash(tmp_path):
    body = "from pipelines.command import command\n@command('peek')\ndef main(cfg): raise KeyboardInterrupt\nmain()"
    child = [sys.executable, "-c", body, "shards=x", f"run.dir={tmp_path}"]
    ended = subprocess.run(child, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 130
    assert "peek: interrupted" in ended.stderr and "Traceback" not in ended.stderr
