"""Worlds as ordinary environments: one task per seed, episodes within an episode, and the commands on them."""

import numpy as np
import pytest
import torch

from foundation import collect, evaluate
from foundation.envs.bandits import BernoulliBandit
from foundation.envs.dark_room import DarkRoom
from foundation.envs.registry import make
from foundation.envs.world_env import WorldEnv
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.foundation.running import run

TASKS = ["bandit", "linear_bandit", "dark_room", "grid_world"]


def episode(env, seed, act):
    observation, _ = env.reset(seed=seed)
    rows, info = [observation], {}
    while "episode" not in info:
        observation, reward, terminated, _, info = env.step(act(observation))
        assert not terminated
        rows.append(np.append(observation, reward))
    return rows, info["episode"]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_a_task_and_the_player_knows_it(name):
    env = make(name, seed=0)
    rng = np.random.default_rng(0)
    player, returns, tasks = env.scripted(), [], []
    assert env.spaces.state_dim == env.world.state_dim and env.spaces.n_actions == env.world.n_actions
    for seed in (1, 2, 1):
        rows, played = episode(env, seed, player)
        assert played["frames"] == env.world.horizon == len(rows) - 1
        returns.append(played["return"])
        tasks.append(torch.cat([value.flatten().float() for value in env.tasks.values()]))
    assert returns[0] == returns[2] and torch.equal(tasks[0], tasks[2]) and not torch.equal(tasks[0], tasks[1])
    assert returns[0] > episode(env, 1, lambda _: int(rng.integers(env.spaces.n_actions)))[1]["return"]


def test_episodes_of_one_task_follow_one_another():
    env = WorldEnv(DarkRoom(size=3, horizon=5), episodes=3)
    shown = []
    rows, played = episode(env, 4, lambda observation: shown.append(observation) or 0)
    assert played["frames"] == 15
    assert [(row[:2] == 0).all() for row in shown] == [i % 5 == 0 for i in range(15)]
    assert rows[-1][0] == 2  # the last observation is the episode's own, not a start
    env.reset(seed=4)
    led = [env.step(0)[4]["next_observation"].tolist() for _ in range(5)]
    assert [x for x, _ in led] == [1, 2, 2, 2, 2]  # and so is what the last action of an inner one led to


def test_heldout_tasks_are_heldout():
    env = make("dark_room", split="heldout")
    goals = set(map(tuple, env.world.hypotheses("heldout")["goal"].tolist()))
    for seed in range(20):
        env.reset(seed=seed)
        assert tuple(env.tasks["goal"][0].tolist()) in goals


def test_rewards_are_those_of_the_world():
    env = WorldEnv(BernoulliBandit(horizon=400))
    rows, _ = episode(env, 0, lambda _: 2)
    rewards = np.array([row[-1] for row in rows[1:]])
    assert set(rewards) <= {0.0, 1.0}
    assert abs(rewards.mean() - float(env.tasks["means"][0, 2])) < 4 * 0.5 / 20


def test_evaluate_and_collect_run_on_worlds(tmp_path):
    small = ["task.env.world.size=4", "task.env.world.horizon=20", "task.protocol.context=20"]
    small += ["task.protocol.episodes=2", "episodes=6"]
    numbers = run(evaluate, "evaluate", "task=dark_room", "policy=random", *small, f"run.dir={tmp_path / 'e'}")
    returns = {name: value for name, value in numbers.items() if name.endswith("return@1")}
    best = [value for name, value in returns.items() if "/optimal/" in name]
    assert min(best) > 12 > max(value for name, value in returns.items() if "/uniform/" in name)
    given = ["task=grid_world", "states.episodes=3", "workers=0", f"out={tmp_path / 'plays'}"]
    assert run(collect, "collect", *given, f"run.dir={tmp_path / 'c'}")["episodes"] == 3
    data = Trajectories.load(tmp_path / "plays")
    assert data.spaces.n_actions == 3 and data.lengths.tolist() == [50] * 3


def test_bad_settings_say_what_was_expected():
    with pytest.raises(DataError, match="_target_"):
        WorldEnv({"size": 3})
    with pytest.raises(DataError, match="train or heldout"):
        WorldEnv(DarkRoom(), split="test")
    with pytest.raises(DataError, match="episodes=0"):
        WorldEnv(DarkRoom(), episodes=0)
    continuous = DarkRoom()
    continuous.n_actions = None
    with pytest.raises(DataError, match="continuous"):
        WorldEnv(continuous)
