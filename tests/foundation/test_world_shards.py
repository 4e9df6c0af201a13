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


@pytest.mark.parametrize(
    ("task", "world", "unknown"),
    [("grid_world", {"size": 7, "walls": "four_rooms"}, {"goal", "openings"}),
     ("recovering_bandit", {"cap": 3}, {"recovery"})],
)  # fmt: skip
def test_a_task_is_told_by_what_defines_it(task, world, unknown, tmp_path):
    sizes = [f"task.env.world.{name}={value}" for name, value in world.items()]
    shards, _ = collected(tmp_path, *sizes, "states.episodes=2", task=task)
    data = Trajectories.load(shards)
    assert len(data.reward) == 40 and all(tags["unknown"].keys() == unknown for tags in data.tags)


def test_tasks_of_a_world_do_not_mix_in_a_context(rooms, tmp_path):
    with pytest.raises(DataError, match=r"of different tasks.*data\.by=\[task,seed\]"):
        ContextData(str(rooms), **{**OPTIONS, **PINNED, "by": "task"})
    small = ["task=dark_room", "task.env.world.size=4", "task.env.world.horizon=6", "states.episodes=4", "workers=0"]
    plays = [f"out={tmp_path / 'plays'}", f"run.dir={tmp_path}", "states.mix={scripted:0.5,random:0.5}"]
    run(collect, "collect", *small, *plays)
    data = Trajectories.load(tmp_path / "plays")
    for episode, tags in enumerate(data.tags):  # what the player wanted is towards the goal of the tag
        there = (data.observation == tags["unknown"]["goal"]).all(1)[slice(*data.offsets[episode : episode + 2])]
        assert ((data.optimal_action[slice(*data.offsets[episode : episode + 2])] == 4) == there).all()
    with pytest.raises(DataError, match="of different tasks"):
        ContextData(str(tmp_path / "plays"), **{**OPTIONS, "length": 6})
    assert len(ContextData(str(tmp_path / "plays"), **{**OPTIONS, "length": 6, "by": ["task", "seed"]}).dataset) == 10


def test_played_episodes_keep_their_order(tmp_path):
    small = ["task=dark_room", "task.env.world.size=4", "task.env.world.horizon=6", "task.env.episodes=2", "workers=0"]
    run(collect, "collect", *small, "states.episodes=2", f"out={tmp_path / 'plays'}", f"run.dir={tmp_path}")
    assert Trajectories.load(tmp_path / "plays").next_observation is not None
    with pytest.raises(DataError, match="order"):
        ContextData(str(tmp_path / "plays"), **{**OPTIONS, **PINNED, "length": 6})


def test_a_policy_of_another_world_is_refused(rooms, tmp_path):
    common = ["method=dpt", "method.net.width=16", "method.net.layers=1", "data.batch_size=4", "steps=1"]
    options = [f"data.{name}={str(value).replace(' ', '')}" for name, value in PINNED.items()]
    pinned = ["data=contexts", f"data.train={rooms}", "data.normalise=null", *options, *common]
    for size in (4, 5):
        drawn = ["data=dark_room", f"data.world.size={size}", "data.world.contexts=random_walk", "data.length=[19]"]
        run(pretrain, "pretrain", *drawn, "data.validation=4", *common, f"run.dir={tmp_path / str(size)}")
    given = [*pinned, f"init={tmp_path / '4'}", f"run.dir={tmp_path / 'on'}"]
    assert run(pretrain, "pretrain", *given)["train/loss"] > 0  # the same world, whatever its contexts
    with pytest.raises(DataError, match=r"'size': 5.*'size': 4"):
        run(pretrain, "pretrain", *pinned, f"init={tmp_path / '5'}", f"run.dir={tmp_path / 'off'}")


def test_other_worlds_are_refused(rooms, tmp_path):
    others, _ = collected(tmp_path / "a", "task.env.world.size=5", "states.episodes=2")
    with pytest.raises(DataError, match="'size': 5"):
        ContextData(str(rooms), **{**OPTIONS, **PINNED, "validation": str(others)})
    with pytest.raises(DataError, match="for worlds"):
        run(collect, "collect", "task=reacher2d", "states.behaviour=context", f"run.dir={tmp_path / 'b'}")
    with pytest.raises(DataError, match=r"states\.length=0"):
        collected(tmp_path / "c", "states.length=0")
    with pytest.raises(DataError, match=r"states\.length=20 is for states\.behaviour=context"):
        collected(tmp_path / "d", "states.behaviour=random")
    for setting in ("scale=0.5", "noise=0.3"):
        with pytest.raises(DataError, match=rf"states\.{setting[:5]} changes how"):
            collected(tmp_path / "d", f"states.{setting}")
