"""Clip-consistent augmentation: one random draw per window, the same for all of its frames.

VPT (arXiv:2206.11795, appendix) draws colour and affine jitter once per clip; drawn per frame, an affine jitter would
look like mouse motion and destroy the very signal an inverse-dynamics model reads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F


@dataclass(frozen=True)
class ClipAugment:
    """uint8 frames [t h w c] -> the same, jittered. Defaults are VPT's; 0 switches a part off."""

    hue: float = 0.2  # shift of at most this, in radians of the colour plane
    saturation: float = 0.2  # factor in 1 -+ this, likewise below
    brightness: float = 0.2
    contrast: float = 0.2
    rotation: float = 2.0  # degrees
    scale: float = 0.02
    shear: float = 2.0  # degrees
    translation: float = 2.0  # pixels

    def __call__(self, frames, rng):
        x = torch.from_numpy(np.ascontiguousarray(frames)).float()
        x = self._affine(x, rng) if self.rotation or self.scale or self.shear or self.translation else x
        x = self._colour(x, rng)
        return x.clamp_(0, 255).round_().byte().numpy()

    def _colour(self, x, rng):
        """Hue, saturation and contrast are one 3x3 matrix and an offset on RGB."""
        angle, saturation, brightness, contrast = (
            rng.uniform(-1, 1) * a for a in (self.hue, self.saturation, self.brightness, self.contrast)
        )
        grey = np.array([0.299, 0.587, 0.114])
        axis = np.full(3, 3**-0.5)
        cross = np.cross(np.eye(3), axis)
        turn = np.eye(3) * np.cos(angle) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
        colour = (1 + saturation) * np.eye(3) - saturation * np.outer(np.ones(3), grey)
        matrix = torch.from_numpy((1 + brightness) * (1 + contrast) * colour @ turn).float()
        mean = x.mean() * (1 + brightness)
        return x @ matrix.T - contrast * mean  # t h w c

    def _affine(self, x, rng):
        h, w = x.shape[1:3]
        angle, shear = (np.deg2rad(rng.uniform(-a, a)) for a in (self.rotation, self.shear))
        scale = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.translation, self.translation, 2) * 2 / np.array([w, h])
        linear = np.array([[np.cos(angle), -np.sin(angle + shear)], [np.sin(angle), np.cos(angle + shear)]]) / scale
        aspect = np.array([[1, h / w], [w / h, 1]])  # rotation is in pixels, the grid in units of half sizes
        theta = torch.from_numpy(np.concatenate([linear * aspect, shift[:, None]], 1)).float()[None]
        grid = F.affine_grid(theta, (1, 3, h, w), align_corners=False)
        stacked = rearrange(x, "t h w c -> 1 (t c) h w")  # one grid for the whole clip
        warped = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
        return rearrange(warped, "1 (t c) h w -> t h w c", c=3)


def shifted(frames, offset, pad):
    """Frames moved by whole pixels, their edges repeated: uint8 [b h w c], int [b 2] (down, right) in [-pad, pad]."""
    h, w = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    starts = pad - np.asarray(offset)
    return np.stack([one[y : y + h, x : x + w] for one, (y, x) in zip(padded, starts, strict=True)])
