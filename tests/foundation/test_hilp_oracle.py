"""HILP's four losses and their gradients against the published equations, written out sample by sample in float64."""

import copy
import math
import shutil

import pytest
import torch

from foundation.pretraining.hilp import HilpTask
from models.hilbert import HilbertPolicy
from pipelines.schema import ACTION, CONDITION, GOAL, NEXT_OBSERVATION, OBSERVATION, REACHED
from tests.models.nets import shaken

B, STATE, ACTIONS, LATENT = 20, 3, 2, 4
GAMMA, EXPECTILE, SKILL_EXPECTILE, TEMPERATURE, CLIP = 0.9, 0.95, 0.8, 3.0, 1.5
LOSSES = ("distance", "value", "critic", "actor")


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state, goal = draw(B, STATE), draw(B, STATE)
    reached = torch.rand(B, generator=generator) < 0.3
    assert 3 <= reached.sum() <= 10
    skill = draw(B, LATENT)
    return {
        OBSERVATION: state, NEXT_OBSERVATION: state + 0.3 * draw(B, STATE), ACTION: draw(B, ACTIONS).clamp(-1, 1),
        GOAL: torch.where(reached[:, None], state, goal), REACHED: reached,
        CONDITION: skill / skill.norm(dim=-1, keepdim=True),
    }  # fmt: skip


def task(**options):
    """Weights and targets away from their start, and from each other."""
    torch.manual_seed(0)
    net = shaken(HilbertPolicy(STATE, ACTIONS, latent_dim=LATENT, width=8, layers=3)).double()
    settings = {"gamma": GAMMA, "expectile": EXPECTILE, "skill_expectile": SKILL_EXPECTILE}
    made = HilpTask(net, None, **{**settings, "temperature": TEMPERATURE, "clip": CLIP, **options})
    shaken(made.target_representation)
    shaken(made.target_critic)
    return made


# the equations


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x, weight, bias):
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-6) * weight + bias


def mlp(net, k, x):
    """Member k of an EnsembleMLP on one vector."""
    for i, linear in enumerate(net.linears):
        x = x @ linear.weight[k] + linear.bias[k, 0]
        x = norm(gelu(x), net.norms[i].weight[k, 0], net.norms[i].bias[k, 0]) if net.norms else torch.relu(x)
    return x @ net.out.weight[k] + net.out.bias[k, 0]


def v(phi, k, s, g):
    squared = ((mlp(phi.net, k, s) - mlp(phi.net, k, g)) ** 2).sum()
    return -torch.sqrt(squared) if squared > 1e-6 else torch.full_like(squared, -1e-3)


def oracle(made, given):
    """{loss: scalar}, one sample at a time; item() wherever nothing is differentiated."""
    net, target, target_q = made.net, made.target_representation, made.target_critic
    phi, sums = net.representation, dict.fromkeys(LOSSES, 0.0)
    for i in range(B):
        s, after, a, g, z = (given[name][i] for name in (OBSERVATION, NEXT_OBSERVATION, ACTION, GOAL, CONDITION))
        r, mask = (0.0, 0.0) if given[REACHED][i] else (-1.0, 1.0)
        ahead = [v(target, k, after, g).item() for k in range(2)]
        advantage = r + GAMMA * mask * min(ahead) - sum(v(target, k, s, g).item() for k in range(2)) / 2
        w = EXPECTILE if advantage >= 0 else 1 - EXPECTILE
        sums["distance"] += sum(w * (r + GAMMA * mask * ahead[k] - v(phi, k, s, g)) ** 2 for k in range(2))

        r = ((mlp(phi.net, 0, after) - mlp(phi.net, 0, s)) * z).sum().item()
        sz, saz = torch.cat([s, z]), torch.cat([s, a, z])
        q_target = min(mlp(target_q, k, saz).item() for k in range(2))
        value = mlp(net.value, 0, sz)[0]
        u = q_target - value
        sums["value"] += (SKILL_EXPECTILE if u >= 0 else 1 - SKILL_EXPECTILE) * u**2
        value_after = mlp(net.value, 0, torch.cat([after, z])).item()
        sums["critic"] += sum((mlp(net.critic, k, saz)[0] - (r + GAMMA * value_after)) ** 2 for k in range(2))

        mean, log_std = mlp(net.actor, 0, sz), net.log_std.clamp(-5, 2)
        log_prob = (-0.5 * ((a - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum()
        sums["actor"] += -min(math.exp(TEMPERATURE * u.item()), CLIP) * log_prob
    return {name: value / B for name, value in sums.items()}


def gradients(loss, net):
    net.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def test_losses_and_gradients_are_those_of_the_equations():
    made, given = task(), batch()
    loss, metrics = made.losses(given)
    expected = oracle(made, given)
    for name in LOSSES:
        torch.testing.assert_close(metrics[f"{name}_loss"], expected[name], rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, sum(expected.values()), rtol=1e-10, atol=0)
    ours, theirs = gradients(loss, made.net), gradients(sum(oracle(made, given).values()), made.net)
    assert all(value is not None for value in ours.values())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-12)


def test_the_batch_reaches_every_branch():
    made, given = task(), batch()
    _, metrics = made.losses(given)
    now = {name: given[name] for name in (OBSERVATION, CONDITION)}
    u = made.net.q(now, given[ACTION], made.target_critic).amin(0) - made.net.v(now)
    weights = (TEMPERATURE * u).exp()
    assert (u > 0).any() and (u < 0).any() and (weights > CLIP).any() and (weights < CLIP).any()
    now, ahead = (made.target_representation(given[name], given[GOAL]) for name in (OBSERVATION, NEXT_OBSERVATION))
    advantage = torch.where(given[REACHED], 0, -1 + GAMMA * ahead.amin(0)) - now.mean(0)
    assert (advantage > 0).any() and (advantage < 0).any()
    torch.testing.assert_close(advantage[given[REACHED]], torch.full((int(given[REACHED].sum()),), 1e-3).double())
    assert {"distance", "weight", "q", "reward"} <= metrics.keys()


def test_skills_leave_phi_alone_and_targets_have_no_gradient():
    made, given = task(), batch()
    loss, metrics = made.losses(given)
    summed = gradients(loss, made.net)
    alone = gradients(made.losses(given)[1]["distance_loss"], made.net)
    phi = [name for name in summed if name.startswith("representation.")]
    assert phi and all(torch.equal(summed[name], alone[name]) for name in phi)
    assert all(alone[name] is None for name in summed if name not in phi)
    for target in (made.target_representation, made.target_critic):
        assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    assert not metrics["reward"].requires_grad


def test_targets_move_by_tau_towards_the_parameters():
    made = task(tau=0.1)
    pairs = (made.target_representation, made.net.representation), (made.target_critic, made.net.critic)
    before = [copy.deepcopy(target.state_dict()) for target, _ in pairs]
    made.follow()
    for (target, source), old in zip(pairs, before, strict=True):
        new = source.state_dict()
        for name, value in target.state_dict().items():
            torch.testing.assert_close(value, 0.9 * old[name] + 0.1 * new[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", ["asymmetric_l2", "inner", "icvf", "quasimetric"])
@pytest.mark.parametrize("features", ["difference", "state", "centred"])
def test_every_metric_and_feature_learns(metric, features):
    torch.manual_seed(0)
    net = HilbertPolicy(STATE, ACTIONS, latent_dim=LATENT, width=8, metric=metric, features=features).double()
    made, given = HilpTask(net, None), batch()
    loss, metrics = made.losses(given)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    phi, after = net.representation.latent(given[OBSERVATION]), net.representation.latent(given[NEXT_OBSERVATION])
    expected = {"difference": after - phi, "state": after}.get(features)
    if features == "centred":
        torch.testing.assert_close(net.representation.mean, 0.005 * after.mean(0).detach())
        expected = after - net.representation.mean
    torch.testing.assert_close(metrics["reward"], (expected * given[CONDITION]).sum(-1).mean().detach())


def test_looking_does_not_move_the_mean():
    net = HilbertPolicy(STATE, ACTIONS, latent_dim=LATENT, width=8, features="centred").double()
    HilpTask(net, None).eval().losses(batch())
    assert not net.representation.mean.any()


@pytest.mark.parametrize("arithmetic", ["bf16", pytest.param("compiled", marks=pytest.mark.slow)])
def test_other_arithmetic_comes_near(arithmetic):
    if arithmetic == "compiled" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++")
    torch.manual_seed(0)
    net = HilbertPolicy(STATE, ACTIONS, latent_dim=LATENT, width=64, layers=2)
    given = {name: value if name == REACHED else value.float() for name, value in batch().items()}
    exact, other = HilpTask(net, None), HilpTask(net, None, compile=arithmetic == "compiled")
    expected, _ = exact.losses(given)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "bf16"):
        loss, _ = other.losses(given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02 if arithmetic == "bf16" else 1e-5, atol=0)
    found = [torch.cat([value.flatten() for value in gradients(one, net).values()]) for one in (expected, loss)]
    assert torch.cosine_similarity(*found, dim=0) > 0.999
