"""The RL losses against numbers worked by hand."""

import math

import pytest
import torch

from foundation.losses.advantage import gae
from foundation.losses.clipped_surrogate import clip_fraction, clipped_surrogate
from foundation.losses.kl_to_reference import anchor_weight, kl_to_reference
from foundation.losses.masked import masked_mean
from foundation.losses.value import explained_variance, value_loss
from models.heads import Joint


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def none(n):
    return torch.zeros(1, n, dtype=torch.bool)


def test_gae_without_ends():
    # delta = (1 + .5*2 - 1, 0 + .5*4 - 2) = (1, 0); A1 = 0, A0 = 1 + .5*.5*0
    advantage = gae(rows([1, 0]), rows([1, 2, 4]), none(2), none(2), 0.5, 0.5)
    assert torch.equal(advantage, rows([1, 0]))
    # lambda 1: A0 = r0 + g r1 + g^2 V2 - V0 = 1 + 0 + .25*4 - 1
    assert torch.allclose(gae(rows([1, 0]), rows([1, 2, 4]), none(2), none(2), 0.5, 1.0), rows([1, 0]))


def test_gae_termination_forgets_the_next_value():
    terminated = torch.tensor([[True, False]])
    # A0 = 1 + 0 - 1 = 0 whatever V1; A1 = 3 + .5*4 - 2 = 3 does not flow back
    assert torch.equal(gae(rows([1, 3]), rows([1, 2, 4]), terminated, none(2), 0.5, 1.0), rows([0, 3]))


def test_gae_truncation_bootstraps_and_stops_the_trace():
    truncated = torch.tensor([[True, False]])
    # A0 = 1 + .5*2 - 1 = 1 keeps V1 = 2; A1 = 3 does not flow back
    assert torch.equal(gae(rows([1, 3]), rows([1, 2, 4]), none(2), truncated, 0.5, 1.0), rows([1, 3]))


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 9.0]])
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0, 100.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    # min: 1.2, -1.5, .5, -.8 -> mean -.15
    loss = clipped_surrogate(ratio.log(), torch.zeros(1, 5), advantage, 0.2, mask)
    assert loss.item() == pytest.approx(0.15)
    assert clip_fraction(ratio.log(), torch.zeros(1, 5), 0.2, mask).item() == 1.0


def test_clipped_surrogate_gradient_vanishes_only_beyond_the_clip():
    log_prob = torch.tensor([[math.log(1.5), math.log(1.5), 0.0]], requires_grad=True)
    advantage, mask = torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    clipped_surrogate(log_prob, torch.zeros(1, 3), advantage, 0.2, mask).backward()
    assert torch.allclose(log_prob.grad, torch.tensor([[0.0, 0.5, -2 / 3]]))


def joint(buttons, camera, requires_grad=False):
    tensors = [torch.log_softmax(torch.tensor([x]), -1).requires_grad_(requires_grad) for x in (buttons, camera)]
    return Joint(*tensors, torch.tensor([False, True]), 0)


def test_kl_is_hierarchical_and_leaves_the_reference_alone():
    reference, policy = joint([[0.0, 0.0]], [[0.0, math.log(3.0)]], True), joint([[0.0, 0.0]], [[0.0, 0.0]], True)
    loss = kl_to_reference(reference, policy, torch.ones(1, 1, dtype=torch.bool))
    camera = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert loss.item() == pytest.approx(0.5 * camera, rel=1e-5)  # the mouse moves half the time
    loss.backward()
    assert reference.buttons_log_probs.grad is None
    assert reference.camera_log_probs.grad is None
    assert policy.camera_log_probs.grad.abs().sum() > 0


def test_anchor_weight_decays_per_iteration():
    assert anchor_weight(0.2, 0.9995, 0) == 0.2
    assert anchor_weight(0.2, 0.9995, 1000) == pytest.approx(0.2 * 0.9995**1000)


def test_value_loss_and_masked_mean():
    mask = torch.tensor([[True, True, False]])
    target = torch.tensor([[3.0, 2.0, 50.0]], requires_grad=True)
    value = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    loss = value_loss(value, target, mask)
    assert loss.item() == 2.0
    loss.backward()
    assert target.grad is None
    assert torch.equal(value.grad, torch.tensor([[-2.0, 0.0, 0.0]]))
    assert masked_mean(value, torch.zeros(1, 3, dtype=torch.bool)).item() == 0.0


def test_explained_variance():
    mask = torch.ones(1, 3, dtype=torch.bool)
    target = torch.tensor([[1.0, 2.0, 3.0]])
    assert explained_variance(target, target, mask) == 1.0
    assert explained_variance(torch.zeros(1, 3), target, mask) == 0.0
    assert math.isnan(explained_variance(target, torch.zeros(1, 3), mask))
