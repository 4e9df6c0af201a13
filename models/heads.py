"""Action heads and the distributions they return.

`Factored` is what an inverse-dynamics model says: independent keys and mouse axes.
`Joint` is what a policy says: one class for all keys together and, where that class moves the mouse, one camera class
(VPT, arXiv:2206.11795, the hierarchical action space).
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


@dataclass
class Factored:
    """Independent distributions per key and per mouse axis.

    key_log_probs [... k 2] (released, held); camera_log_probs [... 2 bins] (pitch, yaw). Both normalised.
    """

    key_log_probs: torch.Tensor
    camera_log_probs: torch.Tensor

    @classmethod
    def from_logits(cls, keys, camera):
        return cls(F.log_softmax(keys.float(), -1), F.log_softmax(camera.float(), -1))

    def log_prob(self, keys, bins):
        """keys int [... k], bins int [... 2] -> log-probability of the whole action [...]."""
        key_term = self.key_log_probs.gather(-1, keys.long()[..., None])[..., 0].sum(-1)
        camera_term = self.camera_log_probs.gather(-1, bins.long()[..., None])[..., 0].sum(-1)
        return key_term + camera_term

    @property
    def key_probabilities(self):
        return self.key_log_probs[..., 1].exp()  # ... k

    @property
    def camera_probabilities(self):
        return self.camera_log_probs.exp()  # ... 2 bins

    def mode(self):
        """Most probable (keys [... k], bins [... 2])."""
        return self.key_log_probs.argmax(-1), self.camera_log_probs.argmax(-1)


@dataclass
class Joint:
    """Hierarchical joint distribution over actions int64 [... 2] = (buttons class, camera class).

    buttons_log_probs [... k], camera_log_probs [... k'], camera_on bool [k]: whether a buttons class moves the mouse.
    The camera term counts only where it does; elsewhere the camera class is `camera_null`.
    """

    buttons_log_probs: torch.Tensor
    camera_log_probs: torch.Tensor
    camera_on: torch.Tensor
    camera_null: int

    def log_prob(self, action):
        """action int64 [... 2] -> [...]."""
        buttons, camera = action[..., 0], action[..., 1]
        buttons_term = self.buttons_log_probs.gather(-1, buttons[..., None])[..., 0]
        camera_term = self.camera_log_probs.gather(-1, camera[..., None])[..., 0]
        return buttons_term + torch.where(self.camera_on[buttons], camera_term, 0.0)

    def expected_log_prob(self, buttons_target, camera_target):
        """Cross-entropy with soft targets: buttons_target [... k], camera_target [... k'] -> [...].

        The camera term is weighted by the target's own probability that the mouse moves.
        """
        on = (buttons_target * self.camera_on).sum(-1)  # ...
        buttons_term = (buttons_target * self.buttons_log_probs).sum(-1)
        return buttons_term + on * (camera_target * self.camera_log_probs).sum(-1)

    def sample(self, generator=None, temperature=1.0):
        """int64 [... 2]; temperature 0 is `mode()`. The camera class is the null one where the mouse rests."""
        if temperature == 0:
            return self.mode()
        buttons = _categorical(self.buttons_log_probs / temperature, generator)
        camera = _categorical(self.camera_log_probs / temperature, generator)
        return self._pair(buttons, camera)

    def mode(self):
        """Greedy in each head, the camera given the chosen buttons."""
        return self._pair(self.buttons_log_probs.argmax(-1), self.camera_log_probs.argmax(-1))

    def _pair(self, buttons, camera):
        camera = torch.where(self.camera_on[buttons], camera, self.camera_null)
        return torch.stack([buttons, camera], -1)

    def entropy(self):
        """H(buttons) + P(mouse moves) H(camera), [...]."""
        buttons = -(self.buttons_log_probs.exp() * self.buttons_log_probs).sum(-1)
        camera = -(self.camera_log_probs.exp() * self.camera_log_probs).sum(-1)
        return buttons + self.on_probability() * camera

    def kl(self, other):
        """KL(self || other), exact for the hierarchy: KL(buttons) + P_self(mouse moves) KL(camera), [...]."""
        p, q = self.buttons_log_probs, other.buttons_log_probs
        camera_p, camera_q = self.camera_log_probs, other.camera_log_probs
        buttons = (p.exp() * (p - q)).sum(-1)
        camera = (camera_p.exp() * (camera_p - camera_q)).sum(-1)
        return buttons + self.on_probability() * camera

    def on_probability(self):
        return (self.buttons_log_probs.exp() * self.camera_on).sum(-1)

    def detach(self):
        return Joint(self.buttons_log_probs.detach(), self.camera_log_probs.detach(), self.camera_on, self.camera_null)


@dataclass
class Gaussian:
    """Independent normals: mean [... a], log_std [a]. Squared error is its log-probability at a fixed deviation."""

    mean: torch.Tensor
    log_std: torch.Tensor

    def log_prob(self, action):
        """action [... a] -> [...]"""
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, generator=None, temperature=1.0):
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + temperature * self.log_std.exp() * noise

    def mode(self):
        return self.mean

    def entropy(self):
        """[...]"""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).expand(self.mean.shape[:-1])

    def kl(self, other):
        """KL(self || other), [...]"""
        ratio = 2 * (self.log_std - other.log_std)
        distance = (self.mean - other.mean) ** 2 * (-2 * other.log_std).exp()
        return 0.5 * (ratio.exp() + distance - 1 - ratio).sum(-1)

    def detach(self):
        return Gaussian(self.mean.detach(), self.log_std.detach())

    def cpu(self):
        return Gaussian(self.mean.cpu(), self.log_std.cpu())


@dataclass
class Categorical:
    """log_probs [... n], normalised, over n classes."""

    log_probs: torch.Tensor

    @classmethod
    def from_logits(cls, logits):
        return cls(F.log_softmax(logits.float(), -1))

    def log_prob(self, action):
        """action int [...] -> [...]"""
        return self.log_probs.gather(-1, action.long()[..., None])[..., 0]

    def sample(self, generator=None, temperature=1.0):
        return self.mode() if temperature == 0 else _categorical(self.log_probs / temperature, generator)

    def mode(self):
        return self.log_probs.argmax(-1)

    def entropy(self):
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other):
        """KL(self || other), [...]"""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def detach(self):
        return Categorical(self.log_probs.detach())

    def cpu(self):
        return Categorical(self.log_probs.cpu())


def _categorical(log_probs, generator):
    """Gumbel-max sample over the last axis; `generator` makes it reproducible on its device.

    The clamps keep the noise finite, in [-3.8, 16]: a class 20 nats below the best one is never drawn.
    """
    uniform = torch.rand(log_probs.shape, generator=generator, device=log_probs.device, dtype=torch.float32)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    return (log_probs.float() + gumbel).argmax(-1)


class FactoredHead(nn.Module):
    """[... d] -> Factored over `n_keys` keys and two mouse axes of `n_bins` bins."""

    def __init__(self, width, n_keys, n_bins):
        super().__init__()
        self.n_keys, self.n_bins = n_keys, n_bins
        self.keys = nn.Linear(width, 2 * n_keys)
        self.camera = nn.Linear(width, 2 * n_bins)

    def forward(self, latent):
        keys = rearrange(self.keys(latent), "... (k two) -> ... k two", two=2)
        camera = rearrange(self.camera(latent), "... (two k) -> ... two k", two=2)
        return Factored.from_logits(keys, camera)


class JointHead(nn.Module):
    """[... d] -> Joint over `n_buttons` joint key classes and `n_camera` camera classes.

    `camera_on` lists, per buttons class, whether it moves the mouse; `camera_null` is the class of no motion.
    """

    def __init__(self, width, n_buttons, n_camera, camera_on, camera_null):
        super().__init__()
        self.buttons = nn.Linear(width, n_buttons)
        self.camera = nn.Linear(width, n_camera)
        self.camera_null = camera_null
        self.register_buffer("camera_on", torch.as_tensor(list(camera_on), dtype=torch.bool), persistent=False)

    def forward(self, latent):
        buttons = F.log_softmax(self.buttons(latent).float(), -1)
        camera = F.log_softmax(self.camera(latent).float(), -1)
        return Joint(buttons, camera, self.camera_on, self.camera_null)
