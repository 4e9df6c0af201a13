"""IQL's three losses and their gradients against the equations, written out sample by sample in float64."""

import copy
import math

import pytest
import torch

from foundation.pretraining.iql import IqlTask
from models.goal_policy import GoalPolicy
from pipelines.schema import (
    ACTION,
    ACTOR_CONDITION,
    CONDITION,
    NEXT_OBSERVATION,
    OBSERVATION,
    REACHED,
    REWARD,
    TERMINATED,
    DataError,
)
from tests.foundation.test_hilp_oracle import gradients, mlp
from tests.models.nets import shaken

B, STATE, ACTIONS = 20, 3, 2
GAMMA, EXPECTILE, ALPHA, TEMPERATURE, CLIP = 0.9, 0.8, 0.3, 3.0, 1.5
SETTINGS = {"gamma": GAMMA, "expectile": EXPECTILE, "alpha": ALPHA, "temperature": TEMPERATURE, "clip": CLIP}
GOALS, APART, TASK = "goals", "apart", "task"  # one goal for all | another for the actor | a reward


def batch(kind=APART, n_actions=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    state, goal, other = draw(B, STATE), draw(B, STATE), draw(B, STATE)
    ended = torch.rand(B, generator=generator) < 0.3
    assert 3 <= ended.sum() <= 10
    action = draw(B, ACTIONS).clamp(-1, 1) if n_actions is None else torch.randint(n_actions, (B,), generator=generator)
    given = {OBSERVATION: state, NEXT_OBSERVATION: state + 0.3 * draw(B, STATE), ACTION: action}
    if kind == TASK:
        return given | {REWARD: draw(B), TERMINATED: ended}
    given |= {CONDITION: torch.where(ended[:, None], state, goal), REACHED: ended}
    return given | ({ACTOR_CONDITION: other} if kind == APART else {})


def task(kind=APART, n_actions=None, critics=2, learned_std=True, **options):
    """Weights and target away from their start, and from each other; the actor's means reach beyond 1."""
    torch.manual_seed(0)
    goal_dim = 0 if kind == TASK else STATE
    net = GoalPolicy(STATE, ACTIONS, n_actions, goal_dim, 8, 3, critics=critics, learned_std=learned_std)
    net = shaken(net).double()
    with torch.no_grad():
        net.actor.out.weight.mul_(8)
    made = IqlTask(net, None, **{**SETTINGS, **options})
    if critics:
        shaken(made.target_critic)
    return made


# the equations


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mean_of(actor, x):
    for linear in actor.linears:
        x = gelu(x @ linear.weight[0] + linear.bias[0, 0])
    return x @ actor.out.weight[0] + actor.out.bias[0, 0]


def held(net):
    """A copy through which a gradient passes and in which none stays."""
    return copy.deepcopy(net).requires_grad_(False)


def oracle(made, given, n_actions=None):
    """{loss: scalar}, one sample at a time; item() wherever nothing is differentiated."""
    net, target, still = made.net, made.target_critic, held(made.net)
    judge = target if made.advantage == "slow" else still.critic
    sums, q_actor = dict.fromkeys(("value", "critic", "imitation", "awr"), 0.0), []
    for i in range(B):
        s, after, a = (given[name][i] for name in (OBSERVATION, NEXT_OBSERVATION, ACTION))
        g = given[CONDITION][i] if CONDITION in given else s[:0]
        told = given.get(ACTOR_CONDITION, given.get(CONDITION))
        told = s[:0] if told is None else told[i]
        if REACHED in given:
            r, m = (0.0, 0.0) if given[REACHED][i] else (-1.0, 1.0)
        else:
            r, m = given[REWARD][i].item(), 0.0 if given[TERMINATED][i] else 1.0
        taken = a if n_actions is None else torch.eye(n_actions, dtype=torch.float64)[a]
        sg, sag, sat = torch.cat([s, g]), torch.cat([s, taken, g]), torch.cat([s, taken, told])
        u = min(mlp(target, k, sag).item() for k in range(2)) - mlp(net.value, 0, sg)[0]
        sums["value"] += (EXPECTILE if u >= 0 else 1 - EXPECTILE) * u**2
        y = r + GAMMA * m * mlp(net.value, 0, torch.cat([after, g])).item()
        sums["critic"] += sum((mlp(net.critic, k, sag)[0] - y) ** 2 for k in range(2))

        out = mean_of(net.actor, torch.cat([s, told]))
        if n_actions is None:
            log_std = torch.zeros(ACTIONS).double() if made.net.log_std is None else net.log_std.clamp(-5, 2)
            log_prob = (-0.5 * ((a - out) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum()
            best = torch.cat([s, out.clamp(-1, 1), told])
            q_actor.append(torch.stack([mlp(judge, k, best)[0] for k in range(2)]).min())
        else:
            log_prob = out[a] - out.exp().sum().log()
        advantage = min(mlp(judge, k, sat).item() for k in range(2))
        advantage -= mlp(net.value, 0, torch.cat([s, told])).item()
        sums["imitation"] -= log_prob
        sums["awr"] -= min(math.exp(TEMPERATURE * advantage), CLIP) * log_prob
    means = {name: value / B for name, value in sums.items()}
    if made.extraction == "awr":
        return {"value": means["value"], "critic": means["critic"], "actor": means["awr"]}
    size = sum(abs(q.item()) for q in q_actor) / B + 1e-6
    actor = -sum(q_actor) / B / size + ALPHA * means["imitation"]
    return {"value": means["value"], "critic": means["critic"], "actor": actor}


@pytest.mark.parametrize("kind", [GOALS, APART, TASK])
@pytest.mark.parametrize(
    ("options", "n_actions"),
    [({"extraction": "ddpg_bc"}, None), ({"extraction": "ddpg_bc", "advantage": "slow"}, None),
     ({"extraction": "awr"}, None), ({"extraction": "awr", "advantage": "slow"}, None), ({"extraction": "awr"}, 4)],
)  # fmt: skip
def test_losses_and_gradients_are_those_of_the_equations(kind, options, n_actions):
    made, given = task(kind, n_actions, **options), batch(kind, n_actions)
    loss, metrics = made.losses(given)
    expected = oracle(made, given, n_actions)
    loose = 1 if n_actions is None else 1e4  # probabilities of discrete actions are float32
    for name, value in expected.items():
        torch.testing.assert_close(metrics[f"{name}_loss"].double(), value, rtol=1e-10 * loose, atol=0)
    torch.testing.assert_close(loss.double(), sum(expected.values()), rtol=1e-10 * loose, atol=0)
    ours, theirs = gradients(loss, made.net), gradients(sum(expected.values()), made.net)
    assert all(value is not None or name == "log_std" for name, value in ours.items())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-8 * loose, atol=1e-12 * loose)


def test_the_batch_reaches_every_branch():
    made, given = task(), batch()
    now = {OBSERVATION: given[OBSERVATION], CONDITION: given[ACTOR_CONDITION]}
    mode = made.net.act(now).mode()
    assert (mode.abs() > 1).any() and (mode.abs() < 1).any()
    advantage = made.net.q(now, given[ACTION]).amin(0) - made.net.v(now)
    weight = (TEMPERATURE * advantage).exp()
    assert (weight > CLIP).any() and (weight < CLIP).any()
    now[CONDITION] = given[CONDITION]
    u = made.net.q(now, given[ACTION], made.target_critic).amin(0) - made.net.v(now)
    assert (u > 0).any() and (u < 0).any()
    differ = made.net.q(now, given[ACTION], made.target_critic) - made.net.q(now, given[ACTION])
    assert differ.abs().min() > 1e-4


@pytest.mark.parametrize("extraction", ["ddpg_bc", "awr"])
def test_every_loss_reaches_its_own_network_alone(extraction):
    made, given = task(extraction=extraction), batch()
    for loss, own in (("value_loss", {"value"}), ("critic_loss", {"critic"}), ("actor_loss", {"actor", "log_std"})):
        _, metrics = made.losses(given)
        found = gradients(metrics[loss], made.net)
        assert {name.split(".")[0] for name, value in found.items() if value is not None} == own
    assert all(p.requires_grad for p in made.net.parameters())
    assert all(p.grad is None and not p.requires_grad for p in made.target_critic.parameters())


def test_nothing_is_expected_after_a_reached_goal_or_a_terminal_state():
    for kind, ended in ((GOALS, REACHED), (TASK, TERMINATED)):
        made, given = task(kind), batch(kind)
        before = made.losses(given)[1]["critic_loss"]
        changed = {**given, NEXT_OBSERVATION: given[NEXT_OBSERVATION] + given[ended][:, None] * 5.0}
        assert torch.equal(made.losses(changed)[1]["critic_loss"], before)
        changed = {**given, NEXT_OBSERVATION: given[NEXT_OBSERVATION] + ~given[ended][:, None] * 5.0}
        assert not torch.equal(made.losses(changed)[1]["critic_loss"], before)


@pytest.mark.parametrize("n_actions", [None, 4])
def test_temperature_0_and_an_actor_alone_are_imitation(n_actions):
    given = batch(n_actions=n_actions)
    whole, alone = (task(n_actions=n_actions, critics=critics, extraction="awr", temperature=0) for critics in (2, 0))
    alone.net.actor.load_state_dict(whole.net.actor.state_dict())
    if n_actions is None:
        alone.net.log_std.data.copy_(whole.net.log_std.data)
    loss, metrics = alone.losses(given)
    assert metrics.keys() == {"actor_loss", "log_prob"} and alone.target_critic is None
    assert torch.equal(loss, whole.losses(given)[1]["actor_loss"])
    now = {OBSERVATION: given[OBSERVATION], CONDITION: given[ACTOR_CONDITION]}
    torch.testing.assert_close(loss, -alone.net.act(now).log_prob(given[ACTION]).mean())
    ours, theirs = gradients(loss, alone.net), gradients(whole.losses(given)[0], whole.net)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_deviation_of_1_leaves_the_squared_error():
    made, given = task(critics=0, learned_std=False, extraction="awr", temperature=0), batch()
    now = {OBSERVATION: given[OBSERVATION], CONDITION: given[ACTOR_CONDITION]}
    squared = (made.net.act(now).mode() - given[ACTION]).square().sum(-1).mean()
    torch.testing.assert_close(made.losses(given)[0], squared / 2 + math.log(2 * math.pi))


def test_the_target_moves_by_tau_towards_the_critic():
    made = task(tau=0.1)
    before = copy.deepcopy(made.target_critic.state_dict())
    made.follow()
    for name, value in made.target_critic.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * made.net.critic.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extraction": "sac"}, "extraction='sac'"), ({"advantage": "both"}, "advantage='both'"),
        ({"ema": "during"}, "ema='during'"), ({"gamma": 1.0}, "gamma=1.0"), ({"alpha": -1.0}, "alpha=-1.0"),
        ({"n_actions": 4}, "extraction=awr"), ({"critics": 0}, "imitation alone"),
        ({"critics": 0, "extraction": "awr"}, "temperature=0"),
    ],
)  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(DataError, match=message):
        task(**options)
