"""Factored and Joint distributions against numbers worked by hand."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from models.heads import Factored, FactoredHead, Joint, JointHead


def joint(buttons, camera, camera_on=(False, True, False), camera_null=1):
    """A Joint from probabilities, given as nested lists over [... k] and [... k']."""
    return Joint(torch.tensor(buttons).log(), torch.tensor(camera).log(), torch.tensor(camera_on), camera_null)


SMALL = joint([0.5, 0.3, 0.2], [0.25, 0.25, 0.5])
OTHER = joint([0.2, 0.6, 0.2], [0.5, 0.25, 0.25])


def random_joint(seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, generator=generator), torch.randn(4, 5, generator=generator)
    logits = [x.requires_grad_(requires_grad) for x in logits]
    return logits, Joint(*(F.log_softmax(x, -1) for x in logits), torch.tensor([False, True, True]), 2)


# Factored


def test_factored_log_prob_adds_keys_and_axes():
    keys = torch.tensor([[[0.9, 0.1], [0.25, 0.75]]]).log()  # two keys: P(held) .1 and .75
    camera = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]]).log()
    distribution = Factored(keys, camera)
    answer = distribution.log_prob(torch.tensor([[1, 0]]), torch.tensor([[2, 0]]))
    torch.testing.assert_close(answer, torch.tensor([log(0.1 * 0.25 * 0.3 * 0.6)]))
    torch.testing.assert_close(distribution.key_probabilities, torch.tensor([[0.1, 0.75]]))
    torch.testing.assert_close(distribution.camera_probabilities.sum(-1), torch.ones(1, 2))
    keys, bins = distribution.mode()
    assert (keys.tolist(), bins.tolist()) == ([[0, 1]], [[1, 0]])


def test_factored_accepts_stored_types():
    distribution = Factored.from_logits(torch.zeros(5, 6, 2), torch.zeros(5, 2, 11))
    answer = distribution.log_prob(torch.ones(5, 6, dtype=torch.uint8), torch.zeros(5, 2, dtype=torch.int32))
    torch.testing.assert_close(answer, torch.full((5,), -6 * log(2) - 2 * log(11)))


# Joint: one number each


def test_joint_log_prob_counts_the_camera_only_where_the_mouse_moves():
    actions = torch.tensor([[0, 0], [1, 0], [1, 2], [2, 2]])
    expected = torch.tensor([log(0.5), log(0.3 * 0.25), log(0.3 * 0.5), log(0.2)])
    many = joint([[0.5, 0.3, 0.2]] * 4, [[0.25, 0.25, 0.5]] * 4)
    torch.testing.assert_close(many.log_prob(actions), expected)


def test_joint_probabilities_of_its_reachable_actions_sum_to_one():
    reachable = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 1], [1, 2]])  # still classes pair with the null camera
    many = joint([[0.5, 0.3, 0.2]] * 5, [[0.25, 0.25, 0.5]] * 5)
    assert many.log_prob(reachable).exp().sum().item() == pytest.approx(1)


def test_joint_entropy():
    buttons = -(0.5 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.2))
    camera = -(0.5 * log(0.25) + 0.5 * log(0.5))
    assert SMALL.entropy().item() == pytest.approx(buttons + 0.3 * camera)
    assert SMALL.on_probability().item() == pytest.approx(0.3)


def test_joint_entropy_is_the_mean_surprise_of_samples():
    _, distribution = random_joint(0)
    generator = torch.Generator().manual_seed(0)
    surprise = torch.stack([-distribution.log_prob(distribution.sample(generator)) for _ in range(4000)])
    torch.testing.assert_close(surprise.mean(0), distribution.entropy(), atol=0.06, rtol=0)


def test_joint_kl_by_hand_and_its_direction():
    buttons = 0.5 * log(0.5 / 0.2) + 0.3 * log(0.3 / 0.6)
    camera = 0.25 * log(0.25 / 0.5) + 0.5 * log(0.5 / 0.25)
    assert SMALL.kl(OTHER).item() == pytest.approx(buttons + 0.3 * camera)
    backwards = 0.2 * log(0.2 / 0.5) + 0.6 * log(0.6 / 0.3)
    camera_backwards = 0.5 * log(0.5 / 0.25) + 0.25 * log(0.25 / 0.5)
    assert OTHER.kl(SMALL).item() == pytest.approx(backwards + 0.6 * camera_backwards)


def test_joint_kl_equals_the_sum_over_actions():
    reachable = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 1], [1, 2]])
    p = joint([[0.5, 0.3, 0.2]] * 5, [[0.25, 0.25, 0.5]] * 5).log_prob(reachable)
    q = joint([[0.2, 0.6, 0.2]] * 5, [[0.5, 0.25, 0.25]] * 5).log_prob(reachable)
    assert (p.exp() * (p - q)).sum().item() == pytest.approx(SMALL.kl(OTHER).item())


def test_joint_kl_to_itself_has_no_value_and_no_gradient():
    logits, distribution = random_joint(1, requires_grad=True)
    for kl in (distribution.kl(distribution.detach()), distribution.detach().kl(distribution)):
        assert kl.abs().max() < 1e-6
        for gradient in torch.autograd.grad(kl.sum(), logits, retain_graph=True):
            assert gradient.abs().max() < 1e-6
    _, other = random_joint(2)
    assert (distribution.kl(other) > 0).all()


def test_detach_cuts_the_graph():
    logits, distribution = random_joint(1, requires_grad=True)
    assert not distribution.detach().buttons_log_probs.requires_grad
    assert all(x.requires_grad for x in logits)


# soft targets


def test_expected_log_prob_of_one_hot_targets_is_log_prob():
    _, distribution = random_joint(3)
    action = torch.tensor([[0, 2], [1, 0], [2, 4], [1, 3]])
    buttons, camera = F.one_hot(action[:, 0], 3).float(), F.one_hot(action[:, 1], 5).float()
    torch.testing.assert_close(distribution.expected_log_prob(buttons, camera), distribution.log_prob(action))


def test_expected_log_prob_by_hand():
    buttons, camera = torch.tensor([0.1, 0.8, 0.1]), torch.tensor([0.5, 0.0, 0.5])
    expected = 0.1 * log(0.5) + 0.8 * log(0.3) + 0.1 * log(0.2) + 0.8 * 0.5 * (log(0.25) + log(0.5))
    assert SMALL.expected_log_prob(buttons, camera).item() == pytest.approx(expected)


def test_expected_log_prob_is_largest_at_the_target():
    """Gibbs: minus the cross-entropy is at most minus the entropy, with equality for the target's own distribution."""
    own = SMALL.expected_log_prob(SMALL.buttons_log_probs.exp(), SMALL.camera_log_probs.exp())
    assert own.item() == pytest.approx(-SMALL.entropy().item())
    assert OTHER.expected_log_prob(SMALL.buttons_log_probs.exp(), SMALL.camera_log_probs.exp()) < own


# acting


def test_mode_rests_the_mouse_where_the_class_says_so():
    assert SMALL.mode().tolist() == [0, 1]  # the camera's own mode is 2
    assert OTHER.mode().tolist() == [1, 0]


def test_sampling_frequencies():
    n = 20_000
    many = joint([[0.5, 0.3, 0.2]] * n, [[0.25, 0.25, 0.5]] * n)
    action = many.sample(torch.Generator().manual_seed(0))
    frequency = torch.bincount(action[:, 0] * 3 + action[:, 1], minlength=9) / n
    expected = torch.tensor([0, 0.5, 0, 0.075, 0.075, 0.15, 0, 0.2, 0])
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)


def test_temperature_sharpens_and_flattens():
    many = joint([[0.5, 0.3, 0.2]] * 5000, [[0.25, 0.25, 0.5]] * 5000)
    cold = many.sample(torch.Generator().manual_seed(0), temperature=0.02)
    assert (cold == torch.tensor([0, 1])).all()
    hot = many.sample(torch.Generator().manual_seed(0), temperature=1e6)
    torch.testing.assert_close(torch.bincount(hot[:, 0]) / 5000, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    assert torch.equal(many.sample(temperature=0), many.mode())
    half = many.sample(torch.Generator().manual_seed(0), temperature=0.5)  # squares the probabilities
    torch.testing.assert_close((half[:, 0] == 0).float().mean(), torch.tensor(0.25 / 0.38), atol=0.03, rtol=0)


def test_sampling_depends_on_the_generator_alone():
    _, distribution = random_joint(4)
    first = distribution.sample(torch.Generator().manual_seed(7))
    torch.rand(3)
    assert torch.equal(first, distribution.sample(torch.Generator().manual_seed(7)))


# heads


def test_factored_head_shapes_and_normalisation():
    distribution = FactoredHead(8, 6, 11)(torch.randn(2, 3, 8))
    assert (distribution.key_log_probs.shape, distribution.camera_log_probs.shape) == ((2, 3, 6, 2), (2, 3, 2, 11))
    torch.testing.assert_close(distribution.camera_probabilities.sum(-1), torch.ones(2, 3, 2))


def test_joint_head_under_bf16_still_speaks_fp32():
    head = JointHead(8, 6, 9, [False, True] * 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        distribution = head(torch.randn(2, 8))
    assert distribution.buttons_log_probs.dtype == torch.float32
    torch.testing.assert_close(distribution.buttons_log_probs.exp().sum(-1), torch.ones(2))
    assert "camera_on" not in head.state_dict()  # belongs to the action spec, not to the weights


def test_masked_logits_do_not_poison_the_numbers():
    """A class ruled out by -100 on its logit keeps every quantity finite."""
    _, distribution = random_joint(5)
    logits = distribution.buttons_log_probs.clone()
    logits[:, 1] -= 100
    ruled = Joint(F.log_softmax(logits, -1), distribution.camera_log_probs, distribution.camera_on, 2)
    for value in (ruled.entropy(), ruled.kl(distribution), distribution.kl(ruled), ruled.on_probability()):
        assert torch.isfinite(value).all()
    assert (ruled.sample(torch.Generator().manual_seed(0))[:, 0] != 1).all()
