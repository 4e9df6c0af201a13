"""slurm/label.sh on a real Slurm: any number of tasks for any number of shards, each of which may fail alone."""

import pytest

from tests.pipelines.test_label import make_clips, make_idm

pytestmark = pytest.mark.timeout(1800)  # most of a job is Python's start, minutes on a busy machine


def test_one_failed_task_of_an_array_runs_again_alone(slurm, submit_folder):
    """Five tasks for three shards, and two that leave the same labels; rank 1 of the five cannot write its run.dir."""
    make_clips(submit_folder / "clips", videos=3, clips_per_video=3, per_shard=3)
    make_idm(submit_folder / "idm")
    given = ["slurm/label.sh", "clips=clips", "idm=idm", "allow_unlabelled_keys=true"]
    few = slurm.submit(submit_folder, "--array=0-1", *given, "out=few")
    given += ["out=labels", "run.dir=runs"]
    (submit_folder / "runs").mkdir()
    (submit_folder / "runs" / "1").touch()
    job = slurm.submit(submit_folder, "--array=0-4", *given)
    states = [slurm.wait(f"{job}_{rank}")["JobState"] for rank in range(5)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED", "COMPLETED"]
    labels = submit_folder / "labels"
    before = tars(labels)
    assert len(before) == 2

    (submit_folder / "runs" / "1").unlink()
    slurm.run("scontrol", "requeue", f"{job}_1")
    slurm.wait(f"{job}_1", "COMPLETED")
    after = tars(labels)
    assert len(after) == 3 and before.items() <= after.items()

    alone = slurm.submit(submit_folder, "--array=1", *given)
    again = slurm.submit(submit_folder, "--array=1", *given, "world_size=5")
    assert slurm.wait(f"{alone}_1")["ExitCode"] == "2:0"
    assert "world_size=" in slurm.log(f"{alone}_1")
    slurm.wait(f"{again}_1", "COMPLETED")
    assert tars(labels) == after

    for rank in range(2):
        slurm.wait(f"{few}_{rank}", "COMPLETED")
    assert content(submit_folder / "few") == content(labels)


def tars(folder):
    """{name: (inode, time written)} of the label shards: equal only if nothing was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}
