"""Policies that are told a goal or nothing: the contract, values of actions, sizes, what is left out."""

import copy

import pytest
import torch

from models.goal_policy import GoalPolicy
from tests.models.nets import shaken

SMALL = {"width": 16, "layers": 2}


def policy(n_actions=None, goal_dim=5, **options):
    torch.manual_seed(0)
    return shaken(GoalPolicy(5, 2, n_actions, goal_dim, **SMALL, **options))


def window(b=3, t=4):
    return {"observation": torch.randn(b, t, 5), "condition": torch.randn(b, t, 5)}


def at(window, t):
    return {name: value[:, t] for name, value in window.items()}


@pytest.mark.parametrize("n_actions", [None, 4])
def test_it_acts_by_its_goal_and_by_the_step_alone(n_actions):
    net, seen = policy(n_actions), window()
    distribution, nothing = net(seen)
    assert nothing is None and distribution.mode().shape == ((3, 4, 2) if n_actions is None else (3, 4))
    now = at(seen, 2)
    one, latent, _ = net.step(now, torch.zeros(3, dtype=torch.bool), net.initial_state(3))
    torch.testing.assert_close(one.log_prob(one.mode()), distribution.log_prob(distribution.mode())[:, 2])
    torch.testing.assert_close(latent, net.latent(seen)[0][:, 2])
    torch.testing.assert_close(net.act(now).mode(), one.mode())
    elsewhere = net.act({**now, "condition": -now["condition"]})
    assert not torch.equal(elsewhere.log_prob(one.mode()), one.log_prob(one.mode()))


@pytest.mark.parametrize("n_actions", [None, 4])
def test_values_go_by_state_action_and_goal(n_actions):
    net, now = policy(n_actions), at(window(), 0)
    action = net.act(now).mode()
    q, v = net.q(now, action), net.v(now)
    assert q.shape == (2, 3) and v.shape == (3,) and not torch.equal(q[0], q[1])
    other = torch.tensor([0, 1, 2]) if n_actions else action + 1
    moved = {**now, "observation": now["observation"] + 1}, {**now, "condition": now["condition"] + 1}
    changes = [net.q(now, other), *(net.q(one, action) for one in moved)]
    assert all((change != q).any() for change in changes) and all((net.v(one) != v).all() for one in moved)
    assert not torch.equal(net.q(now, action, shaken(copy.deepcopy(net.critic))), q)


def test_all_discrete_actions_at_once():
    net, now = policy(4), at(window(), 0)
    every = net.all_q(now)
    assert every.shape == (2, 3, 4)
    for action in range(4):
        torch.testing.assert_close(every[:, :, action], net.q(now, torch.full((3,), action)))
    slow = shaken(copy.deepcopy(net.critic))
    torch.testing.assert_close(net.all_q(now, slow)[:, :, 1], net.q(now, torch.ones(3), slow))


@pytest.mark.parametrize("n_actions", [None, 4])
def test_without_a_goal_no_condition_is_looked_at(n_actions):
    net, now = policy(n_actions, goal_dim=0), at(window(), 0)
    alone = {"observation": now["observation"]}
    torch.testing.assert_close(net.v(alone), net.v(now))
    torch.testing.assert_close(net.act(alone).mode(), net.act(now).mode())
    action = net.act(now).mode()
    torch.testing.assert_close(net.q(alone, action), net.q(now, action))
    assert net.value.linears[0].weight.shape[1] == 5


def test_the_deviation_stays_at_one_unless_it_is_learned():
    fixed, learned = policy(), policy(learned_std=True)
    now = at(window(), 0)
    assert fixed.act(now).log_std.tolist() == [0, 0] and "log_std" not in fixed.state_dict()
    assert not any(name == "log_std" for name, _ in fixed.named_parameters())
    with torch.no_grad():
        learned.log_std.copy_(torch.tensor([-9.0, 9.0]))
    assert learned.act(now).log_std.tolist() == [-5.0, 2.0]


def test_an_actor_alone():
    net = policy(critics=0)
    assert net.critic is None and net.value is None
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"actor"}
    assert sum(p.numel() for p in net.parameters()) == (10 * 16 + 16) + (16 * 16 + 16) + (16 * 2 + 2)
    assert net(window())[0].mode().shape == (3, 4, 2)


def test_the_papers_size():
    """OGBench at 29 states and 8 actions, 3 x 512: Q twice, V and the actor; norms have 2 numbers per unit."""
    hidden, norms = 2 * (512 * 512 + 512), 3 * 2 * 512
    q, v, actor = ((n * 512 + 512) + hidden + (512 * out + out) for n, out in ((66, 1), (58, 1), (58, 8)))
    found = sum(p.numel() for p in GoalPolicy(29, 8, goal_dim=29).parameters())
    assert found == 2 * (q + norms) + v + norms + actor


def test_wrong_sizes():
    net, now = policy(), at(window(), 0)
    for changed, message in (
        ({"condition": torch.zeros(3, 2)}, "condition has 5 numbers was given 2"),
        ({"observation": torch.zeros(3, 4)}, "observation has 5 numbers was given 4"),
    ):
        with pytest.raises(ValueError, match=message):
            net.act({**now, **changed})
    for wrong in ({"critics": -1}, {"goal_dim": -1}):
        with pytest.raises(ValueError, match="expected at least 0"):
            GoalPolicy(5, 2, **wrong)
