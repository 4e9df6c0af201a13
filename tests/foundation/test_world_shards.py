"""Contexts of worlds as shards: single transitions with their labels, and a data set that is pinned by them."""

import numpy as np
import pytest

from foundation import collect, hub, pretrain
from foundation.pretraining.context_data import ContextData
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.foundation.running import run
from tests.foundation.test_context_data import OPTIONS

PINNED = {"by": ["task", "seed"], "length": 20, "shuffle": True, "cut": 0.0, "order": "recorded"}


def collected(folder, *overrides, task="dark_room"):
    given = [f"task={task}", "states.behaviour=context", "states.length=20", "workers=0", f"out={folder / 'shards'}"]
    summary = run(collect, "collect", *given, f"run.dir={folder}", *overrides)
    return folder / "shards", summary


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    return collected(folder, "task.env.world.size=4", "states.episodes=30")[0]


def test_a_context_is_a_task_of_its_own_with_its_labels(rooms):
    data = Trajectories.load(rooms, {"task": "dark_room", "behaviour": "context", "split": "train"})
    assert data.lengths.tolist() == [20] * 30 and data.spaces.n_actions == 5
    goals = np.repeat([tags["unknown"]["goal"] for tags in data.tags], 20, axis=0)
    assert len({tuple(goal) for goal in goals}) > 5
    np.testing.assert_array_equal(data.reward, (data.next_observation == goals).all(1))
    moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    np.testing.assert_array_equal(data.next_observation, (data.observation + moves[data.action]).clip(0, 3))
    there = (data.observation == goals).all(1)
    assert (data.optimal_action[there] == 4).all() and (data.optimal_action[~there] < 4).all()
    assert (data.observation[1:] != data.next_observation[:-1]).any(1).mean() > 0.5  # independent transitions


@pytest.mark.parametrize("query", ["first", "last"])
def test_a_pinned_data_set_is_trained_on(rooms, tmp_path, query):
    options = [f"data.{name}={str(value).replace(' ', '')}" for name, value in PINNED.items()]
    given = ["method=dpt", "data=contexts", f"data.train={rooms}", "data.validation=0.2", *options]
    net = [f"method.net.query={query}", "method.net.width=16", "method.net.layers=1"]
    net += ["data.normalise=null", "steps=3", "data.batch_size=4"]
    summary = run(pretrain, "pretrain", *given, *net, f"run.dir={tmp_path}")
    assert 1 < summary["validation/loss"] < 3
    bundle = hub.load(tmp_path)
    assert bundle.config["world"]["size"] == 4 and bundle.statistics["returns_scale"] == 1


def test_ordered_contexts_keep_their_order(tmp_path):
    shards, summary = collected(tmp_path, "states.episodes=2", task="linear_bandit")
    assert summary["frames"] == 40
    with pytest.raises(DataError, match="order"):
        ContextData(str(shards), **{**OPTIONS, **PINNED})
    batch = ContextData(str(shards), **{**OPTIONS, **PINNED, "shuffle": False}).dataset[0]
    assert batch["target"].shape == (16, 20)


def test_other_worlds_are_refused(rooms, tmp_path):
    others, _ = collected(tmp_path / "a", "task.env.world.size=5", "states.episodes=2")
    with pytest.raises(DataError, match="'size': 5"):
        ContextData(str(rooms), **{**OPTIONS, **PINNED, "validation": str(others)})
    with pytest.raises(DataError, match="for worlds"):
        run(collect, "collect", "task=reacher2d", "states.behaviour=context", f"run.dir={tmp_path / 'b'}")
    with pytest.raises(DataError, match=r"states\.length=0"):
        collected(tmp_path / "c", "states.length=0")
