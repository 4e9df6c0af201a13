"""gc removes what killed writers left, and nothing else."""

import os
import time

import pytest
from hydra import compose, initialize_config_dir

from pipelines import gc
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter

NAME = "clips-00009-0123456789ab"


def config(folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("gc", [f"run.dir={folder}", *overrides])


@pytest.fixture
def clips(make_play, tmp_path):
    return make_play(tmp_path / "clips", videos=4)


def age(path, hours=2):
    os.utime(path, (time.time() - 3600 * hours,) * 2)


def test_gc_lists_then_deletes(clips, tmp_path, capsys):
    before = {path.name for path in clips.iterdir()}
    garbage = [".1-a.tar.part", f"{NAME}.tar", f"{NAME}.index", "units/.u.json.1.part"]
    (clips / "units").mkdir()
    for name in garbage:
        (clips / name).write_bytes(b"x" * 10)
        age(clips / name)
    kept = ["notes.txt", "foreign.tar", ".2-b.tar.part", "clips-00008-0123456789ab.tar"]  # others', or young
    for name in kept:
        (clips / name).write_bytes(b"x")
    summary = execute(gc.main.function, config(tmp_path / "run", f"shards={clips}"))
    assert (summary["gc/temporary"], summary["gc/orphan"], summary["gc/bytes"], summary["gc/deleted"]) == (2, 2, 40, 0)
    shown = capsys.readouterr().out
    assert all(name in shown for name in garbage)
    assert all((clips / name).exists() for name in garbage)
    execute(gc.main.function, config(tmp_path / "run", f"shards={clips}", "dry_run=false"))
    assert {path.name for path in clips.iterdir()} == before | {*kept, "units"}
    assert len(Shards(clips, verify=True)) == 8


def test_gc_leaves_the_files_of_a_living_writer(tmp_path):
    writer = ShardWriter(tmp_path, "u", samples_per_shard=1, unit="id")
    for index in range(3):
        writer.write(f"k{index}", {"mp4": b"x", "json": {}})
    for path in tmp_path.iterdir():
        age(path, 100)
    assert gc.find(tmp_path) == []
    writer.close()
    assert len(Shards(tmp_path, verify=True)) == 3


def test_gc_takes_the_files_of_a_dead_writer(tmp_path):
    pid = os.fork()
    if pid == 0:
        ShardWriter(tmp_path, "u", unit="id").write("k", {"mp4": b"x"})
        os._exit(1)
    os.waitpid(pid, 0)
    (part,) = tmp_path.iterdir()
    age(part)
    assert [item.kind for item in gc.find(tmp_path)] == ["temporary"]


def test_gc_counts_ages_by_the_clock_of_the_disk(clips, monkeypatch):
    (clips / ".1-a.tar.part").write_bytes(b"x")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine is decades ahead
    assert gc.find(clips) == []


def test_gc_does_not_touch_what_it_does_not_understand(clips, tmp_path):
    (clips / "clips-00000.json").write_text("{")
    for path in clips.iterdir():
        age(path)
    with pytest.raises(DataError, match=r"not valid JSON.*then clean up"):
        gc.find(clips)
    with pytest.raises(DataError, match="local folder"):
        gc.find("s3://bucket/clips")
    with pytest.raises(DataError, match="no folder of shards"):
        gc.find(tmp_path / "nowhere")
