"""Critics of single steps: several MLPs over (state, action), computed together."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.mlp import EnsembleLinear


class EnsembleCritic(nn.Module):
    """Q_1 ... Q_e: state [... s], action [... a] -> [e ...].

    `norm`: layer norm, without parameters, before every ReLU: it bounds what a critic says of actions it never saw
    (RLPD, arXiv:2302.02948).
    """

    def __init__(self, state_dim, action_dim, members=2, width=256, layers=2, norm=True):
        super().__init__()
        sizes = [state_dim + action_dim, *[width] * layers]
        self.hidden = nn.ModuleList(EnsembleLinear(members, *pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.out = EnsembleLinear(members, sizes[-1], 1)
        self.members, self.norm = members, norm

    def forward(self, state, action):
        x = torch.cat([state, action], -1)
        leading = x.shape[:-1]
        x = rearrange(x, "... i -> (...) i").expand(self.members, -1, -1)  # e m i
        for layer in self.hidden:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.norm else x)
        return self.out(x).reshape(self.members, *leading)
