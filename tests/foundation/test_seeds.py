"""Several seeds in one process: each trains, logs and saves what a run of its own would."""

import csv
import json

import pytest
import torch
import yaml

from foundation import callbacks, hub, pretrain, report
from foundation.pretrain import prepare
from foundation.seeds import Together, configs, joined
from pipelines.schema import DataError
from pipelines.values import wrong_kinds
from tests.foundation.running import config, run
from tests.foundation.vector_world import write_pushes

TINY = ["method.net.width=16", "method.net.layers=1", "data.batch_size=8"]
TINY += ["steps=6", "validate_every=3"]
LR, STEPS = 3e-4, 6
METHODS = {
    "hilp": ["method=hilp", "method.net.latent_dim=6"],
    "centred": ["method=hilp", "method.net.latent_dim=6", "method.net.features=centred", "method.net.metric=icvf"],
    "two_stage": ["method=hilp", "method.net.latent_dim=6", "method.schedule=two_stage", "method.ema=after"],
    "iql": ["method=iql", "data.actor_goals={p_current: 0.0, p_trajectory: 0.5, p_random: 0.5, within: ahead}"],
    "awr": ["method=iql", "method.extraction=awr", "method.advantage=slow", "method.net.learned_std=true"],
    "goal_bc": ["method=goal_bc", "method.optimizer.weight_decay=0.1", "method.net.learned_std=true"],
}


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"), 12)


def options(data, folder, method="hilp", *overrides):
    return [*METHODS[method], *TINY, f"data.train={data}", "data.validation=0.25", f"run.dir={folder}", *overrides]


def train(data, folder, *overrides, method="hilp"):
    return run(pretrain, "pretrain", *options(data, folder, method, *overrides))


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return [{n: float(v) for n, v in row.items() if v and n != "epoch"} for row in csv.DictReader(file)]


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def together(data, folder, method, seeds="[3,0,7]"):
    """(Task, data) of all seeds."""
    cfg = config("pretrain", *options(data, folder, method, f"run.seeds={seeds}"))
    runs = [prepare(one) for one in configs(cfg)]
    return joined([one.task for one in runs], [one.data for one in runs], cfg.run.seeds)


def same(one, alone, method):
    """One seed of several, and a run of its own."""
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (one, alone))
    assert mine.keys() >= {name for name in theirs if name.startswith("validation/")} | {"train/loss", "frames/train"}
    assert mine == pytest.approx({name: theirs[name] for name in mine}, rel=1e-5, abs=1e-6)
    assert len(rows(one)) == len(rows(alone)) > 1
    for row, other in zip(rows(one), rows(alone), strict=True):
        row = {**other, **row} if method == "two_stage" else row  # a run repeats its last distances in the second stage
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    nets = [hub.load(folder).net.state_dict() for folder in (one, alone)]
    for name, value in nets[0].items():
        torch.testing.assert_close(value, nets[1][name], rtol=1e-5, atol=2 * LR * STEPS)


@pytest.mark.parametrize("method", METHODS)
def test_they_learn_what_single_runs_learn(method, pushes, tmp_path):
    seeds = [3, 0, 7] if method == "hilp" else [3, 0]
    train(pushes, tmp_path, f"run.seeds={seeds}", method=method)
    for seed in seeds:
        train(pushes, tmp_path / f"alone{seed}", f"run.seed={seed}", method=method)
        same(tmp_path / f"seed{seed}", tmp_path / f"alone{seed}", method)


@pytest.mark.parametrize("method", ["hilp", "iql"])
def test_weights_batches_and_gradients_are_those_of_each(method, pushes, tmp_path):
    task, data = together(pushes, tmp_path, method)
    loaded = Together([part.dataset for part in data.parts])
    task.all_losses(task.tensors(), loaded[2])[0].sum().backward()
    for k, seed in enumerate((3, 0, 7)):
        one = prepare(config("pretrain", *options(pushes, tmp_path, method, f"run.seed={seed}")))
        assert all(torch.equal(value[k], one.task.state_dict()[name]) for name, value in task.task.state_dict().items())
        for step in (0, 2):
            assert all(torch.equal(loaded[step][name][k], value) for name, value in one.data.dataset[step].items())
        one.task.losses(one.data.dataset[2])[0].backward()
        for (name, own), value in zip(one.task.named_parameters(), task.task.parameters(), strict=True):
            assert (own.grad is None) == (value.grad is None) == (not own.requires_grad), name
            if own.grad is not None:
                torch.testing.assert_close(value.grad[k], own.grad, rtol=1e-4, atol=1e-6)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(pushes, tmp_path, monkeypatch):
    more = "run.seeds=[3,0]", "checkpoint_every=2", "method.net.features=centred"
    train(pushes, tmp_path / "straight", *more)
    original = callbacks.Progress.on_train_batch_end

    def dies(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 5:
            raise InterruptedError

    monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", dies)
    with pytest.raises(InterruptedError):
        train(pushes, tmp_path / "stopped", *more)
    monkeypatch.undo()
    assert not (tmp_path / "stopped/seed0/model").exists()
    with pytest.raises(DataError, match=r"run.seeds: \[3, 0\] then, \[0, 3\] now"):
        train(pushes, tmp_path / "stopped", "run.seeds=[0,3]", *more[1:])
    for _ in range(2):  # the second time there is nothing left to do
        summary = train(pushes, tmp_path / "stopped", *more)
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.ndim == 2 and value.any() for name, value in one.items() if name.endswith("mean"))  # k z
    for seed in ("seed3", "seed0", "."):
        assert rows(tmp_path / "straight" / seed) == rows(tmp_path / "stopped" / seed)
    values = [json.loads((tmp_path / f"stopped/seed{k}/summary.json").read_text())["train/loss"] for k in (3, 0)]
    assert values[0] != values[1] and summary["train/loss"] == pytest.approx(sum(values) / 2)


def test_what_a_seed_leaves_is_a_run(pushes, tmp_path):
    train(pushes, tmp_path, "run.seeds=[3,0]", "data.validation=null")
    cfg = yaml.safe_load((tmp_path / "seed3/config.yaml").read_text())
    assert cfg["run"] == {"name": "hilp", "dir": str(tmp_path / "seed3"), "seed": 3, "seeds": None}
    assert "seed 3" in (tmp_path / "seed3/model/README.md").read_text()
    tables = run(report, "report", f"runs=[{tmp_path}]", f"run.dir={tmp_path / 'report'}", f"out={tmp_path / 'r.html'}")
    assert tables and "seed *: 2 runs" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.seeds=[]"], "different whole numbers"),
        (["run.seeds=[1,2,1]"], "different whole numbers"),
        (["trainer.gradient_clip_val=1"], "gradients of all seeds together.*-m run.seed=0,1"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.gradient_clip_val=null"], "one process"),
        (["final=best"], "go by one run"),
        (["stop_after=2"], "go by one run"),
        (["method.compile=true"], "compile=true is for one seed"),
        (["run.seeds=[0]", "method.tau=0"], "tau=0"),
    ],
)
def test_wrong_inputs(overrides, message, pushes, tmp_path):
    with pytest.raises(DataError, match=message):
        train(pushes, tmp_path, "run.seeds=[0,1]", *overrides)


def test_methods_of_one_seed(pushes, tmp_path):
    more = f"data.train={pushes}", f"run.dir={tmp_path}", "run.seeds=[0,1]", "trainer.gradient_clip_val=null"
    with pytest.raises(DataError, match=r"one seed at a time.*\(hilp, iql, goal_bc\)"):
        run(pretrain, "pretrain", "method=dt", *more)


def test_seeds_are_whole_numbers():
    base = {"run": {"seeds": None}}
    assert not list(wrong_kinds({"run": {"seeds": [0, 5]}}, base))
    for value in ([-1], [1 << 32], ["a"], 3):
        assert list(wrong_kinds({"run": {"seeds": value}}, base))
    assert not list(wrong_kinds({"seeds": ["evaluate/success"]}, {"seeds": []}))  # of the report: names of numbers
