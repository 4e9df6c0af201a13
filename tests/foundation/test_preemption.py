"""Runs that are asked to stop: end of the step, checkpoint, status 75, and the same numbers when run again."""

import os
import signal

import pytest

from foundation import callbacks, preemption, slurm
from foundation.checkpoints import step_of
from foundation.training import world_size
from pipelines.schema import DataError
from tests.foundation.test_pretrain import run
from tests.foundation.test_resume import same

CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1}


@pytest.fixture
def send(monkeypatch):
    """send(n, number): the n-th batch of the next run meets a signal; send(None): none does."""
    original = callbacks.Progress.on_train_batch_end

    def arm(batches, number=signal.SIGTERM):
        def end(self, trainer, module, outputs, batch, index):
            original(self, trainer, module, outputs, batch, index)
            if index + 1 == batches:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", end)

    return arm


@pytest.fixture
def held_back():
    """As under slurm/*.sh: both signals stay pending."""
    signals = {signal.SIGUSR1, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    yield
    while signal.sigtimedwait(signals, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stopped_and_again(send, play_shards, folder, batch, expected_step, *overrides, number=signal.SIGTERM, late=0):
    """Asserts that a run stopped in a batch ends, run again, like one that never was."""
    options = ["steps=8", *overrides]
    send(None)
    run("idm", folder / "straight", play_shards, *options)
    send(batch, number)
    with pytest.raises(SystemExit) as stop:
        run("idm", folder / "stopped", play_shards, *options)
    assert stop.value.code == 75
    assert expected_step <= step_of(folder / "stopped" / "last.ckpt") <= expected_step + late
    assert not (folder / "stopped" / "model").exists()
    send(None)
    for sent in {signal.SIGUSR1, signal.SIGTERM} & signal.sigpending():
        signal.sigwait([sent])
    run("idm", folder / "stopped", play_shards, *options)
    same(folder / "straight", folder / "stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_step(number, send, play_shards, tmp_path):
    before = signal.getsignal(number)
    stopped_and_again(send, play_shards, tmp_path, 20, 20, "steps=24", number=number)  # every 20th step is logged
    assert signal.getsignal(number) == before


def test_an_interrupt_says_what_is_lost(send, play_shards, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(preemption.log, "warning", lambda text, *values: said.append(text % values))
    send(3, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without
    try:
        with pytest.raises(KeyboardInterrupt):
            run("idm", tmp_path, play_shards, "steps=8")
    finally:
        signal.signal(signal.SIGINT, before)
    assert any("no checkpoint is written yet" in one for one in said)


def test_a_signal_that_is_held_back_is_seen_all_the_same(held_back, send, play_shards, tmp_path):
    # threads of earlier tests, whose mask is another, may take the signal: then it is known a step later
    stopped_and_again(send, play_shards, tmp_path, 5, 5, number=signal.SIGUSR1, late=1)


def test_gradients_are_not_cut_in_half(send, play_shards, tmp_path):
    stopped_and_again(send, play_shards, tmp_path, 3, 2, "trainer.accumulate_grad_batches=2")


def test_a_validation_that_is_due_comes_before_the_checkpoint(send, play_shards, held_out_shards, tmp_path):
    validation = [f"data.validation={held_out_shards}", "validate_every=4"]
    stopped_and_again(send, play_shards, tmp_path, 4, 4, *validation)


def test_outside_slurm_the_command_to_repeat_is_named(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.job_id() is None
    assert slurm.again(["a=[1,2]"]).startswith("python -m ")
    assert slurm.again(["a=[1,2]"]).endswith(" 'a=[1,2]'")
    assert slurm.trainer_settings(CPU) is CPU


def test_processes_follow_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert world_size(CPU) == 1  # not started by srun
    for name, value in {"STEP_ID": "0", "NNODES": "2", "NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    settings = slurm.trainer_settings({**CPU, "devices": -1})
    assert (settings["devices"], settings["num_nodes"]) == (4, 2)
    assert not settings["plugins"][0].auto_requeue
    assert world_size({**CPU, "devices": -1}) == 8
    with pytest.raises(DataError, match=r"8 tasks on 2 nodes.*trainer\.devices=1.*trainer=ddp"):
        slurm.trainer_settings(CPU)


def test_a_task_of_an_array_is_named_apart_from_the_others(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm.job_id() == "9_2"
