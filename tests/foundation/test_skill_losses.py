"""Expectile, temporal distance and advantage-weighted regression against numbers worked by hand."""

import math

import pytest
import torch

from foundation.losses.awr import awr_loss, awr_weight
from foundation.losses.expectile import expectile_loss
from foundation.losses.temporal_distance import temporal_distance_loss


def row(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def test_expectile():
    assert expectile_loss(row(2, -2, 0), 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 4) / 3)
    difference = row(0.0, requires_grad=True)
    expectile_loss(difference + 0, 0.9).backward()
    assert difference.grad.item() == 0


def test_weights_are_cut_after_the_exponential():
    assert awr_weight(row(0, 0.1, 1, 1e4), 10, 100).tolist() == pytest.approx([1, math.e, 100, 100])
    log_prob, advantage = row(-1, -2, requires_grad=True), row(0.0, 0.1, requires_grad=True)
    loss = awr_loss(log_prob, advantage, 10.0)
    assert loss.item() == pytest.approx((1 + 2 * math.e) / 2)
    loss.backward()
    assert advantage.grad is None and log_prob.grad.tolist() == pytest.approx([-0.5, -math.e / 2])


def test_temporal_distance_by_hand():
    """Two members, three samples: a good step, a bad one, and one at its goal (A = +1e-3, on the side of tau)."""
    target_t = torch.stack([row(-4, -2, -1e-3), row(-6, -2, -1e-3)])
    target_tp1 = torch.stack([row(-3, -3, -5), row(-5, -4, -6)])
    value = torch.stack([row(-4, -3, -1e-3), row(-5, -1, -1e-3)]).requires_grad_()
    reached = torch.tensor([False, False, True])
    loss = temporal_distance_loss(value, target_t, target_tp1, reached, 0.5, 0.9)
    # A: -1 + .5 * -5 + 5 = 1.5; -1 + .5 * -4 + 2 = -1; 0 + 0 + 1e-3
    first = 0.9 * (-2.5 + 4) ** 2 + 0.1 * (-2.5 + 3) ** 2 + 0.9 * 1e-6
    second = 0.9 * (-3.5 + 5) ** 2 + 0.1 * (-3 + 1) ** 2 + 0.9 * 1e-6
    assert loss.item() == pytest.approx((first + second) / 3)
    loss.backward()
    assert value.grad[0].tolist() == pytest.approx([-0.9 * 2 * 1.5 / 3, -0.1 * 2 * 0.5 / 3, -0.9 * 2e-3 / 3])
