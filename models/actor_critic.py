"""The critic beside a policy: a value head whose predictions live on a normalised scale."""

import torch
from einops import rearrange
from torch import nn


class EwmaNormaliser(nn.Module):
    """Running mean and variance of value targets, debiased (VPT release; the idea is PopArt's, arXiv:1602.07714).

    Keeps exponentially weighted averages of x and x^2 and of the constant 1; dividing by the last one removes the pull
    towards the initial zeros. The variance has a floor of 1e-2. Buffer names are those of the release.
    """

    def __init__(self, beta=0.99999, epsilon=1e-5, min_variance=1e-2):
        super().__init__()
        self.beta, self.epsilon, self.min_variance = beta, epsilon, min_variance
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_mean_sq", torch.zeros(1))
        self.register_buffer("debiasing_term", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, targets, mask=None):
        """Takes in one batch of raw targets [...], of which `mask` [...] marks the real ones."""
        targets = targets.float()[mask] if mask is not None else targets.float()
        if targets.numel():
            self.running_mean.lerp_(targets.mean(), 1 - self.beta)
            self.running_mean_sq.lerp_(targets.square().mean(), 1 - self.beta)
            self.debiasing_term.lerp_(torch.ones_like(self.debiasing_term), 1 - self.beta)

    def mean_and_std(self):
        """Of the targets seen so far, each [1]; before the first update mean 0 and the floor."""
        weight = self.debiasing_term.clamp(min=self.epsilon)
        mean = self.running_mean / weight
        variance = (self.running_mean_sq / weight - mean.square()).clamp(min=self.min_variance)
        return mean, variance.sqrt()

    def normalise(self, x):
        mean, std = self.mean_and_std()
        return (x.float() - mean) / std

    def denormalise(self, x):
        mean, std = self.mean_and_std()
        return x.float() * std + mean


class ValueHead(nn.Module):
    """Linear, zero-initialised value head [... d] -> [...] in normalised units.

    Train it by regression of `forward(latent)` on `normalise(targets)`, after `update(targets)` took them in;
    advantages need `value(latent)`, which is in the units of the returns.
    """

    def __init__(self, width, beta=0.99999):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.normalizer = EwmaNormaliser(beta)

    def forward(self, latent):
        return rearrange(self.linear(latent), "... 1 -> ...").float()

    def value(self, latent):
        return self.denormalise(self(latent))

    def normalise(self, values):
        return self.normalizer.normalise(values)

    def denormalise(self, values):
        return self.normalizer.denormalise(values)

    def update(self, targets, mask=None):
        self.normalizer.update(targets, mask)
