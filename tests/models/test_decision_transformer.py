import pytest
import torch

from models.decision_transformer import DecisionTransformer
from models.language import GPT, LanguageModel

S, A, K, B = 11, 3, 6, 5
NETS = {
    "continuous": {},
    "discrete": {"n_actions": 4},
    "merged": {"layout": "merged"},
    "lamo": {"embed": "mlp", "head": "mlp", "time": "after", "activation": "gelu_tanh"},
    "goal": {"condition_dim": 7},
    "auxiliary": {"auxiliary": True},
}


def make(**options):
    torch.manual_seed(0)
    net = DecisionTransformer(S, A, context=K, width=32, heads=2, max_timestep=50, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # nothing stays at a zero that could hide it
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def make_window(net, t=K, batch=B):
    generator = torch.Generator().manual_seed(1)
    normal = lambda *size: torch.randn(batch, t, *size, generator=generator)  # noqa: E731
    action = torch.rand(batch, t, A, generator=generator) * 2 - 1
    if net.n_actions is not None:
        size = (batch, t, A) if net.layout == "tokenised" else (batch, t)
        action = torch.randint(net.n_actions, size, generator=generator)
    return {
        "observation": normal(S), "condition": normal(net.condition_dim), "action": action, "reward": normal(1),
        "timestep": torch.arange(t).expand(batch, t) + torch.arange(batch)[:, None],
    }  # fmt: skip


def said(distribution):
    return distribution.mean if hasattr(distribution, "mean") else distribution.log_probs


@pytest.mark.parametrize("options", [*NETS.values(), {"layout": "tokenised", "n_actions": 9}], ids=[*NETS, "tokenised"])
def test_an_action_depends_on_what_came_before_it_and_on_nothing_else(options):
    net = make(**options)
    window = make_window(net)
    base = said(net(window)[0])
    at = 3
    for name, value in window.items():
        changed = {**window, name: value.clone()}
        moved = changed[name][:, at] + 1
        changed[name][:, at] = moved % net.n_actions if name == "action" and net.n_actions else moved
        difference = (said(net(changed)[0]) - base).abs().flatten(2).amax((0, 2))
        assert (difference[:at] == 0).all(), name
        if name == "reward" and net.layout != "tokenised":
            assert (difference == 0).all()
            continue
        assert (difference[at + 1 :] > 0).all(), name
        within = name in ("observation", "condition", "timestep") or (name == "action" and net.layout == "tokenised")
        assert bool(difference[at] > 0) == within, name


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_stepping_equals_the_window_and_rows_are_independent(options):
    net = make(**options)
    window = make_window(net)
    base = said(net(window)[0])
    state, never = net.initial_state(B), torch.zeros(B, dtype=torch.bool)
    starts = torch.arange(B) % 3  # rows begin one after another
    for step in range(K + 2):
        t = (step - starts).clamp(0, K - 1)
        rows = torch.arange(B)
        now = {name: window[name][rows, t] for name in ("observation", "condition", "timestep")}
        now |= {name: window[name][rows, (t - 1).clamp(min=0)] for name in ("action", "reward")}
        first = (starts == step) | (never if step else ~never)
        distribution, latent, state = net.step(now, first, state)
        live = (step >= starts) & (step - starts < K)
        torch.testing.assert_close(said(distribution)[live], base[rows, t][live], rtol=0, atol=1e-5)
        assert latent.shape == (B, 32)


def test_a_full_history_forgets_its_oldest_step():
    net = make()
    window = make_window(net, t=K + 4)
    state = net.initial_state(B)
    for t in range(K + 4):
        now = {name: window[name][:, t] for name in ("observation", "condition", "timestep")}
        now |= {"action": window["action"][:, max(t - 1, 0)]}
        distribution, _, state = net.step(now, torch.full((B,), t == 0), state)
    last = {name: value[:, 4:] for name, value in window.items()}
    torch.testing.assert_close(distribution.mean, net(last)[0].mean[:, -1], rtol=0, atol=1e-5)


def test_the_last_block_at_the_tokens_that_are_read_is_the_whole_pass():
    torch.manual_seed(0)
    trunk = GPT(32, 3, 2).eval()
    x, read = torch.randn(B, 12, 32), torch.tensor([1, 4, 5, 11])
    torch.testing.assert_close(trunk(x, read)[0], trunk(x)[0][:, read], rtol=0, atol=1e-6)


def test_memory_equals_one_pass():
    torch.manual_seed(0)
    trunk = GPT(32, 3, 2).eval()
    x = torch.randn(B, 12, 32)
    first, memory = trunk(x[:, :5])
    second, memory = trunk(x[:, 5:9], memory=memory)
    third, _ = trunk(x[:, 9:], torch.tensor([2]), memory)
    whole, _ = trunk(x)
    torch.testing.assert_close(torch.cat([first, second], 1), whole[:, :9], rtol=0, atol=1e-6)
    torch.testing.assert_close(third, whole[:, -1:], rtol=0, atol=1e-6)


def test_every_parameter_learns():
    """Plain data-parallel training needs a gradient for each."""
    for options in [*NETS.values(), {"layout": "tokenised", "n_actions": 9}]:
        net = make(**options).train()
        window = make_window(net)
        loss = -net(window)[0].log_prob(window["action"]).mean()
        if net.predict is not None:
            loss = loss + sum(part.square().mean() for part in net.next_state_and_condition(window))
        loss.backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_language_model_is_causal_and_bounded():
    torch.manual_seed(0)
    net = LanguageModel(17, 8, 32, 2, 2).eval()
    tokens = torch.randint(17, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 17
    difference = (net(tokens) - net(changed)).abs().amax((0, 2))
    assert (difference[:5] == 0).all()
    assert (difference[5:] > 0).all()
    with pytest.raises(ValueError, match="9 tokens"):
        net(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "stacked"}, "layout='stacked'"),
        ({"layout": "tokenised"}, "needs n_actions"),
        ({"layout": "merged", "auxiliary": True}, "action token"),
        ({"activation": "swish"}, "swish"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DecisionTransformer(S, A, **options)
