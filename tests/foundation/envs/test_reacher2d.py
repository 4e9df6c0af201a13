"""Reacher2d: the layout of its observation, its reward, its seeds, and an expert that solves it."""

import numpy as np
import pytest

pytest.importorskip("mujoco")

from foundation.envs.reacher2d import BEND, ELBOW, FORE, TIP, UPPER, Reacher2d, solutions
from foundation.envs.registry import make


def returns(env, act, episodes):
    found = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        info = {}
        while "episode" not in info:
            observation, _, terminated, _, info = env.step(act(observation))
            assert not terminated
        found.append(info["episode"]["return"])
        assert info["episode"]["frames"] == 100
    return np.array(found)


def reach(shoulder, elbow):
    """The tip by the two links' directions."""
    first = shoulder + BEND
    second = first + elbow - BEND
    return UPPER * np.array([np.cos(first), np.sin(first)]) + TIP * np.array([np.cos(second), np.sin(second)])


def test_observation_and_reward_follow_their_description():
    env = make("reacher2d", seed=0)
    rng = np.random.default_rng(0)
    assert env.fps == pytest.approx(1 / 0.15)
    for seed in range(20):
        before, _ = env.reset(seed=seed)
        target = before[8:10]
        assert (before[4:6] == 0).all() and 0.5 <= np.linalg.norm(target) <= 1
        for _ in range(3):
            now, reward, *_ = env.step(rng.uniform(-1, 1, 2))
            shoulder, elbow = angles = np.arctan2(now[:2], now[2:4])
            np.testing.assert_allclose(now[6:8], reach(shoulder, elbow), atol=1e-6)
            np.testing.assert_allclose(now[8:], [*target, *(now[6:8] - target)], atol=1e-6)
            turned = (angles - np.arctan2(before[:2], before[2:4]) + np.pi) % (2 * np.pi) - np.pi
            assert np.abs(turned - now[4:6]).max() < 0.1  # speed * dt is about the last turn
            assert reward == float(np.abs(now[10:]).sum() < 0.1)
            before = now


def test_the_same_seed_is_the_same_episode():
    env, runs = Reacher2d(), []
    for seed in (5, 6, 5):
        first, _ = env.reset(seed=seed)
        runs.append(np.stack([first, *(env.step([0.5, -1])[0] for _ in range(20))]))
    np.testing.assert_array_equal(runs[0], runs[2])
    assert np.abs(runs[0][0] - runs[1][0]).max() > 0.1


def test_solutions_of_the_arm_meet_the_target():
    rng = np.random.default_rng(1)
    for _ in range(200):
        radius, angle = rng.uniform(0.5, 1), rng.uniform(-np.pi, np.pi)
        target = radius * np.array([np.cos(angle), np.sin(angle)])
        found = solutions(target)
        assert found
        for shoulder, elbow in found:
            assert ELBOW[0] <= elbow <= ELBOW[1]
            np.testing.assert_allclose(reach(shoulder, elbow), target, atol=1e-6)
    assert FORE < TIP


def test_the_expert_solves_it_and_chance_does_not():
    env, rng = make("reacher2d", seed=0), np.random.default_rng(0)
    assert returns(env, env.scripted(), 50).mean() > 60
    assert returns(env, lambda _: rng.uniform(-1, 1, 2), 50).mean() < 5
