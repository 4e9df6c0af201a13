"""Runs that stop anywhere and go on: rows of metrics.csv and final weights are those of a run that never stopped."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Timer
from omegaconf import OmegaConf

from foundation import callbacks, checkpoints, finetune, hub, pretrain
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError

METHODS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
ALGOS = sorted(path.stem for path in Path(CONFIGS, "algo").glob("*.yaml") if path.stem != "latent")  # see test_latent
CLOCK = {"frames_per_second"}  # columns that tell the time
SMALL = {
    "dim": 16, "heads": 2, "layers": 1, "window": 8, "context": 8, "channels": [4, 4, 4], "hidsize": 16,
    "attention_heads": 2, "impala_width": 1, "timesteps": 8, "attention_memory_size": 16, "img_shape": [32, 40, 8],
    "dropout": 0.1, "width": 16,
}  # fmt: skip


class Killed(BaseException):
    """Ends a run where it stands, as a signal would."""


@pytest.fixture
def kill(monkeypatch):
    """kill(n): the next run dies in the n-th training batch; kill(None): it lives."""
    original = callbacks.Progress.on_train_batch_end

    def arm(batches):
        left = iter(range(batches)) if batches is not None else None

        def end(self, *args):
            original(self, *args)
            if left is not None and next(left, None) is None:
                raise Killed

        monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", end)

    return arm


def killed_and_again(kill, batches, run):
    """Runs a command that dies in one of these batches each time, then to its end."""
    for n in batches:
        kill(n)
        with pytest.raises(Killed):
            run()
    kill(None)
    run()


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return [{n: v for n, v in row.items() if n not in CLOCK and v} for row in csv.DictReader(file)]


def same(one, other):
    assert rows(one) == rows(other)
    a, b = (hub.load(folder / "model").net.state_dict() for folder in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_pretrain(method, folder, train, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        whole = compose("pretrain", [f"method={method}"])
        net = whole.method.net
        given = [name for name in SMALL if net.get(name) is not None and not OmegaConf.is_interpolation(net, name)]
        small = [f"method.net.{name}={SMALL[name]}" for name in given]
        if "channels" in net:
            small.append(f"method.net.channels={[4] * len(net.channels)}")
        options = [f"run.dir={folder}", "data.batch_size=2"]
        options += [f"data.{name}={train}" for name in ("train", "validation") if "train" in whole.data]
        options += [f"data.{name}=8" for name in ("length", "stride") if name in whole.data]
        options += ["steps=9", "validate_every=4", "checkpoint_every=2", *small]
        cfg = compose("pretrain", [f"method={method}", *options, *overrides])
    return execute(pretrain.main.function, cfg)


@pytest.mark.parametrize("method", METHODS)
def test_pretraining_goes_on_bit_for_bit(method, data_for, init_for, tmp_path, kill):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        whole = compose("pretrain", [f"method={method}"])
    train = data_for(whole)[0] if "train" in whole.data else None  # tasks may be drawn
    kill(None)
    init = init_for(whole)
    run_pretrain(method, tmp_path / "straight", train, *init)
    for batches in (3, 4, 1):  # at step 4 a validation comes between checkpoint and death
        kill(batches)
        with pytest.raises(Killed):
            run_pretrain(method, tmp_path / "stopped", train, "data.workers=1", *init)
    kill(None)
    run_pretrain(method, tmp_path / "stopped", train, *init)
    same(tmp_path / "straight", tmp_path / "stopped")


def test_minutes_are_those_of_all_sittings(data_for, tmp_path, kill, monkeypatch):
    kill(None)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        train = data_for(compose("pretrain", ["method=dt"]))[0]
    run_pretrain("dt", tmp_path, train)
    monkeypatch.setattr(Timer, "state_dict", lambda self: {"time_elapsed": {"train": 3600.0}})
    kill(4)
    with pytest.raises(Killed):
        run_pretrain("dt", tmp_path / "stopped", train)
    kill(None)
    monkeypatch.undo()
    assert 60 <= run_pretrain("dt", tmp_path / "stopped", train)["minutes"] < 65
    assert 60 <= run_pretrain("dt", tmp_path / "stopped", train)["minutes"] < 65  # nothing was left to train


def test_contexts_that_grow_go_on_bit_for_bit(tmp_path, kill):
    more = ["data=dark_room", "data.length=[4,9]", "data.queries=3", "data.world.contexts=[iid,posterior]"]
    more += [f"method.net.{option}" for option in ("query=last", "positions=none", "mixing=none")]
    kill(None)
    run_pretrain("dpt", tmp_path / "straight", None, *more)
    kill(5)
    with pytest.raises(Killed):
        run_pretrain("dpt", tmp_path / "stopped", None, *more)
    kill(None)
    run_pretrain("dpt", tmp_path / "stopped", None, *more)
    same(tmp_path / "straight", tmp_path / "stopped")


def test_accumulated_gradients_go_on_bit_for_bit(play_shards, tmp_path, kill):
    kill(None)
    more = ["trainer.accumulate_grad_batches=3", "steps=4", "checkpoint_every=1", "validate_every=2"]
    run_pretrain("idm", tmp_path / "straight", play_shards, *more)
    kill(7)  # in the middle of a step
    with pytest.raises(Killed):
        run_pretrain("idm", tmp_path / "stopped", play_shards, *more)
    kill(None)
    run_pretrain("idm", tmp_path / "stopped", play_shards, *more)
    same(tmp_path / "straight", tmp_path / "stopped")


VECTORS = [  # tiny runs of the algorithms for tasks of vectors: 4 updates on given episodes and 8 in rounds of 2
    "task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=10", "episodes=1", "evaluate_before=false",
    "policy_vectors.net.width=16", "policy_vectors.net.layers=1", "policy_vectors.net.context=4", "data.batch_size=4",
    "policy_vectors.net.dropout=0.1", "policy_vectors.random_episodes=3", "algo.stream.environments=2",
    "algo.stream.report_every=1", "evaluate_every=3",
]  # fmt: skip
ROUNDS = ["algo.stream.offline_updates=4", "algo.stream.updates_per_frame=0.1", "frames=80"]


def on_vectors(algo):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return "Aux" in compose("finetune", [f"algo={algo}"]).algo.agent._target_


def run_finetune(algo, folder, *overrides):
    tiny = VECTORS + (ROUNDS if algo != "bc" else ["algo.stream.offline_updates=12"]) if on_vectors(algo) else [
        "task.env.episode_tics=60", "episodes=1", "policy.size=[16,20]", "policy.net.dim=16", "policy.net.layers=1",
        "policy.net.heads=2", "policy.net.channels=[4,4]", "policy.net.context=8", "algo.stream.environments=2",
        "algo.stream.minibatches=2", "algo.stream.chunk=16", "frames=96", "evaluate_before=false",
    ]  # fmt: skip
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("finetune", [f"algo={algo}", f"run.dir={folder}", "checkpoint_every=1", *tiny, *overrides])
    return execute(finetune.main.function, cfg)


@pytest.mark.parametrize("algo", ALGOS)
def test_fine_tuning_goes_on_bit_for_bit(algo, tmp_path, kill):
    kill(None)
    run_finetune(algo, tmp_path / "init", "frames=32")
    init = [f"init={tmp_path / 'init'}"]  # anchored: the prior has a memory of its own
    init += [f"data.train={tmp_path / 'init' / 'random'}"] if on_vectors(algo) else []
    run_finetune(algo, tmp_path / "straight", *init)
    killed_and_again(kill, (6, 2), partial(run_finetune, algo, tmp_path / "stopped", *init))
    same(tmp_path / "straight", tmp_path / "stopped")


def test_training_on_vectors_from_scratch_goes_on_bit_for_bit(tmp_path, kill):
    kill(None)
    run_finetune("td3_aux", tmp_path / "straight")
    again = partial(run_finetune, "td3_aux", tmp_path / "stopped")
    killed_and_again(kill, (0, 6, 2), again)  # before the first checkpoint, too
    same(tmp_path / "straight", tmp_path / "stopped")
    again("resume=never")
    same(tmp_path / "straight", tmp_path / "stopped")


def test_a_checkpoint_between_two_minibatches_holds_the_rest(tmp_path, kill, monkeypatch):
    kill(None)
    run_finetune("ppo", tmp_path / "straight")
    original = checkpoints.Checkpoint.on_train_batch_end

    def at_every_step(self, *args):
        self.every = 1
        original(self, *args)

    monkeypatch.setattr(checkpoints.Checkpoint, "on_train_batch_end", at_every_step)
    killed_and_again(kill, (2, 4), partial(run_finetune, "ppo", tmp_path / "stopped"))
    same(tmp_path / "straight", tmp_path / "stopped")


def test_torn_checkpoints_are_passed_over(play_shards, tmp_path, kill, caplog):
    kill(None)
    run_pretrain("idm", tmp_path / "straight", play_shards)
    kill(6)
    with pytest.raises(Killed):
        run_pretrain("idm", tmp_path / "stopped", play_shards)
    last = tmp_path / "stopped" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    kill(None)
    run_pretrain("idm", tmp_path / "stopped", play_shards)
    assert "passed over" in caplog.text
    same(tmp_path / "straight", tmp_path / "stopped")
    assert {p.name for p in (tmp_path / "stopped").glob("*.ckpt*")} == {"last.ckpt", "last-1.ckpt"}


def test_no_flipped_bit_is_taken_for_a_whole_checkpoint(tmp_path):
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(6.0)}, "global_step": 5, "run": {"config": {"a": 1.5}}}, good)
    content, data = repr(torch.load(good, weights_only=True)), good.read_bytes()
    assert checkpoints.whole(good)
    refused = 0
    for bit in range(0, 8 * len(data), 53):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        bad.write_bytes(damaged)
        if checkpoints.whole(bad):
            assert repr(torch.load(bad, weights_only=True)) == content
        else:
            refused += 1
    assert refused > len(data) / 20


def test_another_config_or_world_is_refused(play_shards, tmp_path, kill):
    kill(4)
    with pytest.raises(Killed):
        run_pretrain("idm", tmp_path, play_shards)
    kill(None)
    with pytest.raises(DataError, match=r"method.optimizer.lr: 0.0015 then, 0.1 now"):
        run_pretrain("idm", tmp_path, play_shards, "method.optimizer.lr=0.1")
    with pytest.raises(DataError, match="steps: 9 then"):
        run_pretrain("idm", tmp_path, play_shards, "steps=12")  # the schedule depends on it
    with pytest.raises(DataError, match="1 processes, now there are 2"):
        run_pretrain("idm", tmp_path, play_shards, "trainer.devices=2")


def test_the_best_is_kept(play_shards, tmp_path, kill):
    kill(None)
    run_pretrain("idm", tmp_path, play_shards, "best=validation/loss")
    values = {int(r["step"]): float(r["validation/loss"]) for r in rows(tmp_path) if "validation/loss" in r}
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert values[best["global_step"] - 1] == min(values.values())


def test_rows_of_earlier_runs_survive_a_kill_before_the_next_row(tmp_path):
    path = tmp_path / "metrics.csv"
    log = callbacks.csv_logger(tmp_path)
    for step in range(4):
        log.log_metrics({"loss": step / 2}, step)
    with open(path, "a") as file:
        file.write("4,1")  # a writer that was killed inside a row
    callbacks.csv_logger(tmp_path, resumed_step=3)  # and is killed before it writes
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    log = callbacks.csv_logger(tmp_path, resumed_step=2)
    log.log_metrics({"loss": 1.0, "more": 2.0}, 2)
    assert rows(tmp_path)[1:] == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "1.0", "more": "2.0"}]
    assert not list(tmp_path.glob("*.part"))
    callbacks.csv_logger(tmp_path)
    assert not path.exists()


def test_a_finished_run_keeps_its_rows_when_it_is_started_again(tmp_path, kill):
    kill(None)
    run_finetune("ppo", tmp_path, "frames=32")
    before = rows(tmp_path)
    run_finetune("ppo", tmp_path, "frames=32")
    assert rows(tmp_path) == before and before


def test_early_stopping_and_the_best_weights(data_for, tmp_path, kill):
    """A learning rate that ruins the network: the run ends two validations after its best one, killed or not."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        train, _ = data_for(compose("pretrain", ["method=dt"]))
    ending = ["stop_after=2", "final=best", "validate_every=2", "steps=40", "method.optimizer.schedule=constant"]
    ending += ["method.optimizer.lr=10", "method.optimizer.warmup_steps=0", "method.net.dropout=0"]
    kill(None)
    summary = run_pretrain("dt", tmp_path / "straight", train, *ending)
    found = [row for row in rows(tmp_path / "straight") if "validation/loss" in row]
    values = {int(row["step"]) + 1: float(row["validation/loss"]) for row in found}
    best = min(values, key=values.get)
    assert summary["steps_best"] == best and summary["steps"] == best + 4 == max(values)
    assert summary["validation/loss"] == pytest.approx(values[best], rel=1e-6)
    kept = torch.load(tmp_path / "straight" / "best.ckpt", weights_only=True)["state_dict"]
    saved = hub.load(tmp_path / "straight").net.state_dict()
    assert all(torch.equal(kept[f"net.{name}"], value) for name, value in saved.items())
    for batches in (summary["steps"] - 1, 1):
        kill(batches)
        with pytest.raises(Killed):
            run_pretrain("dt", tmp_path / "stopped", train, *ending)
    kill(None)
    for _ in range(2):  # the second finds a run that ended early, and leaves it so
        again = run_pretrain("dt", tmp_path / "stopped", train, *ending)
        assert again["steps"] == summary["steps"] and again["validation/loss"] == summary["validation/loss"]
    same(tmp_path / "straight", tmp_path / "stopped")
    for wrong in (["data.validation=null"], ["final=worst"], ["stop_after=0"]):
        with pytest.raises(DataError, match="stop_after"):
            run_pretrain("dt", tmp_path / "wrong", train, *ending, *wrong)
