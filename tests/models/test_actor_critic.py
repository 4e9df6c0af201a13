"""The value head and its running normaliser, against the sums written out."""

import pytest
import torch

from models.actor_critic import EwmaNormaliser, ValueHead


def test_statistics_equal_a_direct_ewma():
    """m <- beta m + (1 - beta) mean(x), likewise of x^2 and of 1, each divided by the last."""
    beta, batches = 0.9, torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double() * 3 + 2
    mean = square = weight = 0.0
    normaliser = EwmaNormaliser(beta)
    for batch in batches:
        mean = beta * mean + (1 - beta) * batch.mean().item()
        square = beta * square + (1 - beta) * (batch**2).mean().item()
        weight = beta * weight + (1 - beta)
        normaliser.update(batch)
    assert weight == pytest.approx(1 - beta**5)
    got_mean, got_std = normaliser.mean_and_std()
    assert got_mean.item() == pytest.approx(mean / weight, rel=1e-5)
    assert got_std.item() == pytest.approx((square / weight - (mean / weight) ** 2) ** 0.5, rel=1e-4)


def test_first_batch_is_normalised_by_itself():
    """Debiasing: with beta 0.99999 one update already gives the batch's own mean and spread."""
    normaliser = EwmaNormaliser()
    targets = torch.tensor([1.0, 3.0])  # mean 2, variance 1
    normaliser.update(targets)
    torch.testing.assert_close(normaliser.normalise(targets), torch.tensor([-1.0, 1.0]), atol=1e-3, rtol=0)


def test_constant_targets_normalise_to_zero_with_the_variance_floor():
    head = ValueHead(4)
    for _ in range(3):
        head.update(torch.full((2, 5), 7.0))
    assert head.normalise(torch.tensor([7.0])).item() == pytest.approx(0, abs=1e-3)
    assert head.normalise(torch.tensor([7.1])).item() == pytest.approx(1, abs=1e-2)  # std is floored at 0.1


def test_denormalise_undoes_normalise():
    head = ValueHead(4, beta=0.99)
    head.update(torch.randn(100) * 20 + 5)
    x = torch.linspace(-50, 50, 11)
    torch.testing.assert_close(head.denormalise(head.normalise(x)), x)


def test_masked_targets_do_not_count():
    one, other = EwmaNormaliser(), EwmaNormaliser()
    one.update(torch.tensor([[1.0, 2.0, 1e9]]), torch.tensor([[True, True, False]]))
    other.update(torch.tensor([1.0, 2.0]))
    assert torch.equal(one.running_mean, other.running_mean)
    one.update(torch.tensor([5.0]), torch.tensor([False]))  # nothing real: nothing changes
    assert torch.equal(one.debiasing_term, other.debiasing_term)


def test_value_starts_at_the_mean_of_the_targets():
    """Zero-initialised, so before any step every prediction is 0 in normalised units."""
    head = ValueHead(4, beta=0.5)
    latent = torch.randn(2, 3, 4)
    assert head(latent).shape == (2, 3)
    assert (head(latent) == 0).all()
    assert (head.value(latent) == 0).all()
    head.update(torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(head.value(latent), torch.full((2, 3), 5.0))


def test_statistics_are_buffers_under_the_release_names():
    head = ValueHead(4)
    assert {name: tuple(v.shape) for name, v in head.state_dict().items()} == {
        "linear.weight": (1, 4), "linear.bias": (1,), "normalizer.running_mean": (1,),
        "normalizer.running_mean_sq": (1,), "normalizer.debiasing_term": (),
    }  # fmt: skip
    assert len(list(head.parameters())) == 2
    head.update(torch.ones(3, requires_grad=True))
    assert not head.normalizer.running_mean.requires_grad
