"""Labelling damaged or remote clip shards, an output folder that vanishes, kills: nothing is lost, nothing is twice."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults_processes import ended
from pipelines import label, verify
from pipelines.command import execute
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter
from tests.pipelines.server import serve
from tests.pipelines.test_label import config, content, labelled, make_clips, run, world  # noqa: F401 fixtures among them


def flip(path, at=-20_000):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(world, tmp_path):  # noqa: F811
    """A copy of the clips whose second shard has one wrong bit."""
    clips = shutil.copytree(world[0], tmp_path / "clips")
    flip(sorted(clips.glob("*.tar"))[1])
    return clips


def test_damage_stops_and_names_the_shard(world, damaged, tmp_path):  # noqa: F811
    with pytest.raises(DataError, match=r"clips-00001\S+ is damaged"):
        run((damaged, world[1]), tmp_path / "out")
    assert len(Shards(tmp_path / "out").manifests) == 1  # the shard before it stays


def test_damage_set_aside_is_labelled_once_it_is_repaired(world, labelled, damaged, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    summary = run((damaged, world[1]), out, "on_damage=set_aside")
    assert (summary["label/damaged_shards"], summary["label/shards_finished"], summary["label/rejected"]) == (1, 2, 0)
    report = verify.check(out)
    verify.check_labels(verify.check(world[0]), report)
    assert [item.shard for item in report.damage] == ["labels-clips-00001"]
    shutil.rmtree(damaged)
    shutil.copytree(world[0], damaged)
    summary = run((damaged, world[1]), out, "on_damage=set_aside")
    assert (summary["label/damaged_shards"], summary["label/shards_finished"]) == (0, 3)
    assert content(out) == content(labelled[0])


def test_a_missing_shard_is_set_aside_too(world, damaged, tmp_path):  # noqa: F811
    sorted(damaged.glob("*.tar"))[0].unlink()
    with pytest.raises(DataError, match="is missing"):
        run((damaged, world[1]), tmp_path / "out")
    summary = run((damaged, world[1]), tmp_path / "out", "on_damage=set_aside")
    assert (summary["label/damaged_shards"], summary["label/shards_finished"]) == (2, 1)


def test_damage_that_appears_while_a_shard_is_read_rejects_no_clip(world, tmp_path, monkeypatch):  # noqa: F811
    clips = shutil.copytree(world[0], tmp_path / "clips")
    victim, check = sorted(clips.glob("*.tar"))[1], Shards.check

    def late(self, file):
        check(self, file)
        if file == victim.name:
            flip(victim, victim.read_bytes().index(b"ftyp"))

    monkeypatch.setattr(Shards, "check", late)
    summary = run((clips, world[1]), tmp_path / "out", "on_damage=set_aside")
    assert (summary["label/damaged_shards"], summary["label/rejected"], summary["label/shards_finished"]) == (1, 0, 2)


def test_clips_over_the_network_get_the_same_labels(world, labelled, tmp_path):  # noqa: F811
    with serve(world[0].parent) as server:
        run((f"{server.address}/{world[0].name}", world[1]), tmp_path / "out")
    assert content(tmp_path / "out") == content(labelled[0])
    with pytest.raises(DataError, match="written to a local folder"):
        run(world, "memory://labels", f"run.dir={tmp_path / 'run'}")


def test_labels_deleted_during_the_run(world, labelled, tmp_path, monkeypatch):  # noqa: F811
    out, check, calls = tmp_path / "out", Shards.check, []

    def deleting(self, file):
        calls.append(file)
        if len(calls) == 2:
            shutil.rmtree(out)
        check(self, file)

    monkeypatch.setattr(Shards, "check", deleting)
    with pytest.raises(DataError, match="labels of 1 of 3 shards are gone; run the same command again"):
        run(world, out)
    monkeypatch.undo()
    run(world, out)
    assert content(out) == content(labelled[0])


def test_verify_of_real_labels(world, labelled):  # noqa: F811
    clips, report = verify.check(world[0]), verify.check(labelled[0])
    verify.check_labels(clips, report)
    assert (report.damage, report.numbers["unlabelled"], report.numbers["clips"]) == ([], 0, 9)


# kills


def start(cfg):
    """Labels in a child process; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            execute(label.main.function, cfg)
        finally:
            os._exit(0)
    return pid


def written(folder):
    """Files of `folder` so far, those in the making included."""
    return sum(1 for _ in folder.glob("*"))


def test_processes_killed_at_any_moment_lose_and_duplicate_nothing(world, tmp_path):  # noqa: F811
    """Two processes race for the same shards and are killed again and again; what they leave is the straight run's."""
    world = make_clips(tmp_path / "clips", videos=4, per_shard=2), world[1]
    out, rng, hits = tmp_path / "out", np.random.default_rng(0), 0
    run(world, tmp_path / "straight")
    configs = [config(world, out, f"run.dir={tmp_path / f'run{i}'}") for i in range(2)]
    for _ in range(3):
        pids = [start(cfg) for cfg in configs]
        for pid in pids:
            goal = written(out) + rng.integers(1, 5)
            while written(out) < goal and not ended(pid):
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            hits += os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert len(Shards(out, verify=True)) <= 12
    assert hits >= 4
    run(world, out)
    assert {e.key for e in Shards(out, verify=True).entries} == {e.key for e in Shards(world[0]).entries}
    assert content(out) == content(tmp_path / "straight")


# clips that cannot be decoded


def spoil(clips, key):
    """Replaces the video of a clip by noise, keeping index, checksum and manifest right."""
    shards = Shards(clips)
    with ShardWriter(Path(f"{clips}-spoilt"), samples_per_shard=4) as writer:
        for entry in shards.entries:
            data = shards.read(entry.key, "mp4")
            data = b"noise" * 100 if entry.key in key else data
            writer.write(entry.key, {"mp4": data, "npz": shards.arrays(entry.key), "json": entry.meta})
    return Path(f"{clips}-spoilt")


def test_an_unreadable_clip_is_set_aside_and_splits_its_run(world, tmp_path):  # noqa: F811
    clips = spoil(make_clips(tmp_path / "clips", videos=1), ["v0-1"])
    summary = run((clips, world[1]), tmp_path / "out")
    assert (summary["label/clips"], summary["label/rejected"]) == (2, 1)
    row = json.loads((tmp_path / "out-run" / "rejected.jsonl").read_text())
    assert row["key"] == "v0-1"
    assert run((clips, world[1]), tmp_path / "out")["label/rejected"] == 1  # still told when there is nothing to do
    with pytest.raises(DataError, match="1 clips could not be labelled"):
        run((clips, world[1]), tmp_path / "out", "allow_rejects=false")


def test_a_shard_without_readable_clips_does_not_stop_the_job(world, tmp_path):  # noqa: F811
    clips = spoil(make_clips(tmp_path / "clips", per_shard=4), [f"v0-{c}" for c in range(3)] + ["v1-0"])
    summary = run((clips, world[1]), tmp_path / "out")
    assert (summary["label/clips"], summary["label/rejected"], summary["label/shards_finished"]) == (5, 4, 2)


def test_nothing_labelled_is_an_error(world, tmp_path):  # noqa: F811
    clips = spoil(make_clips(tmp_path / "clips", videos=1, clips_per_video=1), ["v0-0"])
    with pytest.raises(DataError, match="no clip could be labelled"):
        run((clips, world[1]), tmp_path / "out")
