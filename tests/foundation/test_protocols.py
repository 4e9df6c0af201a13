"""What learners are put through in a world, against numbers by hand."""

import pytest
import torch

from foundation import protocols
from foundation.envs.bandits import BernoulliBandit, GaussianBandit
from foundation.envs.dark_room import DarkRoom
from foundation.learners import EmpiricalMean, Learner, Optimal, Periodic, Uniform
from models.heads import Categorical
from pipelines.schema import ACTION, OBSERVATION, REWARD
from tests.foundation.in_context import generator


def test_suboptimality_online_by_hand():
    world, tasks = BernoulliBandit(arms=3), {"means": torch.tensor([[0.2, 0.5, 0.9], [0.3, 0.1, 0.2]])}
    turns = Periodic(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([3, 3]))
    lost = protocols.bandit_online(world, turns, tasks, 4, generator())
    torch.testing.assert_close(lost, torch.tensor([[0.7, 0.4, 0, 0.7], [0, 0.2, 0.1, 0]]))
    assert (protocols.bandit_online(world, Optimal(world, tasks), tasks, 4, generator()) == 0).all()
    tasks = {"means": torch.tensor([[0.0, 1.0]]).repeat(2000, 1)}
    lost = protocols.bandit_online(world, Uniform(2), tasks, 3, generator())
    assert set(lost.unique().tolist()) == {0.0, 1.0} and abs(float(lost.mean()) - 0.5) < 0.03


def test_suboptimality_offline_by_hand():
    world, tasks = BernoulliBandit(arms=3), {"means": torch.tensor([[0.2, 0.5, 0.9]])}
    context = {ACTION: torch.tensor([[0, 1, 2, 2]]), REWARD: torch.tensor([[0.0, 1.0, 0.0, 0.0]])}
    context |= dict.fromkeys((OBSERVATION, "next_observation"), torch.ones(1, 4, 1))
    lost = protocols.bandit_offline(world, EmpiricalMean(3), tasks, context, [0, 1, 2, 4], generator())
    torch.testing.assert_close(lost, torch.tensor([[0.7, 0.7, 0.4, 0.4]]))  # arm 0, 0, 1, 1
    assert (protocols.bandit_offline(world, Optimal(world, tasks), tasks, context, [0, 4], generator()) == 0).all()


class Counting(Learner):
    """Stays where it is; keeps how many transitions it knew at each step."""

    def __init__(self):
        self.known = []

    def act(self, state, observation, generator, greedy=False):
        self.known.append(int(state["rounds"][0]))
        return torch.full((len(observation),), 4)


@pytest.mark.parametrize(
    ("context", "update", "known"),
    [
        ("all", "step", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("all", "episode", [0, 0, 0, 3, 3, 3, 6, 6, 6]),
        ("last", "episode", [0, 0, 0, 3, 3, 3, 3, 3, 3]),
        ("last", "step", [0, 1, 2, 3, 4, 5, 3, 4, 5]),
    ],
)
def test_what_is_known_in_an_episode(context, update, known):
    world, learner = DarkRoom(size=4, horizon=3), Counting()
    protocols.online(world, learner, world.draw(2, generator()), 3, generator(), context, update)
    assert learner.known == known


def test_returns_of_the_best_way():
    world = DarkRoom(size=10, horizon=100)
    tasks = world.hypotheses()
    distance = tasks["goal"].sum(1)
    best = 100.0 - (distance - 1).clamp(min=0)
    context = world.context(tasks, 5, generator())
    for greedy in (False, True):
        assert torch.equal(protocols.offline(world, Optimal(world, tasks), tasks, context, generator(), greedy), best)
    twice = protocols.online(world, Optimal(world, tasks), tasks, 2, generator())
    assert torch.equal(twice, best[:, None].expand(-1, 2))
    lazy = protocols.online(world, Counting(), tasks, 1, generator())
    assert torch.equal(lazy[:, 0], 100.0 * (distance == 0))  # only one goal is where an episode starts


class Says(Learner):
    """Always the same distribution."""

    def __init__(self, *p):
        self.p = torch.tensor(p)

    def distribution(self, state, observation):
        return Categorical(self.p.log().expand(len(observation), -1))


def test_the_distance_to_the_posterior_of_those_who_never_learn():
    world = GaussianBandit()
    tasks = world.draw(50, generator(0))
    context = world.context(tasks, 30, generator(1))
    told = (world, tasks, context, [0, 30], generator(2))
    even = protocols.to_posterior(told[0], Says(0.2, 0.2, 0.2, 0.2, 0.2), *told[1:])
    sure = protocols.to_posterior(told[0], Says(1.0, 0.0, 0.0, 0.0, 0.0), *told[1:])
    assert even[:, 0] == pytest.approx(torch.zeros(50), abs=1e-4)  # nothing seen: all arms alike
    assert sure[:, 0] == pytest.approx(torch.full((50,), 0.8), abs=1e-4)
    assert even[:, 1].mean() > 0.2 and (sure[:, 1] <= 1).all()
