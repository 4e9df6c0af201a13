"""Critics of single steps: several MLPs over (state, action), computed together."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


class EnsembleLinear(nn.Module):
    """One linear layer per member, [e m i] -> [e m o], as one batched product; initialised as nn.Linear."""

    def __init__(self, members, inputs, outputs):
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x):
        return torch.baddbmm(self.bias, x, self.weight)  # e m o


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
