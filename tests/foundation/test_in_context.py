"""Networks as learners, and what learners do in a world, against direct passes and numbers by hand."""

import pytest
import torch

from foundation import in_context
from foundation.envs.bandits import BernoulliBandit, GaussianBandit
from foundation.envs.dark_room import DarkRoom
from foundation.in_context import NetLearner
from foundation.learners import EmpiricalMean, Learner, Optimal, Periodic, Uniform
from models.heads import Categorical
from models.in_context import InContext
from pipelines.schema import ACTION, OBSERVATION, REWARD, DataError
from tests.foundation.in_context import generator
from tests.models.nets import shaken

NETS = {
    "first": {},
    "first, no positions": {"positions": "none"},
    "last": {"query": "last"},
    "last, no mixing": {"query": "last", "positions": "none", "mixing": "none"},
}
B, N = 4, 9


def net_for(world, **options):
    torch.manual_seed(0)
    sizes = {"state_dim": world.state_dim, "n_actions": world.n_actions, "context": 200, "layers": 2, "heads": 2}
    return shaken(InContext(**sizes, **options)).eval()


def direct(net, context, observation):
    """Log-probabilities [b a] of one pass over the context and the query."""
    n = context[ACTION].shape[1]
    with torch.no_grad():
        return net({**context, "query": observation[:, None], "place": torch.tensor([n])})[0].log_probs[:, 0]


def parts(context, *stops):
    for start, stop in zip((0, *stops), stops, strict=False):
        yield stop, {name: value[:, start:stop] for name, value in context.items()}


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
@pytest.mark.parametrize("world", [GaussianBandit(), DarkRoom(size=4)], ids=["bandit", "dark room"])
@pytest.mark.parametrize("listed", [True, False], ids=["states listed", "not listed"])
def test_what_a_learner_says_is_the_direct_pass(world, options, listed):
    net = net_for(world, **options)
    learner = NetLearner(net, world.states if listed else None)
    tasks = world.draw(B, generator())
    context, asked = world.context(tasks, N, generator(1)), world.queries(tasks, 3, generator(2))
    state = learner.start(B)
    for stop, rows in ((0, None), *parts(context, 1, 4, N)):
        state = state if rows is None else learner.observe(state, rows)
        seen = {name: value[:, :stop] for name, value in context.items()}
        for k in range(3):
            expected = direct(net, seen, asked[:, k])
            said = learner.distribution(state, asked[:, k]).log_probs
            torch.testing.assert_close(said, expected, rtol=0, atol=2e-6)
            assert torch.equal(learner.act(state, asked[:, k], None, greedy=True), expected.argmax(-1))
    uses_table = listed and net.query == "first" and len(world.states) > 1
    assert ("table" in state) == uses_table


def test_a_context_is_run_in_parts_of_bounded_size(monkeypatch):
    world = DarkRoom(size=3)
    net, tasks = net_for(world), world.draw(B, generator())
    whole, cut = (NetLearner(net, world.states) for _ in range(2))
    context = world.context(tasks, N, generator(1))
    expected = whole.distribution(whole.observe(whole.start(B), context), world.start(tasks)).log_probs
    monkeypatch.setattr(in_context, "TOKENS", 1)
    said = cut.distribution(cut.observe(cut.start(B), context), world.start(tasks)).log_probs
    torch.testing.assert_close(said, expected, rtol=0, atol=2e-6)


def test_actions_are_sampled_from_the_distribution():
    world = GaussianBandit(arms=3)
    learner = NetLearner(net_for(world), world.states)
    state, b = learner.start(20000), 20000
    p = learner.distribution(state, torch.ones(b, 1)).log_probs[0].exp()
    found = learner.act(state, torch.ones(b, 1), generator()).bincount(minlength=3) / b
    assert (found - p).abs().max() < 0.02
    again = learner.act(state, torch.ones(b, 1), generator())
    assert torch.equal(again.bincount(minlength=3) / b, found)


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_empty_contexts_change_nothing_and_broken_ones_are_refused(options):
    world = GaussianBandit()
    learner, tasks = NetLearner(net_for(world, **options), world.states), world.draw(B, generator())
    context, one = world.context(tasks, N, generator(1)), torch.ones(B, 1)
    for state in (learner.start(B), learner.observe(learner.start(B), context)):
        nothing = learner.observe(state, {name: value[:, :0] for name, value in context.items()})
        assert torch.equal(learner.distribution(nothing, one).log_probs, learner.distribution(state, one).log_probs)
    for bad in (float("nan"), float("inf")):
        broken = {**context, REWARD: context[REWARD].clone()}
        broken[REWARD][1, 3] = bad
        with pytest.raises(DataError, match="no finite numbers"):
            learner.observe(learner.start(B), broken)


# worlds by hand


def test_suboptimality_online_by_hand():
    world, tasks = BernoulliBandit(arms=3), {"means": torch.tensor([[0.2, 0.5, 0.9], [0.3, 0.1, 0.2]])}
    turns = Periodic(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([3, 3]))
    lost = in_context.bandit_online(world, turns, tasks, 4, generator())
    torch.testing.assert_close(lost, torch.tensor([[0.7, 0.4, 0, 0.7], [0, 0.2, 0.1, 0]]))
    assert (in_context.bandit_online(world, Optimal(world, tasks), tasks, 4, generator()) == 0).all()
    tasks = {"means": torch.tensor([[0.0, 1.0]]).repeat(2000, 1)}
    lost = in_context.bandit_online(world, Uniform(2), tasks, 3, generator())
    assert set(lost.unique().tolist()) == {0.0, 1.0} and abs(float(lost.mean()) - 0.5) < 0.03


def test_suboptimality_offline_by_hand():
    world, tasks = BernoulliBandit(arms=3), {"means": torch.tensor([[0.2, 0.5, 0.9]])}
    context = {ACTION: torch.tensor([[0, 1, 2, 2]]), REWARD: torch.tensor([[0.0, 1.0, 0.0, 0.0]])}
    context |= dict.fromkeys((OBSERVATION, "next_observation"), torch.ones(1, 4, 1))
    lost = in_context.bandit_offline(world, EmpiricalMean(3), tasks, context, [0, 1, 2, 4], generator())
    torch.testing.assert_close(lost, torch.tensor([[0.7, 0.7, 0.4, 0.4]]))  # arm 0, 0, 1, 1
    assert (in_context.bandit_offline(world, Optimal(world, tasks), tasks, context, [0, 4], generator()) == 0).all()


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
    in_context.online(world, learner, world.draw(2, generator()), 3, generator(), context, update)
    assert learner.known == known


def test_returns_of_the_best_way():
    world = DarkRoom(size=10, horizon=100)
    tasks = world.hypotheses()
    distance = tasks["goal"].sum(1)
    best = 100.0 - (distance - 1).clamp(min=0)
    context = world.context(tasks, 5, generator())
    for greedy in (False, True):
        assert torch.equal(in_context.offline(world, Optimal(world, tasks), tasks, context, generator(), greedy), best)
    twice = in_context.online(world, Optimal(world, tasks), tasks, 2, generator())
    assert torch.equal(twice, best[:, None].expand(-1, 2))
    lazy = in_context.online(world, Counting(), tasks, 1, generator())
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
    even = in_context.to_posterior(told[0], Says(0.2, 0.2, 0.2, 0.2, 0.2), *told[1:])
    sure = in_context.to_posterior(told[0], Says(1.0, 0.0, 0.0, 0.0, 0.0), *told[1:])
    assert even[:, 0] == pytest.approx(torch.zeros(50), abs=1e-4)  # nothing seen: all arms alike
    assert sure[:, 0] == pytest.approx(torch.full((50,), 0.8), abs=1e-4)
    assert even[:, 1].mean() > 0.2 and (sure[:, 1] <= 1).all()
