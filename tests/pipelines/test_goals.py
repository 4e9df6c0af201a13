"""Goals of states: shares and distances as asked, never across the end of an episode."""

import numpy as np
import pytest

from pipelines.goals import Goals, state_offsets, state_rows
from pipelines.schema import DataError

LENGTHS = np.array([3, 1, 1000, 7])  # states per episode
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
EPISODE = np.repeat(np.arange(len(LENGTHS)), LENGTHS)  # of every row


def drawn(rows, seed=0, **options):
    return Goals(OFFSETS, **options).draw(np.asarray(rows), np.random.default_rng(seed))


def only(kind, **options):
    return {f"p_{name}": float(name == kind) for name in ("current", "trajectory", "random")} | options


def test_states_are_steps_and_the_final_observations():
    """Episodes of 2 and 3 steps: rows 0 1 [2], 3 4 5 [6], in brackets the final ones."""
    offsets = np.array([0, 2, 5])
    assert state_offsets(offsets).tolist() == [0, 3, 7]
    assert state_rows(offsets, np.arange(5)).tolist() == [0, 1, 3, 4, 5]


def test_shares_are_those_of_the_paper():
    """From the first of 4 equal episodes, a goal in another one is a random one, and 3 of 4 random ones are there."""
    sampler = Goals(np.array([0, 1000, 2000, 3000, 4000]))
    goals = sampler.draw(np.zeros(40_000, int), np.random.default_rng(0))
    assert np.mean(goals >= 1000) / 0.75 == pytest.approx(0.375, abs=0.01)
    assert np.mean((goals > 0) & (goals < 1000)) == pytest.approx(0.625 + 0.375 / 4, abs=0.01)


def test_shares_of_the_current_state():
    rows = np.full(40_000, 500)
    goals = drawn(rows, p_current=0.2, p_trajectory=0.5, p_random=0.3, within="uniform")
    later = OFFSETS[3] - 500
    assert np.mean(goals == 500) == pytest.approx(0.2 + 0.5 / later, abs=0.01)
    assert np.mean(EPISODE[goals] != EPISODE[500]) == pytest.approx(0.3 * (1 - 1000 / OFFSETS[-1]), abs=0.01)


def test_distances_are_geometric():
    sampler = Goals(np.array([0, 100_000]), **only("trajectory"), gamma=0.99)
    distance = sampler.draw(np.zeros(40_000, int), np.random.default_rng(0))
    assert distance.min() == 1 and distance.mean() == pytest.approx(100, rel=0.02)
    assert np.mean(distance == 1) == pytest.approx(0.01, abs=0.002)


def test_uniform_goals_include_the_state_and_the_last_one():
    goals = drawn(np.full(7000, OFFSETS[3]), **only("trajectory", within="uniform"))
    counts = np.bincount(goals - OFFSETS[3], minlength=7)
    assert len(counts) == 7 and np.all(np.abs(counts - 1000) < 150)


def test_goals_ahead_leave_the_state_out():
    goals = drawn(np.full(6000, OFFSETS[3]), **only("trajectory", within="ahead"))
    counts = np.bincount(goals - OFFSETS[3], minlength=7)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] - 1000) < 150)


@pytest.mark.parametrize("within", ["geometric", "uniform", "ahead"])
def test_goals_stay_within_their_episode(within):
    rows = np.tile(np.arange(OFFSETS[-1]), 20)
    goals = drawn(rows, **only("trajectory", within=within, gamma=0.9))
    assert np.array_equal(EPISODE[goals], EPISODE[rows]) and np.all(goals >= rows)
    ends = np.isin(rows, OFFSETS[1:] - 1)
    assert np.array_equal(goals[ends], rows[ends])
    if within == "geometric":
        assert np.all(goals[~ends] > rows[~ends])


def test_random_goals_reach_every_state():
    goals = drawn(np.zeros(30_000, int), **only("random"))
    assert len(np.unique(goals)) == OFFSETS[-1]


def test_draws_depend_on_the_generator_alone():
    rows = np.arange(OFFSETS[-1])
    assert np.array_equal(drawn(rows), drawn(rows)) and not np.array_equal(drawn(rows), drawn(rows, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_current": 0.5}, "add up to 1"),
        ({"p_trajectory": -0.625, "p_random": 1.625}, "at least 0"),
        ({"within": "normal"}, "within='normal'"),
        ({"gamma": 1.0}, "gamma=1.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(DataError, match=message):
        Goals(OFFSETS, **options)
