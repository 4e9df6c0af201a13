"""Every task YAML builds, steps, and says how it is evaluated."""

from pathlib import Path

import numpy as np
import pytest

from foundation.envs.registry import load_task, make
from pipelines.command import CONFIGS
from pipelines.schema import DataError

TASKS = sorted({path.stem for path in (Path(CONFIGS) / "task").glob("doom_*.yaml")} - {"doom_room"})  # of frames


@pytest.mark.parametrize("name", TASKS)
def test_a_task_builds_and_steps(name):
    task = load_task(name)
    assert task.name == name
    assert task.evaluation.episodes > 0
    env = make(task, seed=0, size=(64, 80))
    observation, _ = env.reset()
    assert observation.shape == (64, 80, 3)
    for _ in range(3):
        observation, reward, *_ = env.step({"keys": np.ones(6, np.uint8), "mouse": np.zeros(2, np.float32)})
    assert env.observation_space.contains(observation)
    assert np.isfinite(reward)
    env.close()


def test_train_and_held_out_maps_differ():
    maps = load_task("doom_freeplay").env.maps
    assert len(maps.train) == 12
    assert len(maps.heldout) == 4
    assert not set(maps.train) & set(maps.heldout)


def test_overrides_replace_entries():
    env = make("doom_freeplay", split="heldout")
    assert env.maps == list(load_task("doom_freeplay").env.maps.heldout)
    env.close()


def test_my_way_home_starts_far_on_request():
    env = make("doom_my_way_home", start="far")
    cost, _ = env_search(env)
    env.close()
    assert cost > 1800  # units of walking to the armour


def env_search(env):
    env.reset(seed=5)
    armour = env.grid.level.things[env.grid.level.things[:, 3] == 2018][0, :2]
    cost, predecessors = env.grid.search(env.grid.nearest(env.facts[:2]))
    return cost[env.grid.nearest(armour)], predecessors


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("doom_nowhere", {}, "doom_my_way_home"),
        ({"name": "x", "env": {"_target_": "os.system"}}, {}, "package foundation"),
        ("doom_my_way_home", {"colour": 3}, "colour"),
        ("doom_my_way_home", {"start": "moon"}, "start 'moon'"),
        (3, {}, "mapping"),
    ],
)
def test_bad_tasks_say_what_to_do(task, overrides, message):
    with pytest.raises(DataError, match=message):
        make(task, **overrides)
