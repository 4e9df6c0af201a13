"""Intention-conditioned value functions (ICVF, Ghosh et al. 2023, arXiv:2304.04782): what leads where, without actions.

V(s, s+, z) says how soon the outcome s+ is reached from s by someone who is on the way to z:

    V(s, s+, z) = < A(T(psi(z)) * phi(s)), B(T(psi(z)) * psi(s+)) >        (* elementwise)

phi(s) is the representation that others start from. All of it exists `members` times.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.frame_encoders import FrameEncoder
from models.hilbert import distance
from models.mlp import EnsembleLinear, EnsembleMLP

ENCODER = "encoder.0."  # keys of the weights that begin so are those of a `FrameEncoder`: the one of phi's member 0
SHARING = ("shared", "members")


class Icvf(nn.Module):
    """value(observation, outcome, intent) -> [k b]; phi(observation) -> [k b d]; k members.

    Observations are float vectors [b s] (encoder="none") or uint8 frames [b h w c] (encoder="impala" or "resnet", see
    `models.frame_encoders`), for s, s+ and z alike; encoders: "shared" by the members, or one each ("members").
    head: "multilinear", as above; "monolithic" is one MLP of (s, s+, z), which has no phi; "hilbert" is HILP's
    -||phi(s) - phi(s+)|| (arXiv:2402.15567), for data whose outcomes are the intents. layers: of every MLP, each `dim`
    wide and followed by a ReLU, the last one too, but for hilbert, which has HILP's layers and a linear one after them.
    norm: layer norm after every hidden layer, which the release can have too; hilbert has it in any case.
    """

    def __init__(self, state_dim=None, height=None, width=None, dim=256, layers=2, members=2, head="multilinear",
                 norm=False, encoder="none", encoders="shared", channels=(16, 32, 32)):  # fmt: skip
        super().__init__()
        if head not in HEADS or encoders not in SHARING:
            raise ValueError(f"head={head!r}, encoders={encoders!r}: expected one of {list(HEADS)}, one of {SHARING}")
        self.state_dim, self.members = state_dim, members
        count = 0 if encoder == "none" else members if encoders == "members" else 1
        self.encoder = nn.ModuleList(FrameEncoder(encoder, height, width, channels) for _ in range(count))
        inputs = self.encoder[0].out if count else state_dim
        self.head = HEADS[head](members, inputs, dim, layers, norm)

    def encode(self, observation):
        """What the head sees: [b s] or uint8 [b h w c] -> [k b e]."""
        if self.encoder:
            features = torch.stack([encoder(observation) for encoder in self.encoder])
        else:
            self.check_vectors(observation)
            features = observation[None]
        return features.expand(self.members, -1, -1)

    def check_vectors(self, observation):
        if observation.ndim != 2 or observation.shape[1] != self.state_dim or not observation.is_floating_point():
            raise ValueError(
                f"observations are {observation.dtype} {list(observation.shape)}, this network takes float vectors"
                f" [b {self.state_dim}]; frames need encoder=impala or resnet"
            )

    def phi(self, observation):
        """The representation of every member, [k b d]; member 0 is the one to use alone."""
        if isinstance(self.head, Monolithic):
            raise ValueError("a monolithic value has no phi: train head=multilinear or hilbert, or use `encode`")
        return self.head.phi(self.encode(observation))

    def values(self, states, outcomes):
        """V(s, s+, z) of each of n states under each of m outcomes, the last of which is the intent z; lists of
        observations [b ...] -> [k n m b]. Every observation is encoded once."""
        features = self.encode(torch.cat([*states, *outcomes]))
        features = rearrange(features, "k (n b) e -> k n b e", n=len(states) + len(outcomes))
        return self.head(features[:, : len(states)], features[:, len(states) :])

    def forward(self, observation, outcome, intent):
        """V(s, s+, z), [k b]."""
        return self.values([observation], [outcome, intent])[:, 0, 0]


class Multilinear(nn.Module):
    """The value of the paper. The intent goes through the same psi as outcomes; T is a vector that stands for a matrix;
    A and B, with bias, belong to every z."""

    def __init__(self, members, inputs, dim, layers, norm):
        super().__init__()
        self.phi = Activated(members, inputs, dim, layers, norm)
        self.psi = Activated(members, inputs, dim, layers, norm)
        self.transform = Activated(members, dim, dim, layers, norm)
        self.matrix_a, self.matrix_b = (EnsembleLinear(members, dim, dim).scaled() for _ in range(2))

    def forward(self, states, outcomes):
        """Features [k n b e], [k m b e] -> [k n m b]; the last outcome is the intent."""
        psi = on_rows(self.psi, outcomes)  # k m b d
        t = self.transform(psi[:, -1])[:, None]  # k 1 b d
        left = on_rows(self.matrix_a, t * on_rows(self.phi, states))  # k n b d
        right = on_rows(self.matrix_b, t * psi)  # k m b d
        return (at_least_float(left[:, :, None]) * at_least_float(right[:, None])).sum(-1)  # k n m b


class Monolithic(nn.Module):
    """V as one MLP of s, s+ and z."""

    def __init__(self, members, inputs, dim, layers, norm):
        super().__init__()
        self.net = EnsembleMLP(members, 3 * inputs, 1, dim, layers, "relu", norm)

    def forward(self, states, outcomes):
        """As that of `Multilinear`."""
        shape = (states.shape[0], states.shape[1], *outcomes.shape[1:])  # k n m b e
        parts = (states[:, :, None], outcomes[:, None], outcomes[:, None, -1:])
        x = rearrange([part.expand(shape) for part in parts], "three k n m b e -> k (n m b) (three e)")
        return at_least_float(self.net(x)).reshape(shape[:-1])


class Distances(nn.Module):
    """V = -||phi(s) - phi(s+)||, whoever is on the way to wherever: HILP's value of a goal s+ (arXiv:2402.15567)."""

    def __init__(self, members, inputs, dim, layers, norm):
        super().__init__()
        self.phi = EnsembleMLP(members, inputs, dim, dim, layers)

    def forward(self, states, outcomes):
        """As that of `Multilinear`."""
        left, right = (at_least_float(on_rows(self.phi, x)) for x in (states, outcomes))  # k n b d, k m b d
        return -distance(left[:, :, None], right[:, None])


class Activated(EnsembleMLP):
    """MLPs with a ReLU after every layer, the last included: [k b i] -> [k b d]."""

    def __init__(self, members, inputs, dim, layers, norm):
        super().__init__(members, inputs, dim, dim, layers - 1, "relu", norm)

    def forward(self, x):
        return F.relu(super().forward(x))


HEADS = {"multilinear": Multilinear, "monolithic": Monolithic, "hilbert": Distances}


def on_rows(layer, x):
    """A layer of [k b i] on [k n b i]."""
    y = layer(rearrange(x, "k n b i -> k (n b) i"))
    return rearrange(y, "k (n b) d -> k n b d", n=x.shape[1])


def at_least_float(x):
    """Values are kept in fp32 where the products that make them are not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
