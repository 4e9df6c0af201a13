"""Bandits: what tasks, rewards and contexts are made of, and what planning brings where arms recover."""

from itertools import product

import numpy as np
import pytest
import torch

from foundation.envs.bandits import BernoulliBandit, GaussianBandit, LinearBandit, pull_probabilities
from foundation.envs.recovering_bandit import RecoveringBandit, best_periodic, schedules
from foundation.envs.worlds import interact, per_row
from foundation.learners import Optimal, Periodic, ThompsonSampling
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from tests.foundation.in_context import generator

WORLDS = [GaussianBandit(), BernoulliBandit(), LinearBandit(horizon=20), RecoveringBandit()]
EVERY = pytest.mark.parametrize("world", WORLDS, ids=lambda w: type(w).__name__)


def near(values, expected, sems=4):
    """Whether the mean of independent values is `expected` within so many standard errors."""
    values = values.double().flatten()
    return abs(values.mean() - expected) < sems * values.std() / len(values) ** 0.5


@EVERY
def test_shapes_and_determinism(world):
    def made(seed):
        g = generator(seed)
        tasks = world.draw(3, g)
        return tasks, world.context(tasks, 7, g), world.queries(tasks, 2, g)

    (tasks, context, queries), again, other = made(1), made(1), made(2)
    s = world.state_dim
    assert {name: tuple(x.shape) for name, x in context.items()} == {
        OBSERVATION: (3, 7, s), ACTION: (3, 7), REWARD: (3, 7), NEXT_OBSERVATION: (3, 7, s),
    }  # fmt: skip
    assert context[ACTION].dtype == torch.int64 and context[REWARD].dtype == torch.float32
    assert queries.shape == (3, 2, s) and world.optimal(tasks, queries).shape == (3, 2)
    assert world.start(tasks).shape == (3, s) and world.states.shape[1] == s
    for name, x in context.items():
        assert torch.equal(x, again[1][name])
    assert not torch.equal(context[REWARD], other[1][REWARD])


def test_gaussian_rewards_have_the_mean_and_noise_of_their_arm():
    world, g = GaussianBandit(noise=0.5, low=-1, high=3), generator()
    tasks = world.draw(2000, g)
    assert near(tasks["means"], 1.0) and tasks["means"].min() >= -1 and tasks["means"].max() <= 3
    context = world.context(tasks, 50, g)
    errors = context[REWARD] - world.mean_reward(tasks, context[ACTION])
    assert near(errors, 0.0) and errors.std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(world.mean_reward(tasks, context[ACTION])[5, 7], tasks["means"][5, context[ACTION][5, 7]])
    assert torch.equal(world.optimal(tasks, world.start(tasks)[:, None])[:, 0], tasks["means"].argmax(-1))


def test_bernoulli_rewards_are_0_or_1():
    world, g = BernoulliBandit(), generator()
    tasks = world.draw(2000, g)
    context = world.context(tasks, 50, g)
    assert set(context[REWARD].unique().tolist()) == {0.0, 1.0}
    assert near(context[REWARD] - world.mean_reward(tasks, context[ACTION]), 0.0)


def test_the_context_policy_mixes_dirichlet_and_one_arm():
    p = pull_probabilities(20_000, 5, generator())
    torch.testing.assert_close(p.sum(-1), torch.ones(len(p)))
    assert all(near(p[:, arm], 0.2) for arm in range(5))
    # E sum p^2 = E(1-c)^2 * 2 / (k + 1) + 2 E c(1-c) / k + E c^2, with E c^2 = .35, E c(1-c) = .15 over 0, .1, ... 1
    assert near((p**2).sum(-1), 0.35 * 2 / 6 + 2 * 0.15 / 5 + 0.35)
    assert (p == 1).any(-1).float().mean() == pytest.approx(1 / 11, abs=0.01)
    context = GaussianBandit().context({"means": torch.zeros(4000, 5)}, 40, generator(1))
    shares = torch.nn.functional.one_hot(context[ACTION], 5).float().mean(1)
    assert all(near(shares[:, arm], 0.2) for arm in range(5))
    n = 40  # of the pulls' shares: Var adds p(1-p)/n
    expected = (0.35 * 2 / 6 + 2 * 0.15 / 5 + 0.35) * (1 - 1 / n) + 1 / n
    assert near((shares**2).sum(-1), expected)


def test_linear_means_are_features_times_theta():
    world, g = LinearBandit(horizon=30), generator()
    expected = np.random.RandomState(1234).normal(size=(10, 2)) / np.sqrt(2)
    np.testing.assert_allclose(world.features.numpy(), expected, rtol=1e-6)
    tasks = world.draw(3000, g)
    torch.testing.assert_close(tasks["means"][:, 3], tasks["theta"] @ world.features[3])
    assert near(tasks["theta"] ** 2, 0.5)
    other = LinearBandit(features_seed=1)
    assert not torch.equal(other.features, world.features)


def test_linear_contexts_are_thompson_sampling_in_order():
    world, g = LinearBandit(horizon=60), generator()
    tasks = world.draw(2000, g)
    assert world.ordered and not GaussianBandit().ordered
    context = world.context(tasks, 60, g)
    gap = tasks["means"].amax(-1, keepdim=True) - world.mean_reward(tasks, context[ACTION])
    early, late = gap[:, :5].mean(), gap[:, -5:].mean()
    assert late < 0.35 * early  # it learns
    first = torch.nn.functional.one_hot(context[ACTION][:, 0], 10).float()
    assert all(near(first[:, arm], 0.1) for arm in range(10))  # from a prior that is the same for all arms
    learner = ThompsonSampling(10, world.noise, mean=0.0, variance=1.0)
    again = interact(world, learner, tasks, 60, g)
    again = (tasks["means"].amax(-1, keepdim=True) - world.mean_reward(tasks, again[ACTION]))[:, -5:].mean()
    assert late == pytest.approx(float(again), rel=0.15)


# recovering rewards


def test_arms_recover_and_empty():
    world = RecoveringBandit(arms=2, cap=3, noise=1e-6)
    tasks = world.tasks(torch.tensor([[[0.5, 0.8, 0.9], [0.3, 0.4, 0.4]]]))
    seen, rewards, observation = [], [], world.start(tasks)
    for action in (0, 0, 1, 1, 0):
        seen.append(observation[0].tolist())
        reward, observation = world.step(tasks, observation, torch.tensor([action]), generator())
        rewards.append(float(reward))
    assert seen == [[3, 3], [1, 3], [1, 3], [2, 1], [3, 1]]
    assert rewards == pytest.approx([0.9, 0.5, 0.4, 0.3, 0.9], abs=1e-4)
    with pytest.raises(DataError, match="observation"):
        world.mean_reward(tasks, torch.tensor([0]))


def test_recovery_is_concave_and_reaches_its_top():
    tasks = RecoveringBandit(low=0.2).draw(500, generator())
    steps = torch.diff(tasks["recovery"], prepend=torch.zeros(500, 3, 1))
    assert (steps >= 0).all() and (torch.diff(steps) <= 1e-6).all()
    assert near(tasks["recovery"][..., -1], 0.6)


def test_contexts_of_recovering_arms_are_trajectories():
    world, g = RecoveringBandit(), generator()
    tasks = world.draw(20, g)
    context, observation = world.context(tasks, 40, g), world.start(tasks)
    for i in range(40):
        assert torch.equal(observation, context[OBSERVATION][:, i])
        _, observation = world.step(tasks, observation, context[ACTION][:, i], g)
        assert torch.equal(observation, context[NEXT_OBSERVATION][:, i])
    error = context[REWARD] - world.mean_reward(per_row(tasks), context[ACTION], context[OBSERVATION])
    assert near(error, 0.0) and error.std() == pytest.approx(0.3, rel=0.1)


def test_the_best_policy_is_the_best_cycle_and_periodic_ones_come_close():
    world, g = RecoveringBandit(arms=3, cap=3), generator()
    tasks = world.draw(100, g)
    best = torch.stack([cycle_gain(world, tasks, c) for n in range(1, 7) for c in product(range(3), repeat=n)]).amax(0)
    torch.testing.assert_close(tasks["gain"], best, atol=1e-4, rtol=0)
    sequences, lengths, gain = best_periodic(world, tasks)
    assert (gain <= tasks["gain"] + 1e-4).all() and gain.mean() > 0.95 * tasks["gain"].mean()
    for learner, expected in ((Optimal(world, tasks), tasks["gain"]), (Periodic(sequences, lengths), gain)):
        played = interact(world, learner, tasks, 36, g)
        means = world.mean_reward(per_row(tasks), played[ACTION], played[OBSERVATION])[:, 12:]
        torch.testing.assert_close(means.mean(), expected.mean(), atol=0.01, rtol=0)  # 24 rounds: a multiple of 1-4, 6


def cycle_gain(world, tasks, cycle):
    """Mean reward of repeating a sequence of arms for ever, [b]."""
    actions = torch.tensor(cycle * 3).expand(len(tasks["gain"]), -1)
    last = slice(-len(cycle), None)  # the turns before forget the start
    if len(cycle) < world.cap:
        actions = torch.tensor(cycle * (3 * world.cap)).expand(len(tasks["gain"]), -1)
    return world.mean_reward(per_row(tasks), actions, world.idle(actions))[:, last].mean(1)


def test_schedules_are_periodic_and_fill_every_round():
    assert [periods for periods, _ in schedules(3)] == [(1,), (2, 2), (3, 3, 3), (2, 4, 4)]
    for periods, sequence in schedules(4):
        assert sum(1 / period for period in periods) == pytest.approx(1)
        for arm, period in enumerate(periods):
            rounds = np.flatnonzero(np.array(sequence * 2) == arm)
            assert set(np.diff(rounds)) == {period}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianBandit(arms=1), "arms=1"),
        (lambda: GaussianBandit(noise=0), "noise"),
        (lambda: GaussianBandit(low=1, high=1), "low < high"),
        (lambda: BernoulliBandit(high=1.2), "probabilities"),
        (lambda: LinearBandit(dimension=0), "dimension=0"),
        (lambda: LinearBandit(noise=-1), "noise"),
        (lambda: RecoveringBandit(arms=5, cap=10), "100000 states"),
        (lambda: RecoveringBandit(low=-1), "low"),
        (lambda: Periodic(torch.zeros(2, 3), torch.tensor([1, 0])), "length above 0"),
    ],
)
def test_bad_settings_say_what_was_expected(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_contexts_of_thompson_sampling_come_to_pull_the_best_arm():
    played, drawn = (GaussianBandit(contexts=kind) for kind in ("thompson", "pulls"))
    tasks = played.draw(200, torch.Generator().manual_seed(0))
    best = tasks["means"].argmax(-1)[:, None]
    share = lambda world: (  # noqa: E731
        world.context(tasks, 150, torch.Generator().manual_seed(1))[ACTION][:, 100:] == best
    ).float().mean()  # fmt: skip
    assert played.ordered and not drawn.ordered
    assert share(played) > 0.6 > 0.3 > share(drawn)
    with pytest.raises(DataError, match="pulls or thompson"):
        GaussianBandit(contexts="iid")
