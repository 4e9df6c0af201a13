"""Meta-World: the traps of the package are closed, and its names and splits are what they claim."""

from functools import cache

import numpy as np
import pytest

from foundation.envs.metaworld import CW10, GROUPS, MT40, TASKS, MetaWorld, touching
from foundation.envs.registry import load_task, make, tasks_of
from pipelines.schema import DataError


def test_splits_are_disjoint_and_complete():
    assert len(TASKS) == len(set(TASKS)) == 50
    assert len(CW10) == 10 and len(MT40) == 40
    assert not set(CW10) & set(MT40)
    assert CW10[0] == "hammer-v3" and CW10[-1] == "peg-unplug-side-v3"


def test_the_package_has_these_tasks_and_their_policies():
    pytest.importorskip("metaworld")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)


def test_names_of_a_task():
    names = [task["name"] for task in tasks_of({**load_task("metaworld"), "name": ["push", "reach-v3", "cw10"]})]
    assert names == ["push-v3", "reach-v3", *(name for name in CW10 if name != "push-v3")]
    assert MetaWorld.names("mt40") == list(GROUPS["mt40"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("draweropen", "drawer-open"), ("mt5", "mt50"), ("push-v2", "push-back|push"), (["push"], "one mapping per name")],
)
def test_a_typo_lists_what_is_near(name, message):
    with pytest.raises(DataError, match=message):
        MetaWorld(name)


@cache
def environment(task):
    pytest.importorskip("metaworld")
    return make({"name": task, "env": {**load_task("metaworld").env, "task": task}})


def play(env, seed, steps=200):
    """Scripted episode -> (observations [t+1 39], rewards [t], last info)."""
    act, (observation, _) = env.scripted(), env.reset(seed=seed)
    observations, rewards = [observation], []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(act(observations[-1]))
        observations.append(observation)
        rewards.append(reward)
        assert not terminated and truncated == (len(rewards) == 200)
    return np.stack(observations), np.array(rewards), info


@pytest.mark.parametrize("task", ["reach", "push", "drawer-open"])
def test_a_scripted_policy_sees_the_goal_and_succeeds(task):
    env = environment(task)
    observations, rewards, info = play(env, 0)
    assert info["episode"]["success"] is True
    assert info["episode"]["frames"] == 200
    target = env._simulator._target_pos
    assert np.linalg.norm(target) > 0.1
    np.testing.assert_allclose(observations[:, -3:], np.tile(target, (201, 1)), atol=1e-6)
    assert rewards.min() >= 0 and rewards.max() <= 10


def test_the_seed_alone_decides():
    env = environment("reach")
    np.random.seed(0)
    first = play(env, 1, 20)
    other = play(env, 2, 20)
    np.random.seed(1)
    again, fresh = play(env, 1, 20), play(MetaWorld("reach-v3", seed=9), 1, 20)
    for repeat in (again, fresh):
        np.testing.assert_array_equal(first[0], repeat[0])
        np.testing.assert_array_equal(first[1], repeat[1])
    assert np.abs(first[0][0, -3:] - other[0][0, -3:]).max() > 0.01  # another goal


def test_resets_without_a_seed_place_goal_and_object_anew():
    env = environment("push")
    env.reset(seed=0)
    places = np.stack([env.reset()[0] for _ in range(4)])
    assert len(np.unique(places[:, -3:], axis=0)) == 4  # goals
    assert len(np.unique(places[:, 4:7], axis=0)) == 4  # objects


def test_episodes_may_be_longer_than_the_package_allows():
    env = make("metaworld", episode_steps=502)
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(502)][-2:] == [False, True]


def test_touching_is_the_packages_own():
    env = environment("push")
    simulator, act, (observation, _) = env._simulator, env.scripted(), env.reset(seed=0)
    geom, found = simulator._get_id_main_object(), []
    for _ in range(100):
        observation, *_ = env.step(act(observation))
        found.append(touching(simulator, geom))
        assert found[-1] == type(simulator).touching_object(simulator, geom)
    assert 10 < sum(found) < 90


@pytest.mark.slow
def test_scripted_policies_solve_nearly_all_tasks():
    """One episode each; with the goal clipped to zero, 15 of them fail."""
    solved = []
    for name in TASKS:
        env = MetaWorld(name)
        solved.append(play(env, 0)[2]["episode"]["success"])
        env.close()
    assert np.mean(solved) >= 0.9
