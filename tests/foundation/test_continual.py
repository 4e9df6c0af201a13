import json

import numpy as np
import pytest
import torch

from foundation import continual, hub, pretrain
from foundation.continual import continual_scores
from foundation.envs import registry
from pipelines.schema import DataError
from tests.foundation.running import run
from tests.foundation.test_resume import Killed, kill  # noqa: F401
from tests.foundation.vector_world import Push, write_pushes

TASKS = ("pull", "draw")  # pull is the opposite of draw and of what was pretrained
OWN = {  # each task has its own of these; tokens before the window learn slowly
    "continual_lora": [], "continual_adapter": ["steps=60"],
    "continual_prompt": ["steps=60", "method.optimizer.lr=0.1"],
    "continual_prefix": ["steps=60", "method.optimizer.lr=0.1"],
}  # fmt: skip
TINY = ["method.net.width=32", "method.net.layers=2", "method.net.heads=2", "method.net.context=4"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """(policy pretrained on pushing, shards of the tasks to come)"""
    root = tmp_path_factory.mktemp("start")
    shards = write_pushes(root / "pushes"), write_pushes(root / "tasks", seed=1, tasks=TASKS)
    learn = ["steps=250", "method.optimizer.lr=3e-3", "method.optimizer.warmup_steps=10", "method.net.dropout=0"]
    run(pretrain, "pretrain", "method=mddt", f"data.train={shards[0]}", f"run.dir={root / 'mddt'}",
        "data.batch_size=32", *TINY, *learn)  # fmt: skip
    return root / "mddt", shards[1]


@pytest.fixture
def sequence(start, monkeypatch):
    """Function: method, folder, overrides -> summary of the toy sequence."""
    monkeypatch.setattr(registry, "make", lambda task, seed=None, **options: Push(task=task["name"]))

    def teach(method, folder, *overrides):
        options = [
            f"method={method}", f"init={start[0]}", f"data.train={start[1]}", f"run.dir={folder}", "task=gym_mujoco",
            f"task.name=[{','.join(TASKS)}]", "pretrained=[push]", "metric=return", "episodes=6", "target=6",
            "steps=120", "checkpoint_every=40", "data.batch_size=32", "method.optimizer.lr=5e-3", "data.length=4",
        ]  # fmt: skip
        return run(continual, "continual", *options, *overrides)

    return teach


def matrix(folder):
    return json.loads((folder / "matrix.json").read_text())["rows"]


def test_scores_by_hand():
    nan = float("nan")
    scores = continual_scores([[0.0, 0.1, 0.2], [0.8, 0.3, nan], [0.6, 0.9, 0.1], [0.4, 0.5, 0.7]])
    assert scores["performance"] == pytest.approx((0.4 + 0.5 + 0.7) / 3)
    assert scores["forgetting"] == pytest.approx((0.8 - 0.4 + 0.9 - 0.5 + 0) / 3)
    assert scores["forward_transfer"] == pytest.approx((0.3 - 0.1 + 0.1 - 0.2) / 2)
    alone = continual_scores([[0.1], [0.9]])
    assert alone["forgetting"] == 0 and np.isnan(alone["forward_transfer"])
    assert np.isnan(continual_scores([[0.0, None], [0.5, None], [0.5, 0.5]])["forward_transfer"])
    with pytest.raises(DataError, match="one row more"):
        continual_scores([[1.0]])


@pytest.mark.parametrize("method", OWN)
def test_adapters_of_each_task_forget_nothing(sequence, tmp_path, start, method):
    summary = sequence(method, tmp_path, *OWN[method])
    rows = matrix(tmp_path)
    assert summary["forgetting"] == 0 and summary["retention"] == 0 and summary["selection_accuracy"] == 1
    assert rows[1]["score"]["pull"] == rows[2]["score"]["pull"] > rows[0]["score"]["pull"] + 3
    assert rows[0]["score"]["push"] == rows[2]["score"]["push"]
    assert set(rows[1]["score"]) == {"push", *TASKS} and (tmp_path / "matrix.svg").read_text().startswith("<svg")
    frozen = hub.load(start[0]).net.state_dict()
    trained = hub.load(tmp_path / "02-draw").net.base.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in frozen.items())


def test_training_everything_forgets(sequence, tmp_path):
    summary = sequence("continual_full", tmp_path)
    assert summary["forgetting"] > 2 and "selection_accuracy" not in summary
    rows = matrix(tmp_path)
    assert rows[1]["score"]["pull"] > 2 > rows[1]["score"]["push"]  # after `pull` even pushing is lost


def test_modulation_spares_the_slots_of_the_first_task(sequence, tmp_path):
    options = ["method.net.slots=16", "method.net.tasks=2", "method.net.rank=4"]
    summary = sequence("l2m", tmp_path, *options)
    assert 0 <= summary["selection_accuracy"] <= 1
    first, last = (hub.load(tmp_path / name).net for name in ("01-pull", "02-draw"))
    assert not (last.own(0) & last.own(1)).any() and torch.equal(first.counts[0], last.counts[0])
    taken = last.own(0)
    for name, value in first.modulators.state_dict().items():
        assert torch.equal(value[taken], last.modulators.state_dict()[name][taken])
    assert torch.equal(first.keys[taken], last.keys[taken])


@pytest.mark.parametrize("method", ["l2m", "continual_ewc"])
def test_a_sequence_goes_on_bit_for_bit(sequence, tmp_path, kill, method):  # noqa: F811
    options = ["steps=9", "checkpoint_every=2", "data.batch_size=4", "episodes=2"]
    kill(None)
    sequence(method, tmp_path / "straight", *options)
    for batches in (4, 10, 3):  # in the first task, at the first step of the second, in the second
        kill(batches)
        with pytest.raises(Killed):
            sequence(method, tmp_path / "stopped", *options)
    kill(None)
    sequence(method, tmp_path / "stopped", *options)
    assert matrix(tmp_path / "straight") == matrix(tmp_path / "stopped")
    one, other = (hub.load(tmp_path / name / "02-draw").net.state_dict() for name in ("straight", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_work_is_refused_before_training(sequence, tmp_path, start):
    for overrides, message in (
        (["method.net.tasks=1"], "task.name lists 2"),
        (["task.name=[pull,jump]"], "no episodes with"),
        (["metric=score"], "success or return"),
        (["data.normalise=all"], "set them alike"),
        (["init=null"], "init=<folder> is missing"),
    ):
        with pytest.raises(DataError, match=message):
            sequence("l2m", tmp_path / "refused", *overrides)
    with pytest.raises(DataError, match="next is task 0"):
        run(pretrain, "pretrain", "method=l2m", f"init={start[0]}", f"data.train={start[1]}", "method.task=1",
            f"run.dir={tmp_path}")  # fmt: skip
    with pytest.raises(DataError, match="give init="):
        run(pretrain, "pretrain", "method=l2m", f"data.train={start[1]}", f"run.dir={tmp_path}")
