"""The in-context network: GPT-2's numbers, what it may look at, and equal answers by every way to ask."""

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model

from foundation.envs.worlds import TRANSITION
from models.in_context import InContext
from pipelines.gpt2_release import import_trunk
from tests.models.nets import shaken

S, A, B, N = 3, 4, 5, 7
EVERY = torch.arange(N + 1)
NETS = {
    "first": {},
    "first, continuous": {"n_actions": None, "action_dim": 2},
    "first, no positions": {"positions": "none", "next_state": False},
    "last": {"query": "last"},
    "last, continuous": {"query": "last", "n_actions": None, "action_dim": 2, "positions": "none"},
    "last, no mixing": {"query": "last", "positions": "none", "mixing": "none"},
}
LAST = {name: options for name, options in NETS.items() if options.get("query") == "last"}


def make(context=N, layers=3, heads=2, **options):
    torch.manual_seed(0)
    return shaken(InContext(S, context=context, layers=layers, heads=heads, **{"n_actions": A, **options})).eval()


def make_window(net, n=N, b=B, queries=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(b, *size, generator=generator)  # noqa: E731
    action = torch.randint(A, (b, n), generator=generator) if net.n_actions else normal(n, net.action_dim)
    context = {"observation": normal(n, S), "action": action, "next_observation": normal(n, S), "reward": normal(n)}
    return {**context, "query": normal(queries, S), "place": torch.arange(n + 1)}


def cut(window, rows):
    return {name: window[name][:, rows] for name in TRANSITION}


def said(distribution):
    return distribution.mean if hasattr(distribution, "mean") else distribution.log_probs


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


# GPT-2


class Theirs(nn.Module):
    """The network as the paper's code has it, around transformers' GPT2Model."""

    def __init__(self, heads, width=32, layers=4, positions=4 * (1 + N)):
        super().__init__()
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(vocab_size=1, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions, **none)
        self.transformer, self.positions = GPT2Model(config), positions
        self.embed_transition, self.pred_actions = nn.Linear(2 * S + A + 1, width), nn.Linear(width, A)

    def forward(self, window):
        action = F.one_hot(window["action"], A).float()
        x = torch.cat([window["observation"], action, window["next_observation"], window["reward"][..., None]], -1)
        x = self.embed_transition(torch.cat([F.pad(window["query"], (0, S + A + 1)), x], 1))
        return self.pred_actions(self.transformer(inputs_embeds=x).last_hidden_state)


@pytest.mark.parametrize("heads", [1, 4])
def test_outputs_and_gradients_are_those_of_gpt2(heads):
    torch.manual_seed(0)
    theirs = shaken(Theirs(heads)).eval()
    ours = InContext(S, n_actions=A, context=theirs.positions - 1, heads=heads).eval()
    ours.trunk.load_state_dict(import_trunk(dict(theirs.transformer.state_dict()), ""))
    ours.positions.load_state_dict(theirs.transformer.wpe.state_dict())
    for mine, other in ((ours.embed, theirs.embed_transition), (ours.head, theirs.pred_actions)):
        mine.load_state_dict(other.state_dict())
    window, target = make_window(ours), torch.randint(A, (B, N + 1))
    latent, _ = ours.latent(window)
    logits = theirs(window)
    close(ours.head(latent), logits)
    mine = -ours.distribution(latent).log_prob(target).mean()
    other = F.cross_entropy(rearrange(logits, "b p a -> (b p) a"), target.flatten())
    close(mine, other)
    mine.backward()
    other.backward()
    close(ours.embed.weight.grad, theirs.embed_transition.weight.grad)
    close(ours.positions.weight.grad, theirs.transformer.wpe.weight.grad)
    close(ours.trunk.blocks[0].up.weight.grad, theirs.transformer.h[0].mlp.c_fc.weight.grad.T)


# what an answer depends on


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_an_answer_sees_its_query_and_the_transitions_before_its_place(options):
    net, at = make(**options), 3
    window = make_window(net)
    base = said(net({**window, "query": window["query"].expand(-1, N + 1, -1)} if net.query == "last" else window)[0])
    for name in TRANSITION:
        moved = window[name].clone()
        moved[:, at] = (moved[:, at] + 1) % A if moved.dtype == torch.long else moved[:, at] + 1
        changed = {**window, name: moved}
        changed["query"] = window["query"].expand(-1, N + 1, -1) if net.query == "last" else window["query"]
        difference = (said(net(changed)[0]) - base).abs().amax((0, 2))
        assert (difference[: at + 1] == 0).all(), name
        assert (difference[at + 1 :] > 0).all() != (name == "next_observation" and not net.next_state), name


@pytest.mark.parametrize("options", LAST.values(), ids=LAST)
def test_queries_of_one_pass_do_not_see_each_other(options):
    net = make(**options)
    window = make_window(net, queries=N + 1)
    base = said(net(window)[0])
    other = window["query"].clone()
    other[:, 2] += 1
    difference = (said(net({**window, "query": other})[0]) - base).abs().amax((0, 2))
    assert (difference > 0).tolist() == [i == 2 for i in range(N + 1)]
    order = torch.randperm(N + 1)  # places in any order, some twice
    mixed = net({**window, "query": window["query"][:, order], "place": EVERY[order]})[0]
    close(said(mixed), base[:, order])


def shuffled(window):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    return {**window, **cut(window, order)}


@pytest.mark.parametrize(("layers", "exact"), [(1, True), (3, False)])
def test_without_positions_one_layer_does_not_know_the_order(layers, exact):
    net = make(layers=layers, query="last", positions="none")
    window = {**make_window(net), "place": torch.tensor([N])}
    spread = (said(net(window)[0]) - said(net(shuffled(window))[0])).abs().max()
    assert (spread < 2e-6) == exact


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_without_mixing_the_order_cannot_matter(layers):
    net = make(layers=layers, **NETS["last, no mixing"])
    window = {**make_window(net), "place": torch.tensor([N])}
    close(said(net(window)[0]), said(net(shuffled(window))[0]))
    place = {**window, "place": torch.tensor([N - 1])}  # the set is another one
    assert (said(net(place)[0]) - said(net(shuffled(place))[0])).abs().max() > 1e-3


# other ways to ask


@pytest.mark.parametrize("name", ["first", "first, continuous", "first, no positions"])
def test_a_context_that_grows_gives_the_answers_of_the_full_pass(name):
    net = make(**NETS[name])
    window = make_window(net)
    base, _ = net.latent(window)
    latent, memory = net.begin(window["query"][:, 0])
    close(latent, base[:, 0])
    for rows in (slice(0, 1), slice(1, 4), slice(4, N)):
        latent, memory = net.read(memory, cut(window, rows))
        close(latent, base[:, rows.start + 1 : rows.stop + 1])


@pytest.mark.parametrize("options", LAST.values(), ids=LAST)
def test_what_was_read_in_parts_answers_as_one_pass(options):
    net = make(**options)
    window = make_window(net, queries=N + 1)
    base, _ = net.latent(window)
    close(net.answer(None, window["query"][:, :1])[:, 0], base[:, 0])
    memory = None
    for rows in (slice(0, 1), slice(1, 4), slice(4, N)):
        _, memory = net.read(memory, cut(window, rows))
        close(net.answer(memory, window["query"][:, rows.stop : rows.stop + 1])[:, 0], base[:, rows.stop])
    close(net.answer(memory, window["query"], EVERY), base)


def test_many_queries_of_one_context_equal_one_after_another():
    net = make()
    window = make_window(net, queries=3)
    place = torch.tensor([0, 2, N])
    table = rearrange(net.first(window, window["query"], place), "b (k p) d -> b k p d", k=3)
    for i in range(3):
        close(table[:, i], net.latent({**window, "query": window["query"][:, i : i + 1], "place": place})[0])


# acting


def trajectory(net, t=N + 1):
    """A window of steps, each the next observation of the one before."""
    window = make_window(net, t)
    return {"observation": window["observation"], "action": window["action"], "reward": window["reward"]}


def answer_at(net, steps, begin, t):
    """What the network says of row 0 at step t, having seen the transitions since step `begin`, [a]."""
    seen, after = slice(begin, t), slice(begin + 1, t + 1)
    context = {"observation": steps["observation"][:, seen], "next_observation": steps["observation"][:, after],
               "action": steps["action"][:, seen], "reward": steps["reward"][:, seen]}  # fmt: skip
    query = steps["observation"][:, t : t + 1]
    if t == begin and net.query == "last":
        return said(net.distribution(net.answer(None, query)))[:, 0]
    return said(net({**context, "query": query, "place": torch.tensor([t - begin])})[0])[:, 0]


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_stepping_equals_the_window_and_rows_restart_on_their_own(options):
    net = make(**options)
    steps = trajectory(net)
    state, begins = net.initial_state(B), torch.zeros(B, dtype=torch.long)
    for t in range(N + 1):
        first = (t + torch.arange(B)) % 4 == 0 if t else torch.ones(B, dtype=torch.bool)
        first[B - 1] = t == 0  # the last row goes on for ever
        begins = torch.where(first, t, begins)
        before = {name: steps[name][:, t - 1] for name in ("action", "reward")} if t else {}
        now = {"observation": steps["observation"][:, t], "action": before.get("action"),
               "reward": before["reward"][:, None] if t else None}  # fmt: skip
        with torch.no_grad():
            distribution, latent, state = net.step(now, first, state)
        close(said(distribution), said(net.distribution(latent)))
        for row in range(B):
            alone = {name: value[row : row + 1] for name, value in steps.items()}
            close(said(distribution)[row], answer_at(net, alone, int(begins[row]), t)[0])


def test_a_trajectory_asks_at_every_step():
    net = make(query="last")
    steps = trajectory(net)
    answers = said(net({**steps, "scaled_reward": steps["reward"]})[0])
    for t in range(N + 1):
        close(answers[:, t], answer_at(net, steps, 0, t))
    with pytest.raises(ValueError, match="query=last"):
        make()({**steps, "scaled_reward": steps["reward"]})


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_stepping_past_the_context_forgets_the_oldest(options):
    net = make(context=3, **options)
    steps, state = trajectory(net, 9), net.initial_state(B)
    for t in range(9):
        now = {"observation": steps["observation"][:, t]}
        now |= {"action": steps["action"][:, t - 1], "reward": steps["reward"][:, t - 1, None]} if t else {}
        if t == 4 and net.query == "last" and net.positions is not None:  # kept keys hold the positions they had
            with pytest.raises(ValueError, match="4 transitions: this policy was trained on 3"):
                net.step(now, torch.full((B,), False), state)
            return
        distribution, _, state = net.step(now, torch.full((B,), t == 0), state)
    assert state["visible"].shape[1] == 3
    if net.query == "first":
        close(said(distribution), answer_at(net, steps, 5, 8))


# limits


def test_without_positions_contexts_may_be_longer_than_any_in_training():
    for options in ({}, {"query": "last"}, {"query": "last", "mixing": "none"}):
        net = make(context=2, positions="none", **options)
        assert torch.isfinite(said(net({**make_window(net), "place": torch.tensor([N])})[0])).all()


@pytest.mark.parametrize("query", ["first", "last"])
def test_learned_positions_end(query):
    net = make(context=N - 1, query=query)
    net({**make_window(net, N - 1), "place": torch.tensor([N - 1])})
    window = {**make_window(net, N + 1), "place": torch.tensor([N + 1])}
    with pytest.raises(ValueError, match=r"a context of \d transitions.*positions=none"):
        net(window)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "middle"}, "query='middle'"),
        ({"positions": "sine"}, "positions='sine'"),
        ({"mixing": "all"}, "mixing='all'"),
        ({"mixing": "none", "positions": "none"}, "needs query=last"),
        ({"mixing": "none", "query": "last"}, "positions=none"),
        ({"heads": 5}, "heads"),
        ({"activation": "swish"}, "swish"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InContext(S, n_actions=A, **options)


def test_an_encoder_stands_between_observations_and_tokens():
    net = make(encoder=nn.Sequential(nn.Flatten(2), nn.Linear(12, S)), next_state=False)
    pictures = {name: torch.randn(B, N, 2, 6) for name in ("observation", "next_observation")}
    pictures["query"] = torch.randn(B, 1, 2, 6)
    assert said(net({**make_window(net), **pictures})[0]).shape == (B, N + 1, A)


@pytest.mark.parametrize("name", ["last, continuous", "last, no mixing"])
def test_a_memory_that_grows_in_place_says_the_same(name):
    net = make(**NETS[name])
    window, memory, kept = make_window(net, 11, queries=2), None, net.room()
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 6), (6, 11)):
            part = cut(window, slice(start, stop))
            memory, kept = net.read(memory, part)[1], net.read(kept, part)[1]
            for _ in range(2):  # a query leaves nothing behind
                close(net.answer(memory, window["query"]), net.answer(kept, window["query"]))
    assert [one.length for one in kept] == [11] * len(net.trunk.blocks)
