"""Learners with a closed form: posteriors and bounds by hand, and the curves that they are known for."""

import pytest
import torch

from foundation.envs.bandits import GaussianBandit, LinearBandit
from foundation.envs.worlds import interact
from foundation.learners import (
    LCB,
    UCB,
    EmpiricalMean,
    GaussianMean,
    LinUCB,
    Optimal,
    Periodic,
    ThompsonSampling,
    Uniform,
)
from foundation.posteriors import statistics
from pipelines.schema import ACTION, REWARD
from tests.foundation.in_context import check_curve, gaps, generator


def arms(counts, sums):
    return {"counts": torch.tensor([counts], dtype=torch.float32), "sums": torch.tensor([sums], dtype=torch.float32)}


def choice(learner, state, greedy=False, seed=0):
    return int(learner.act(state, torch.ones(len(next(iter(state.values()))), 1), generator(seed), greedy)[0])


def pulls(*pairs):
    """Transitions of one task from (arm, reward) pairs."""
    action, reward = zip(*pairs, strict=True)
    return {ACTION: torch.tensor([action]), REWARD: torch.tensor([reward])}


# by hand


@pytest.mark.parametrize("learner", [EmpiricalMean(3), UCB(3), ThompsonSampling(3)], ids=lambda x: type(x).__name__)
def test_memory_counts_and_adds_up_in_one_go_or_in_parts(learner):
    everything = pulls((0, 1.0), (2, 0.5), (0, 0.25), (2, -1.0))
    state = learner.observe(learner.start(1), everything)
    assert state["counts"].tolist() == [[2, 0, 2]] and state["sums"].tolist() == [[1.25, 0, -0.5]]
    parts = learner.start(1)
    for rows in (slice(0, 1), slice(1, 4)):
        parts = learner.observe(parts, {name: value[:, rows] for name, value in everything.items()})
    assert all(torch.equal(state[name], parts[name]) for name in state)


def test_empirical_mean_tries_every_arm_online_and_counts_unseen_as_0_offline():
    state = arms([2, 1, 0], [1.0, 0.6, 0.0])  # means 0.5, 0.6
    assert choice(EmpiricalMean(3), state) == 2
    assert choice(EmpiricalMean(3), state, greedy=True) == 1
    assert choice(EmpiricalMean(3), arms([2, 1, 0], [-1.0, -0.6, 0.0]), greedy=True) == 2
    assert choice(EmpiricalMean(3), arms([2, 1, 1], [1.0, 0.6, 0.1])) == 1


def test_ucb_adds_and_lcb_takes_off_the_width():
    state = arms([4, 1, 1], [2.0, 0.2, 0.3])  # means 0.5, 0.2, 0.3; widths 1/2, 1, 1
    assert choice(UCB(3), state) == 2  # 1.0, 1.2, 1.3
    assert choice(UCB(3, c=0.3), state) == 0  # 0.65, 0.5, 0.6
    assert choice(UCB(3), arms([4, 0, 1], [2.0, 0.0, 0.3])) == 1  # unpulled first
    assert choice(LCB(3), state, greedy=True) == 0  # 0.1, -0.6, -0.5
    assert choice(LCB(3), arms([1, 0, 1], [0.7, 0.0, 0.9]), greedy=True) == 2  # -0.1, -0.8, 0.1


def test_the_gaussian_posterior_by_hand():
    mean, std = ThompsonSampling(3).posterior(arms([1, 0, 4], [1.0, 0.0, 0.4]))
    # precision 12 + n / 0.09, mean (6 + sum / 0.09) / precision
    torch.testing.assert_close(mean, torch.tensor([[0.740385, 0.5, 0.185039]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.tensor([[0.208013, 0.288675, 0.133103]]), atol=1e-5, rtol=0)
    assert choice(GaussianMean(3), arms([1, 0, 4], [1.0, 0.0, 0.4])) == 0


def test_thompson_sampling_samples_its_posterior_and_its_mode_is_the_commonest():
    b, learner = 20_000, ThompsonSampling(2)
    state = {"counts": torch.tensor([[4.0, 4.0]]).repeat(b, 1), "sums": torch.tensor([[2.0, 1.6]]).repeat(b, 1)}
    share = learner.act(state, torch.ones(b, 1), generator()).float().mean()
    mean, std = learner.posterior(state)
    expected = torch.special.ndtr((mean[0, 1] - mean[0, 0]) / (std[0] ** 2).sum().sqrt())
    assert abs(share - expected) < 4 * (expected * (1 - expected) / b) ** 0.5
    greedy = learner.act(state, torch.ones(b, 1), generator(), greedy=True).float().mean()
    assert greedy < share / 2  # of 100 samples the commonest, not any one


def test_lin_ucb_by_hand():
    features = torch.eye(2)
    learner = LinUCB(features)
    state = learner.observe(learner.start(1), pulls((0, 1.0)))  # A = diag(2, 1), theta = (1/2, 0)
    assert choice(learner, state) == 0  # 0.5 + 0.707, 0 + 1
    assert choice(LinUCB(features, c=2.0), state) == 1  # 0.5 + 1.414, 0 + 2
    assert choice(LinUCB(features, c=0.0), learner.observe(learner.start(1), pulls((0, -1.0)))) == 1
    wide = {"gram": torch.eye(2)[None], "sums": torch.tensor([[0.2, 0.4]]), "rounds": torch.tensor([2])}
    assert choice(LinUCB(features, c=0.0, ridge=3.0), wide) == 1  # theta = (.05, .1)
    first = learner.act(learner.start(5000), torch.ones(5000, 1), generator())
    assert abs(first.float().mean() - 0.5) < 4 * 0.5 / 5000**0.5


def test_lin_ucb_without_a_bonus_is_ridge_regression():
    world, g = LinearBandit(horizon=30), generator()
    tasks = world.draw(20, g)
    context = world.context(tasks, 30, g)
    learner = LinUCB(world.features, c=0.0)
    chosen = learner.act(learner.observe(learner.start(20), context), torch.ones(20, 1), g, greedy=True)
    for b in range(20):
        x, y = world.features[context[ACTION][b]], context[REWARD][b]
        rows = torch.cat([x, torch.eye(2)])  # a ridge of 1 is two more rows with reward 0
        theta = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(2)])[:, None]).solution[:, 0]
        assert int(chosen[b]) == int((world.features @ theta).argmax())


def test_periodic_uniform_and_optimal():
    world, g = GaussianBandit(), generator()
    tasks = world.draw(2, g)
    periodic = Periodic(torch.tensor([[0, 1, 0, 2], [3, 4, 0, 0]]), torch.tensor([4, 2]))
    assert interact(world, periodic, tasks, 6, g)[ACTION].tolist() == [[0, 1, 0, 2, 0, 1], [3, 4, 3, 4, 3, 4]]
    assert (gaps(world, tasks, interact(world, Optimal(world, tasks), tasks, 3, g)[ACTION]) == 0).all()
    shares = torch.bincount(interact(world, Uniform(5), tasks, 2000, g)[ACTION].flatten()) / 4000
    assert (shares - 0.2).abs().max() < 4 * 0.4 / 4000**0.5


def test_learners_are_functions_of_the_generator():
    world = GaussianBandit()
    tasks = world.draw(5, generator())
    for learner in (ThompsonSampling(5), EmpiricalMean(5), UCB(5), Uniform(5)):
        first, again = (interact(world, learner, tasks, 20, generator(1)) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


# the curves


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (EmpiricalMean(5), (2.07, 3.61, 5.20, 8.25)),
        (UCB(5), (2.36, 5.31, 6.83, 8.37)),
        (ThompsonSampling(5), (2.23, 4.73, 6.00, 7.38)),
        (Uniform(5), (3.34, 16.7, 33.4, 66.8)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_online_regret_in_the_gaussian_bandit(learner, expected):
    world, g = GaussianBandit(), generator(7)
    tasks = world.draw(2000, g)
    regret = gaps(world, tasks, interact(world, learner, tasks, 200, g)[ACTION]).cumsum(1)
    for n, value in zip((10, 50, 100, 200), expected, strict=True):
        check_curve(regret[:, n - 1], value)


LENGTHS = (1, 10, 50, 100, 500)


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (EmpiricalMean(5), (0.2989, 0.1587, 0.0822, 0.0665, 0.0409)),
        (LCB(5), (0.2989, 0.1791, 0.1067, 0.0843, 0.0520)),
        (ThompsonSampling(5), (0.2597, 0.1300, 0.0662, 0.0524, 0.0304)),
        (GaussianMean(5), (0.2465, 0.1243, 0.0637, 0.0495, 0.0285)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_offline_suboptimality_in_the_gaussian_bandit(learner, expected):
    world, g = GaussianBandit(), generator(8)
    tasks = world.draw(4000, g)
    counts, sums = statistics(world.context(tasks, 500, g), 5, LENGTHS)
    for i, value in enumerate(expected):
        state = {"counts": counts[:, i], "sums": sums[:, i]}
        chosen = learner.act(state, world.start(tasks), g, greedy=True)
        check_curve(gaps(world, tasks, chosen[:, None])[:, 0], value)


def test_features_pay_in_the_linear_bandit():
    """LinUCB, which knows the features, beats Thompson sampling over single arms, which made the contexts."""
    world, g = LinearBandit(horizon=100), generator()
    tasks = world.draw(500, g)
    known = gaps(world, tasks, interact(world, LinUCB(world.features), tasks, 100, g)[ACTION]).sum(1)
    single = ThompsonSampling(10, world.noise, mean=0.0, variance=1.0)
    alone = gaps(world, tasks, interact(world, single, tasks, 100, g)[ACTION]).sum(1)
    difference = alone - known
    assert difference.mean() > 4 * difference.std() / 500**0.5
