"""Exact posteriors: by hand, by Monte Carlo, calibrated; and the play and the loss that nothing can beat."""

import pytest
import torch
from scipy import stats

from foundation.envs.bandits import BernoulliBandit, GaussianBandit, LinearBandit
from foundation.envs.dark_room import DarkRoom
from foundation.envs.grid_world import GridWorld
from foundation.envs.worlds import interact, stacked, transitions
from foundation.learners import EmpiricalMean
from foundation.posteriors import (
    HypothesisPosterior,
    PosteriorMean,
    PosteriorSampling,
    best_arm,
    entropy,
    floor,
    posterior_means,
    statistics,
)
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from tests.foundation.in_context import check_curve, gaps, generator

# bandits


def test_statistics_are_those_of_prefixes():
    context = {ACTION: torch.tensor([[1, 0, 1]]), REWARD: torch.tensor([[0.5, 2.0, -1.0]])}
    counts, sums = statistics(context, 2, (0, 1, 3))
    assert counts.tolist() == [[[0, 0], [0, 1], [1, 2]]]
    assert sums.tolist() == [[[0, 0], [0, 0.5], [2, -0.5]]]


@pytest.mark.parametrize("world", [GaussianBandit(arms=3), BernoulliBandit(arms=3), GaussianBandit(3, low=-1, high=2)])
def test_rows_sum_to_1_and_nothing_seen_is_uniform(world):
    g = generator()
    counts, sums = statistics(world.context(world.draw(50, g), 100, g), 3, (0, 3, 100))
    p = best_arm(world, counts, sums)
    torch.testing.assert_close(p.sum(-1), torch.ones(50, 3))
    torch.testing.assert_close(p[:, 0], torch.full((50, 3), 1 / 3))


def test_the_posterior_agrees_with_weighted_samples_of_the_prior():
    world, g = GaussianBandit(arms=3), generator()
    counts, sums = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[0.9, 0.0, 3.0]])
    means = torch.rand(400_000, 3, generator=g, dtype=torch.float64)
    weights = world.log_likelihood(means, counts, sums).sum(-1).softmax(0)
    best = torch.nn.functional.one_hot(means.argmax(-1), 3)
    expected, spread = weights @ best.double(), (weights**2).sum() ** 0.5
    assert (best_arm(world, counts, sums)[0] - expected).abs().max() < 4 * spread
    assert (posterior_means(world, counts, sums)[0] - weights @ means).abs().max() < 4 * spread


def test_posterior_means_are_the_textbooks():
    counts, sums = torch.tensor([[0.0, 4.0, 10.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    beta = posterior_means(BernoulliBandit(arms=3), counts, sums)
    torch.testing.assert_close(beta, (sums + 1) / (counts + 2), atol=1e-4, rtol=0)
    counts, sums = torch.tensor([[0.0, 4.0, 50.0]]), torch.tensor([[0.0, 4.8, 1.0]])
    found = posterior_means(GaussianBandit(arms=3), counts, sums)
    expected = [0.5]  # N(mean of rewards, noise^2 / n) cut at 0 and 1
    for n, total in ((4, 4.8), (50, 1.0)):
        scale = 0.3 / n**0.5
        expected.append(stats.truncnorm.mean(-total / n / scale, (1 - total / n) / scale, total / n, scale))
    torch.testing.assert_close(found, torch.tensor([expected]).float(), atol=1e-4, rtol=0)


def test_the_grid_is_fine_enough_for_the_longest_context():
    world, g = GaussianBandit(), generator()
    counts, sums = statistics(world.context(world.draw(300, g), 500, g), 5, (10, 500))
    assert (best_arm(world, counts, sums) - best_arm(world, counts, sums, points=4096)).abs().max() < 0.005


def test_the_posterior_is_calibrated_and_its_loss_is_the_known_floor():
    world, g = GaussianBandit(), generator(3)
    tasks = world.draw(3000, g)
    lengths = (0, 1, 5, 10, 30, 100, 500)
    context = world.context(tasks, 500, g)
    nats, hit = floor(world, tasks, context, world.queries(tasks, 1, g), lengths)
    p = best_arm(world, *statistics(context, 5, lengths))
    difference = nats - entropy(p)
    error = difference.std(0) / 3000**0.5
    assert (difference.mean(0).abs() <= 4 * error + 1e-5).all()
    assert nats[:, 0].mean() == pytest.approx(1.6094, abs=1e-3)
    for i, expected in enumerate((1.516, 1.342, 1.218, 0.985, 0.718, 0.456), 1):
        check_curve(nats[:, i], expected)
    for i, expected in enumerate((0.29, 0.40, 0.47, 0.58, 0.69, 0.80), 1):
        assert abs(float(hit[:, i].float().mean()) - expected) < 0.005 + 4 * 0.5 * (1 / 3000 + 1 / 4000) ** 0.5


def test_perfect_play_online_and_offline():
    world, g = GaussianBandit(), generator(4)
    tasks = world.draw(600, g)
    regret = gaps(world, tasks, interact(world, PosteriorSampling(world), tasks, 60, g)[ACTION]).cumsum(1)
    check_curve(regret[:, 9], 2.24)
    check_curve(regret[:, 49], 4.80)
    tasks = world.draw(4000, g)
    counts, sums = statistics(world.context(tasks, 100, g), 5, (10, 100))
    for learner, expected in ((PosteriorSampling(world), (0.129, 0.051)), (PosteriorMean(world), (0.121, 0.049))):
        for i, value in enumerate(expected):
            state = {"counts": counts[:, i], "sums": sums[:, i]}
            chosen = learner.act(state, world.start(tasks), g, greedy=True)
            check_curve(gaps(world, tasks, chosen[:, None])[:, 0], value)


def test_offline_nothing_beats_the_posterior_mean():
    world, g = BernoulliBandit(), generator(5)
    tasks = world.draw(4000, g)
    counts, sums = statistics(world.context(tasks, 30, g), 5, (30,))
    state = {"counts": counts[:, 0], "sums": sums[:, 0]}
    mean, other = (
        gaps(world, tasks, learner.act(state, world.start(tasks), g, greedy=True)[:, None])[:, 0]
        for learner in (PosteriorMean(world), EmpiricalMean(5))
    )
    assert (other - mean).mean() > 4 * (other - mean).std() / 4000**0.5


# lists of tasks


def seen(*rows):
    """Transitions [1 n ...] from (cell, action, reward, next cell)."""
    observation, action, reward, following = zip(*rows, strict=True)
    return {
        OBSERVATION: torch.tensor([observation]).float(), ACTION: torch.tensor([action]),
        REWARD: torch.tensor([reward]).float(), NEXT_OBSERVATION: torch.tensor([following]).float(),
    }  # fmt: skip


def probabilities(posterior, context, cell):
    state = posterior.observe(posterior.start(1), context)
    return posterior.probabilities(state, torch.tensor([[cell]]).float())[0, 0]


def test_goals_that_were_not_found_remain():
    posterior = HypothesisPosterior(DarkRoom(size=2))
    missed = seen(((0, 0), 0, 0, (1, 0)))
    third = torch.tensor(1 / 3)
    torch.testing.assert_close(probabilities(posterior, missed, (0, 0)), third * torch.tensor([1.0, 0, 1, 0, 1]))
    found = seen(((0, 0), 0, 0, (1, 0)), ((1, 0), 2, 1, (1, 1)))
    torch.testing.assert_close(probabilities(posterior, found, (0, 1)), torch.tensor([1.0, 0, 0, 0, 0]))
    both = seen(((0, 0), 0, 1, (1, 0)), ((1, 0), 2, 1, (1, 1)))  # no goal explains two rewards: all remain
    torch.testing.assert_close(probabilities(posterior, both, (0, 0)), torch.tensor([0.5, 0, 0.25, 0, 0.25]))


def test_permutations_are_told_apart_by_what_actions_do():
    world = DarkRoom(permuted=True)
    posterior = HypothesisPosterior(world)
    assert posterior.m == 120
    context = seen(((5, 5), 3, 0, (6, 5)))  # action 3 is x+
    torch.testing.assert_close(probabilities(posterior, context, (0, 0)), torch.tensor([0.0, 0, 0, 1, 0]))
    context = seen(((5, 5), 3, 0, (4, 5)))  # action 3 is x-: any other may be x+
    torch.testing.assert_close(probabilities(posterior, context, (0, 0)), torch.tensor([0.25, 0.25, 0.25, 0, 0.25]))
    wall = seen(((0, 5), 3, 0, (0, 5)))  # x- or stay, so not x+
    assert probabilities(posterior, wall, (0, 0))[3] == 0


@pytest.mark.parametrize("world", [DarkRoom(size=5), DarkRoom(permuted=True), GridWorld(size=7, walls="four_rooms")])
def test_posteriors_over_tasks_are_calibrated(world):
    g, lengths = generator(), (0, 5, 20)
    everything = world.hypotheses()
    rows = torch.randint(len(everything["goal"]), (1500,), generator=g)
    tasks = {name: value[rows] for name, value in everything.items()}
    context, query = world.context(tasks, 20, g), world.queries(tasks, 1, g)
    nats, hit = floor(world, tasks, context, query, lengths)
    assert nats.shape == hit.shape == (1500, 3)
    posterior = HypothesisPosterior(world)
    for i, n in enumerate(lengths):
        state = posterior.observe(posterior.start(1500), {name: value[:, :n] for name, value in context.items()})
        p = posterior.probabilities(state, query)[:, 0]
        torch.testing.assert_close(p.sum(-1), torch.ones(1500))
        difference = nats[:, i] - entropy(p)
        assert difference.mean().abs() <= 4 * difference.std() / 1500**0.5 + 1e-5
    assert nats.mean(0).diff().max() < 0  # more context, less loss


@pytest.mark.parametrize("world", [DarkRoom(size=4), GridWorld(size=5, walls="four_rooms")])
def test_play_samples_the_posterior_without_the_votes_of_all_tasks(world):
    g, n = generator(), 20000
    tasks = world.draw(1, g)
    posterior = HypothesisPosterior(world)
    state = posterior.observe(posterior.start(1), world.context(tasks, 6, g))
    for cell in world.queries(tasks, 4, g)[0]:
        p = posterior.probabilities(state, cell[None, None])[0, 0]
        many = {"possible": state["possible"].expand(n, -1)}
        drawn = torch.bincount(posterior.act(many, cell.expand(n, -1), g), minlength=len(p)) / n
        assert ((drawn - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-6).all()


def play(world, learner, tasks, state, g, greedy=False):
    """An episode of 100 steps with the memory as it is -> (returns [b], its transitions)."""
    observation, rows = world.start(tasks), []
    for _ in range(100):
        action = learner.act(state, observation, g, greedy)
        reward, following = world.step(tasks, observation, action)
        rows.append(transitions(observation, action, reward, following))
        observation = following
    played = stacked(rows)
    return played[REWARD].sum(1), played


def test_dark_room_offline_is_decided_by_whether_the_goal_was_seen():
    world, g = DarkRoom(), generator()
    tasks = {name: value.repeat(10, 1) for name, value in world.hypotheses("heldout").items()}  # 200
    learner = HypothesisPosterior(world)
    context = world.context(tasks, 100, g)
    known = (context[REWARD] > 0).any(1)
    for greedy in (False, True):
        returns, _ = play(world, learner, tasks, learner.observe(learner.start(200), context), g, greedy)
        best = 100 - (tasks["goal"].sum(-1) - 1).clamp(min=0)
        assert torch.equal(returns[known], best[known].float())
        assert returns[~known].mean() < 3


def test_dark_room_online_with_the_last_episode_and_with_everything():
    world, g = DarkRoom(), generator(1)
    tasks = {name: value.repeat(10, 1) for name, value in world.hypotheses("heldout").items()}
    learner = HypothesisPosterior(world)
    state = learner.start(200)
    for expected in (0.7, 20, 36):  # frozen during an episode
        returns, played = play(world, learner, tasks, state, g)
        assert abs(float(returns.mean()) - expected) < 4 * float(returns.std()) / 200**0.5 + 0.5
        state = learner.observe(learner.start(200), played)
    returns = interact(world, learner, tasks, 200, g)[REWARD].reshape(200, 2, 100).sum(-1)
    for i, expected in enumerate((14, 38)):
        assert abs(float(returns[:, i].mean()) - expected) < 4 * float(returns[:, i].std()) / 200**0.5 + 0.5


def test_what_has_no_exact_posterior_says_so():
    with pytest.raises(DataError, match="LinearBandit"):
        best_arm(LinearBandit(), torch.zeros(1, 10), torch.zeros(1, 10))
    with pytest.raises(DataError, match="finite list"):
        HypothesisPosterior(GaussianBandit())
