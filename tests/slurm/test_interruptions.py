"""Training jobs of slurm/*.sh that are signalled, preempted or cancelled end like one that never was."""

import os
import re
import time
from datetime import datetime

import pytest

from tests.foundation.test_finetune import TINY as TINY_GAME
from tests.slurm.cluster import processes, until
from tests.slurm.conftest import result

pytestmark = pytest.mark.timeout(1800)  # most of a job is Python's start, minutes on a busy machine
TOGETHER = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "data.batch_size=2"]


def signalled(slurm, job, run):
    """Sends USR1 at the first checkpoint and waits for the end -> steps done when it stopped.

    The job must train again within 60 s of the signal. Half of that is for Python's start, or twice what the first
    start took where the machine is too busy for that.
    """
    slurm.wait(job, "RUNNING")
    begun = time.time()
    slurm.until((run / "last.ckpt").exists, job)
    sent = time.time()
    slurm.run("scancel", "--signal=USR1", job)
    slurm.until(lambda: slurm.job(job)["Restarts"] == "1", job)
    written = os.stat(run / "last.ckpt").st_mtime
    slurm.wait(job, "RUNNING")
    running = time.time()
    slurm.wait(job, "COMPLETED")
    assert slurm.job(job)["Restarts"] == "1"
    log = slurm.log(job)
    steps = int(re.search(r"stopped at step (\d+), \S+ is written; job \S+ is queued again", log)[1])
    first, resumed = stamp(log), stamp(log, f"going on from step {steps}")
    print(f"{steps} steps; after the signal: checkpoint {written - sent:.2f} s, running again {running - sent:.1f} s,"
          f" training again {resumed - sent:.1f} s; first start {first - begun:.1f} s")  # fmt: skip
    assert resumed - sent < 30 + max(30, 2 * (first - begun))
    return steps


def stamp(log, words=""):
    """When the first line with `words` was logged."""
    found = re.search(rf"^\[(\d+-\d+-\d+ [\d:]+,\d+)\].*{words}", log, re.MULTILINE)
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def test_a_signalled_job_is_queued_again_and_ends_in_the_same_weights(slurm, pretrain, submit_folder, straight):
    job = pretrain()
    run = submit_folder / "outputs" / f"pretrain-{job}"
    assert 20 <= signalled(slurm, job, run) < 160
    assert result(run) == straight()


def test_so_do_two_processes_under_srun(slurm, pretrain, submit_folder):
    uninterrupted = pretrain(*TOGETHER, "run.dir=straight", options=["--ntasks-per-node=2"])
    job = pretrain(*TOGETHER, options=["--ntasks-per-node=2"])
    run = submit_folder / "outputs" / f"pretrain-{job}"
    assert 20 <= signalled(slurm, job, run) < 160
    slurm.wait(uninterrupted, "COMPLETED")
    assert result(run) == result(submit_folder / "straight")


def test_so_does_fine_tuning_in_the_game(slurm, submit_folder):
    given = ["slurm/finetune.sh", *TINY_GAME, "evaluate_before=false", "frames=1600", "checkpoint_every=5"]
    uninterrupted, job = slurm.submit(submit_folder, *given, "run.dir=straight"), slurm.submit(submit_folder, *given)
    run = submit_folder / "outputs" / f"finetune-{job}"
    signalled(slurm, job, run)
    slurm.wait(uninterrupted, "COMPLETED")
    assert result(run) == result(submit_folder / "straight")


def test_a_job_with_priority_takes_the_node_and_gives_it_back(slurm, pretrain, submit_folder, straight):
    job = pretrain("data.workers=2", "run.dir=preempted")  # Slurm signals the loader's workers, too
    slurm.until((submit_folder / "preempted" / "last.ckpt").exists, job)
    slurm.run("sbatch", "--partition=high", "--exclusive", "--wait", "--wrap", "sleep 1", cwd=submit_folder)
    slurm.wait(job, "COMPLETED")
    assert slurm.job(job)["Restarts"] == "1"
    assert result(submit_folder / "preempted") == straight()


def test_a_signal_before_training_loses_nothing(slurm, pretrain):
    job = pretrain("steps=30", "run.dir=early")
    words = ["python", "-m", "foundation.pretrain"]  # the signals are held back by what stood in its place before
    slurm.until(lambda: any(args[:3] == words and "run.dir=early" in args for _, args in processes()), job)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.until(lambda: slurm.job(job)["Restarts"] == "1", job)
    slurm.wait(job, "COMPLETED")
    assert "stopped at step 1," in slurm.log(job)


def test_a_cancelled_job_goes_on_when_its_command_is_given_again(slurm, pretrain, submit_folder, straight):
    cancelled = pretrain("run.dir=again")
    slurm.until((submit_folder / "again" / "last.ckpt").exists, cancelled)
    slurm.run("scancel", cancelled)
    assert slurm.wait(cancelled)["JobState"] == "CANCELLED"
    until(lambda: "not requeued" in slurm.log(cancelled), 60)
    assert re.search("not requeued .*the job is.*sbatch slurm/pretrain.sh .*run.dir=again", slurm.log(cancelled))
    steps = re.search(r"stopped at step (\d+)", slurm.log(cancelled))[1]
    again = pretrain("run.dir=again")
    slurm.wait(again, "COMPLETED")
    assert f"going on from step {steps}" in slurm.log(again)
    assert result(submit_folder / "again") == straight()


def test_where_requeueing_is_disabled_the_job_says_how_to_go_on(slurm, pretrain, submit_folder):
    job = pretrain("run.dir=barred", options=["--no-requeue"])
    slurm.until((submit_folder / "barred" / "last.ckpt").exists, job)
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait(job)["JobState"] == "FAILED"
    assert slurm.job(job)["ExitCode"] == "75:0"
    assert re.search("not requeued .*disabled.*sbatch slurm/pretrain.sh .*run.dir=barred", slurm.log(job))
