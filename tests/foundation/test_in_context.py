"""Networks as learners, and what learners do in a world, against direct passes and numbers by hand."""

import pytest
import torch

from foundation import in_context
from foundation.envs.bandits import GaussianBandit
from foundation.envs.dark_room import DarkRoom
from foundation.in_context import NetLearner
from models.in_context import InContext
from pipelines.schema import ACTION, REWARD, DataError
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
