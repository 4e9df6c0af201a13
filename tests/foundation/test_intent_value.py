"""The ICVF loss against float64 equations written out here, and what may not receive a gradient."""

import numpy as np
import pytest
import torch

from foundation.losses.intent_value import intent_advantage, intent_value_loss

K, B, GAMMA, EXPECTILE = 2, 64, 0.99, 0.9


def drawn(seed=0):
    """Values as a training has them: of the network and, elsewhere, of its target; a third of the goals are reached."""
    rng = np.random.default_rng(seed)
    names = ("v_sgz", "t_ngz", "t_szz", "t_nzz")
    values = {name: -5 + 3 * rng.normal(size=(K, B)) for name in names}
    return values, rng.random(B) < 1 / 3, rng.random(B) < 1 / 3


def oracle(v, reached_goal, reached_intent, reduce="min", no_intent=False):
    """(loss, its derivative by V(s, s+, z)), member by member and row by row."""
    loss, gradient = 0.0, np.zeros((K, B))
    for b in range(B):
        r_z, m_z = (0.0, 0.0) if reached_intent[b] else (-1.0, 1.0)
        r, m = (0.0, 0.0) if reached_goal[b] else (-1.0, 1.0)
        following = {"min": min, "mean": lambda x: sum(x) / K}[reduce](v["t_nzz"][:, b].tolist())
        advantage = 0.0 if no_intent else r_z + GAMMA * m_z * following - v["t_szz"][:, b].mean()
        w = EXPECTILE if advantage >= 0 else 1 - EXPECTILE
        for k in range(K):
            error = r + GAMMA * m * v["t_ngz"][k, b] - v["v_sgz"][k, b]
            loss += w * error**2 / B
            gradient[k, b] = -2 * w * error / B
    return loss, gradient


def ours(v, reached_goal, reached_intent, reduce="min", no_intent=False):
    v = {name: torch.tensor(value, requires_grad=True) for name, value in v.items()}
    goal, intent = torch.from_numpy(reached_goal), torch.from_numpy(reached_intent)
    advantage = intent_advantage(v["t_szz"], v["t_nzz"], intent, GAMMA, reduce)
    advantage = torch.zeros_like(advantage) if no_intent else advantage
    loss = intent_value_loss(v["v_sgz"], v["t_ngz"], goal, advantage, GAMMA, EXPECTILE)
    loss.backward()
    assert all(v[name].grad is None for name in ("t_ngz", "t_szz", "t_nzz"))
    return loss.item(), v["v_sgz"].grad.numpy()


@pytest.mark.parametrize("options", [{}, {"reduce": "mean"}, {"no_intent": True}])
def test_loss_and_gradient_are_those_of_the_equations(options):
    expected, gradient = oracle(*drawn(), **options)
    loss, found = ours(*drawn(), **options)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-14)


def test_the_options_are_not_the_same():
    kinds = [{}, {"reduce": "mean"}, {"no_intent": True}]
    assert len({round(ours(*drawn(), **options)[0], 9) for options in kinds}) == 3


def test_by_hand():
    """Two members, one row. A = -1 + .5 min(-2, -4) + mean(3, 5) = 1, so w = .9; errors -1 + .5 * -2 + 1 = -1, -1."""
    reached = torch.tensor([False])
    towards_t, towards_tp1 = torch.tensor([[-3.0], [-5.0]]), torch.tensor([[-2.0], [-4.0]])
    advantage = intent_advantage(towards_t, towards_tp1, reached, 0.5)
    assert advantage.tolist() == [1.0]
    value, after = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-2.0], [-4.0]])
    assert intent_value_loss(value, after, reached, advantage, 0.5, 0.9).item() == pytest.approx(0.9 + 0.9)
    assert intent_value_loss(value, after, reached, -advantage, 0.5, 0.9).item() == pytest.approx(0.1 + 0.1)
    # an advantage of exactly 0 is on the side of expectile; a reached outcome forgets what follows
    assert intent_value_loss(value, after, ~reached, 0 * advantage, 0.5, 0.9).item() == pytest.approx(0.9 * (1 + 4))
