"""Rewards of states: where they are greatest, by hand, the same in every maze; what they refuse."""

import numpy as np
import pytest

from foundation.envs.state_rewards import REWARDS, STRIDE, extent, reward_of
from pipelines.schema import DataError

UNIT = (np.zeros(2), np.ones(2))
BEST = {  # places (u, v) where a reward is 1
    "south_west": [(0, 0)], "south_east": [(1, 0)], "north_west": [(0, 1)], "north_east": [(1, 1)],
    "middle": [(0.5, 0.5)], "opposite_corners": [(0, 1), (1, 0)], "border": [(0, 0.3), (1, 0.9), (0.4, 0), (0.6, 1)],
    "diagonal": [(0.2, 0.2), (0.7, 0.7)], "north": [(0.1, 1), (0.8, 1)],
}  # fmt: skip


def at(name, *places, bounds=UNIT):
    places = np.array(places, np.float32)
    return reward_of(name, bounds)(places, places)


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_lies_between_0_and_1_and_is_rare(name):
    rng = np.random.default_rng(0)
    now = rng.uniform(-0.02, 1.02, (5000, 2))  # walls give way a little
    found = reward_of(name, UNIT)(now, now + rng.uniform(-STRIDE, STRIDE, now.shape))
    assert found.dtype == np.float32 and found.shape == (5000,)
    assert found.min() >= 0 and 0.9 < found.max() <= 1 and found.mean() < 0.5


@pytest.mark.parametrize("name", BEST)
def test_a_reward_is_greatest_where_its_name_says(name):
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 2), -1).reshape(-1, 2)
    np.testing.assert_allclose(at(name, *BEST[name]), 1)
    best = grid[at(name, *grid) > 0.999]
    away = np.abs(best[:, None] - np.array(BEST[name])).max(-1).min(1)
    assert len(best) and (name in ("border", "diagonal", "north") or away.max() < 0.051)


def test_rewards_by_hand():
    np.testing.assert_allclose(at("south_west", (0, 0.2), (0.2, 0.2)), [np.exp(-0.5), np.exp(-1)], rtol=1e-6)
    np.testing.assert_allclose(at("border", (0.5, 0.0625), (0.5, 0.5)), [0.5, 0])
    np.testing.assert_allclose(at("north", (0.3, 0.75), (0.3, 0.2)), [0.5, 0])
    np.testing.assert_allclose(at("diagonal", (0.4, 0.5)), np.exp(-0.5), rtol=1e-5)
    now = np.zeros((5, 2))
    moves = np.array([[1, 0], [0.75, 1], [0.5, 0], [-1, 0], [2, 0]]) * STRIDE
    np.testing.assert_allclose(reward_of("eastward", UNIT)(now, now + moves), [1, 0.5, 0, 0, 1], atol=1e-6)


def test_a_reward_is_of_what_the_step_led_to():
    now, following = np.zeros((1, 2)), np.ones((1, 2))
    assert reward_of("north_east", UNIT)(now, following) == 1 and reward_of("south_west", UNIT)(now, following) < 1e-6


def test_a_larger_world_has_the_same_rewards():
    places, bounds = np.random.default_rng(0).uniform(size=(50, 2)), (np.array([-2.0, 10]), np.array([30.0, 20]))
    larger = bounds[0] + places * (bounds[1] - bounds[0])
    for name in BEST:
        np.testing.assert_allclose(at(name, *places), at(name, *larger, bounds=bounds), atol=1e-5)
    table = np.concatenate([places, np.zeros((1, 2)), np.ones((1, 2))])
    np.testing.assert_allclose(reward_of("north")(table, table), at("north", *table), atol=1e-5)  # of all at once
    np.testing.assert_array_equal(extent(places, places + 1), (places.min(0), places.max(0) + 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: reward_of("north_est"), "did you mean .*north_east"), (lambda: reward_of("xyz"), "known: .*south_west"),
     (lambda: at("north", (1, 2, 3)), r"expected \[n 2\]"), (lambda: at("north", (1, 1), bounds=None), "world_bounds"),
     (lambda: reward_of("north")(np.zeros((3, 2)), np.zeros((2, 2))), r"\(3, 2\) and \(2, 2\)")],
)  # fmt: skip
def test_what_is_no_reward_of_states(call, message):
    with pytest.raises(DataError, match=message):
        call()
