"""Hilbert representations (HILP, Park et al. 2024, arXiv:2402.15567): states as points whose distance is time.

`Hilbert` embeds states and says how far goals are; `HilbertPolicy` is told a direction of that space, a skill, and goes
there. A goal becomes the skill phi(g) - phi(s), normalised; a reward that of its regression on features.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.goal_policy import ConditionedPolicy
from models.mlp import EnsembleLinear, EnsembleMLP, precise

METRICS = ("l2", "asymmetric_l2", "inner", "icvf", "quasimetric")
FEATURES = ("difference", "state", "centred")
MEAN_RATE = 0.005  # of the running mean of latents, per batch


class Hilbert(nn.Module):
    """phi_1 ... phi_e and V_k(s, g), minus a number of steps; all that follows the training of phi uses phi_1.

    metric: V(s, g) =
        l2             -||phi(s) - phi(g)||, the paper's: symmetric, at most -1e-3
        asymmetric_l2  -||phi(s) - psi(g)||, psi a learned linear map of phi: a goal is not what a state is
        inner          <phi(s), psi(g)> (arXiv:2510.06714)
        icvf           <A(T * phi(s)), B(T * phi(g))>, T of phi(g): ICVF's form, goal and intent being one (2304.04782)
        quasimetric    -(||x - x'|| + max relu(y - y')), x, y the halves of phi(s), x', y' of phi(g): MRN (2208.08133)
    features: what a skill z is multiplied with to be rewarded, <feature, z>:
        difference     phi(s') - phi(s), as for goals
        state          phi(s')
        centred        phi(s') - mean, a running mean of all latents, as for rewards
    encoder: a module that makes `out` numbers of a state, such as models.vision.PictureEncoder.
    """

    def __init__(self, state_dim, latent_dim=32, width=512, layers=3, members=2, metric="l2", features="difference",
                 encoder=None):  # fmt: skip
        super().__init__()
        for name, value, options in (("metric", metric, METRICS), ("features", features, FEATURES)):
            if value not in options:
                raise ValueError(f"{name}={value!r}: expected one of {list(options)}")
        if metric == "quasimetric" and latent_dim % 2:
            raise ValueError(f"metric=quasimetric takes halves of the latent; latent_dim={latent_dim} is odd")
        self.state_dim, self.latent_dim, self.metric, self.features = state_dim, latent_dim, metric, features
        self.encoder = encoder
        self.net = EnsembleMLP(members, getattr(encoder, "out", state_dim), latent_dim, width, layers)
        self.goal = identity(members, latent_dim) if metric in ("asymmetric_l2", "inner") else None
        self.intent = Intent(members, latent_dim) if metric == "icvf" else None
        if features == "centred":
            self.register_buffer("mean", torch.zeros(latent_dim))

    def forward(self, state, goal):
        """[b ... s], [b ... s] -> V [e b ...]"""
        return self.value(self.phi(state), self.phi(goal))

    def phi(self, state, member=None):
        """[b ... s] -> [e b ... z]; member: this one only, [1 b ... z]."""
        state = state if self.encoder is None else self.encoder(state)
        latent = self.net(rearrange(state, "... s -> (...) s"), member)
        return latent.unflatten(1, state.shape[:-1])

    def latent(self, state):
        """[b ... s] -> [b ... z], phi of the first member."""
        return self.phi(state, 0)[0]

    def value(self, phi_s, phi_g):
        """Latents [e ... z] -> V [e ...]"""
        if self.metric == "icvf":
            return self.intent(phi_s, phi_g)
        phi_g = phi_g if self.goal is None else precise(self.goal, phi_g)
        if self.metric == "inner":
            return (phi_s * phi_g).sum(-1)
        if self.metric != "quasimetric":
            return -distance(phi_s, phi_g)
        (x, y), (x_g, y_g) = phi_s.chunk(2, -1), phi_g.chunk(2, -1)
        return -distance(x, x_g) - F.relu(y - y_g).amax(-1)

    def feature(self, phi_t, phi_tp1):
        """Latents [... z] of a state and the one after -> [... z], see `features`."""
        if self.features == "difference":
            return phi_tp1 - phi_t
        return phi_tp1 if self.features == "state" else phi_tp1 - self.mean

    @torch.no_grad()
    def observe(self, latent):
        """Takes latents [b z] into the running mean, where there is one."""
        if self.features == "centred":
            self.mean.add_(latent.mean(0) - self.mean, alpha=MEAN_RATE)  # lerp_ has no batched form for torch.vmap


class Intent(nn.Module):
    """<A(T * x), B(T * y)>, T = relu(linear(y)), each member its own: latents [e ... z] -> [e ...]."""

    def __init__(self, members, latent_dim):
        super().__init__()
        self.t, self.a, self.b = (EnsembleLinear(members, latent_dim, latent_dim).scaled() for _ in range(3))

    def forward(self, x, y):
        t = F.relu(precise(self.t, y))
        return (precise(self.a, t * x) * precise(self.b, t * y)).sum(-1)


class HilbertPolicy(ConditionedPolicy):
    """Told a skill z, as `condition`; beside its actor and values it holds the `representation` that z speaks of."""

    def __init__(self, state_dim, action_dim=1, n_actions=None, latent_dim=32, width=512, layers=3, members=2,
                 metric="l2", features="difference", encoder=None):  # fmt: skip
        super().__init__()
        self.latent_dim = latent_dim
        self.representation = Hilbert(state_dim, latent_dim, width, layers, members, metric, features, encoder)
        self.build(state_dim, action_dim, n_actions, latent_dim, width, layers)


def distance(x, y):
    """sqrt(max(||x - y||^2, 1e-6)) over the last axis: at least 1e-3, without a gradient there."""
    return (x - y).square().sum(-1).clamp(min=1e-6).sqrt()


def identity(members, size):
    """An EnsembleLinear that changes nothing yet."""
    linear = EnsembleLinear(members, size, size)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(size))
    return linear
