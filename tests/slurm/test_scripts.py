"""The shipped slurm/*.sh on a real Slurm: preemption, processes that train together, arrays of labelling tasks."""

import os
import re
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.pipelines.test_label import make_clips, make_idm

pytestmark = pytest.mark.timeout(900)  # most of a job is Python's start, minutes on a busy machine
ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "method=idm", "method.net.channels=[4,8,8]", "method.net.dim=32", "method.net.heads=2", "method.net.window=16",
    "method.optimizer.warmup_steps=5", "data.stride=8", "data.batch_size=4", "validate_every=150",
    "checkpoint_every=100", "steps=400",
]  # fmt: skip
TOGETHER = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "data.batch_size=2"]


@pytest.fixture
def pretrain(slurm, submit_folder, play_shards, held_out_shards):
    """Function (overrides, sbatch's options) -> job number of slurm/pretrain.sh on the tiny play."""
    given = [*TINY, f"data.train={play_shards}", f"data.validation={held_out_shards}"]
    return lambda overrides=(), options=(): slurm.submit(
        submit_folder, *options, "slurm/pretrain.sh", *given, *overrides
    )


def until(condition, timeout=300):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def log_of(folder, job):
    return (folder / f"slurm-pretrain-{job}.out").read_text()


def stamp(line):
    return datetime.strptime(re.match(r"\[([^\]]+)\]", line)[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def result(folder):
    """What must not depend on interruptions: the weights and every logged number."""
    return (folder / "model" / "model.safetensors").read_bytes(), (folder / "metrics.csv").read_bytes()


@pytest.mark.parametrize("script", ["pretrain", "finetune", "label"])
def test_without_sbatch_a_script_says_what_to_run(script, tmp_path):
    for name in ("bash", "dirname"):
        os.symlink(f"/usr/bin/{name}", tmp_path / name)
    command = ["/bin/bash", f"slurm/{script}.sh", "debug=true"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    module = {"label": "pipelines"}.get(script, "foundation")
    assert "sbatch is not on this machine" in done.stderr
    assert f"  python -m {module}.{script} debug=true\n" in done.stderr


def test_with_sbatch_a_script_run_by_hand_says_how_to_submit_it(slurm):
    done = subprocess.run(["bash", "slurm/label.sh"], cwd=ROOT, env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit it: sbatch slurm/label.sh" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--ntasks-per-node=2",)], ids=["one", "ddp"])
def test_a_signalled_job_is_queued_again_and_ends_in_the_same_weights(slurm, pretrain, submit_folder, options):
    """Two processes under srun likewise; the continuation must train again within 60 s of the signal.

    Half of that is for Python's start, or twice what the first start took where the machine is too busy for that.
    """
    together = TOGETHER if options else []
    straight = pretrain([*together, "run.dir=straight"], options)
    job = pretrain(together, options)
    run = submit_folder / "outputs" / f"pretrain-{job}"
    slurm.wait(job, "RUNNING")
    begun = time.time()
    until((run / "last.ckpt").exists)
    signalled = time.time()
    slurm.run("scancel", "--signal=USR1", job)
    slurm.wait(job, "PENDING")
    checkpoint = (run / "last.ckpt").stat().st_mtime
    slurm.wait(job, "RUNNING")
    started = time.time()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "1"
    lines = log_of(submit_folder, job).splitlines()
    stopped = next(line for line in lines if "is queued again" in line)
    steps = int(re.search(r"stopped at step (\d+)", stopped)[1])
    resumed = next(line for line in lines if f"going on from step {steps}" in line)
    print(f"checkpoint {checkpoint - signalled:.2f} s, running {started - signalled:.1f} s, "
          f"next step {stamp(resumed) - signalled:.1f} s after the signal")  # fmt: skip
    first_start = stamp(next(line for line in lines if "parameters" in line)) - begun
    assert 100 <= steps < 400
    assert slurm.wait(straight)["JobState"] == "COMPLETED"
    assert result(run) == result(submit_folder / "straight")
    assert stamp(resumed) - signalled < 30 + max(30, 2 * first_start)


@pytest.mark.slow
def test_a_job_with_priority_takes_the_node_and_gives_it_back(slurm, pretrain, submit_folder):
    straight = pretrain(["run.dir=straight"])
    assert slurm.wait(straight)["JobState"] == "COMPLETED"
    job = pretrain(["data.workers=2", "run.dir=preempted"])  # Slurm signals the loader's workers, too
    until((submit_folder / "preempted" / "last.ckpt").exists)
    slurm.run("sbatch", "--partition=high", "--exclusive", "--wait", "--wrap", "sleep 1", cwd=submit_folder)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "1"
    assert result(submit_folder / "preempted") == result(submit_folder / "straight")


@pytest.mark.slow
def test_a_signal_before_training_loses_nothing(slurm, pretrain, submit_folder):
    job = pretrain(["steps=30"])
    until(lambda: f"{job}.0" in slurm.run("squeue", "--steps", "--format=%i"))
    time.sleep(1)  # Python is importing
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait(job, "PENDING", "FAILED", "COMPLETED")["JobState"] == "PENDING"
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert "stopped at step 1," in log_of(submit_folder, job)


@pytest.mark.slow
def test_cancelled_jobs_and_those_that_may_not_requeue_say_how_to_go_on(slurm, pretrain, submit_folder):
    cancelled, barred = pretrain(["run.dir=cancelled"]), pretrain(["run.dir=barred"], ["--no-requeue"])
    for job, name in ((cancelled, "cancelled"), (barred, "barred")):
        until((submit_folder / name / "last.ckpt").exists)
        slurm.run("scancel", *(["--signal=USR1"] if job == barred else []), job)
    assert slurm.wait(cancelled)["JobState"] == "CANCELLED"
    assert slurm.wait(barred)["JobState"] == "FAILED"
    assert slurm.job(barred)["ExitCode"] == "75:0"
    for job, name, reason in ((cancelled, "cancelled", "the job is"), (barred, "barred", "disabled")):
        until(lambda job=job: "not requeued" in log_of(submit_folder, job), 10)
        expected = f"not requeued .*{reason}.*sbatch slurm/pretrain.sh .*run.dir={name}"
        assert re.search(expected, log_of(submit_folder, job))


@pytest.mark.slow
def test_tasks_and_trainer_must_agree(slurm, pretrain, submit_folder):
    job = pretrain(options=["--ntasks-per-node=2"])
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "Slurm started 2 tasks" in log_of(submit_folder, job) and "trainer=ddp" in log_of(submit_folder, job)


@pytest.mark.slow
def test_without_data_a_job_records_its_own_and_trains_on_it(slurm, submit_folder):
    job = slurm.submit(submit_folder, "slurm/pretrain.sh", "steps=2")
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert '"idm/camera_r2_yaw"' in (submit_folder / "outputs" / f"pretrain-{job}" / "summary.json").read_text()


@pytest.mark.slow
def test_one_failed_task_of_a_label_array_runs_again_alone(slurm, submit_folder):
    """Five tasks for three shards; rank 1 fails because a file lies where its run folder belongs."""
    make_clips(submit_folder / "clips", videos=3, clips_per_video=3, per_shard=3)
    make_idm(submit_folder / "idm")
    labels = submit_folder / "labels"
    given = ["clips=clips", "idm=idm", "out=labels", "run.dir=runs", "allow_unlabelled_keys=true"]
    (submit_folder / "runs").mkdir()
    (submit_folder / "runs" / "1").touch()
    job = slurm.submit(submit_folder, "--array=0-4", "slurm/label.sh", *given)
    states = [slurm.wait(f"{job}_{rank}")["JobState"] for rank in range(5)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED", "COMPLETED"]
    before = tars(labels)
    assert len(before) == 2
    (submit_folder / "runs" / "1").unlink()
    slurm.run("scontrol", "requeue", f"{job}_1")
    slurm.wait(f"{job}_1", "PENDING", "RUNNING", "COMPLETED")
    assert slurm.wait(f"{job}_1")["JobState"] == "COMPLETED"
    after = tars(labels)
    assert len(after) == 3 and before.items() <= after.items()
    alone = slurm.submit(submit_folder, "--array=1", "slurm/label.sh", *given)
    assert slurm.wait(f"{alone}_1")["ExitCode"] == "2:0"
    assert "world_size=" in (submit_folder / f"slurm-label-{alone}_1.out").read_text()
    again = slurm.submit(submit_folder, "--array=1", "slurm/label.sh", *given, "world_size=5")
    assert slurm.wait(f"{again}_1")["JobState"] == "COMPLETED"
    assert tars(labels) == after


def tars(folder):
    """{name: (inode, time written)} of the label shards: equal only if nothing was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}
