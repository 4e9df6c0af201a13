"""Actions as bins, and the distribution over actions whose dimensions are decoded one after another."""

from dataclasses import dataclass, field
from typing import Any

import torch

from models.heads import Categorical


def to_bins(action, n):
    """[-1, 1] -> int64 0..n-1, n equal bins; what lies outside goes to the first or last."""
    return ((action + 1) * (n / 2)).floor().long().clamp(0, n - 1)


def from_bins(bins, n):
    """Centres of bins, float32 in [-1, 1]: at most 1 / n from what was binned, and unbiased.

    L2M's release takes the left edges, which are 1 / n too small on average, and nothing above 1 - 2 / n can be said.
    """
    return (bins.float() + 0.5) * (2 / n) - 1


@dataclass
class Autoregressive:
    """p(bins [b a]) = p(bin_1) p(bin_2 | bin_1) ...: the trunk is run for one token more per dimension, as it is asked.

    latent [b d]: at the token that the first dimension is read at; memory: the trunk's, up to that token; visible: bool
    [b n] which of those tokens belong to the row, None = all; time [b d]: embedding of the step.
    """

    policy: Any  # has `action_dim`, `distribution(latent)` and `action_token(bins, time)`
    trunk: Any  # GPT's forward
    latent: torch.Tensor
    memory: Any
    time: torch.Tensor
    visible: torch.Tensor | None = field(default=None)

    def mode(self):
        """int64 [b a], each dimension the most probable one given those before it."""
        return self._decode(Categorical.mode)

    def sample(self, generator=None, temperature=1.0):
        """int64 [b a]; drawn on the CPU, so that a seed means the same on every device."""
        return self._decode(lambda one: Categorical(one.log_probs.cpu()).sample(generator, temperature))

    def cpu(self):
        return self

    def _decode(self, pick):
        latent, memory, visible, chosen = self.latent, self.memory, self.visible, []
        while True:
            chosen.append(pick(self.policy.distribution(latent)).to(latent.device))
            if len(chosen) == self.policy.action_dim:
                return torch.stack(chosen, -1)  # b a
            if visible is not None:
                visible = torch.cat([visible, torch.ones_like(visible[:, :1])], 1)
            token = self.policy.action_token(chosen[-1], self.time)[:, None]  # b 1 d
            y, memory = self.trunk(token, memory=memory, visible=visible)
            latent = y[:, 0]
