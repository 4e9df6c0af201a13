"""Frozen image embeddings: uint8 [t h w c] frames -> float32 [t d]. One is always there, CLIP is used where it is.

Both see the whole frame squashed to a square: a centre crop would cut off the corners, where overlays are.
"""

import hashlib

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch.nn import functional as F

from pipelines.schema import DataError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's own input


class Statistics:
    """Colours and edges per cell of a grid, without any learned weight.

    Per cell of a `grid` x `grid` grid: mean and spread of each colour channel, a histogram of edge directions weighted
    by edge strength (the idea of HOG), the share of pixels on strong horizontal or vertical edges (boxes and letters),
    and the mean colour saturation; for the frame: a histogram of every channel. Square roots tame the histograms.
    """

    def __init__(self, size=64, grid=8, directions=8, levels=8):
        if size % grid:
            raise DataError(f"the embedding's size {size} is no multiple of its grid {grid}")
        self.size, self.grid, self.directions, self.levels = size, grid, directions, levels
        self.name = f"statistics-{size}-{grid}-{directions}-{levels}"

    def __call__(self, frames):
        return np.concatenate([self._embed(frames[i : i + 64]) for i in range(0, len(frames), 64)])

    @torch.inference_mode()
    def _embed(self, frames):
        x = rearrange(torch.from_numpy(np.array(frames, np.uint8)), "t h w c -> t c h w").float() / 255
        x = F.interpolate(x, (self.size, self.size), mode="area")
        parts = [self._colours(x), self._edges(x.mean(1)), self._histogram(x)]
        return torch.cat([rearrange(p, "t ... -> t (...)") for p in parts], 1).numpy()

    def _cells(self, x):
        return reduce(x, "t c (y a) (x b) -> t c y x", "mean", y=self.grid, x=self.grid)

    def _colours(self, x):
        mean = self._cells(x)
        spread = (self._cells(x * x) - mean * mean).clamp_min(0).sqrt()
        saturation = self._cells(x.amax(1, keepdim=True) - x.amin(1, keepdim=True))
        return torch.cat([mean, spread, saturation], 1)  # t 7 y x

    def _edges(self, grey):
        padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        strength = (dx * dx + dy * dy).sqrt()  # t h w
        direction = torch.remainder(torch.atan2(dy, dx), torch.pi) * (self.directions / torch.pi)
        direction = direction.round().long() % self.directions
        one_hot = strength.new_zeros(len(grey), self.directions, *grey.shape[1:])
        per_direction = one_hot.scatter_(1, direction[:, None], strength[:, None])  # t directions h w
        straight = torch.stack([dx.abs() > 0.25 + 2 * dy.abs(), dy.abs() > 0.25 + 2 * dx.abs()], 1).float()
        return torch.cat([self._cells(per_direction).sqrt(), self._cells(straight)], 1)

    def _histogram(self, x):
        t, c = x.shape[:2]
        level = rearrange((x * self.levels).long().clamp_max(self.levels - 1), "t c h w -> t c (h w)")
        histogram = x.new_zeros(t, c, self.levels)
        histogram.scatter_add_(2, level, torch.ones_like(level, dtype=x.dtype))
        return (histogram / level.shape[2]).sqrt()  # t c levels


class Clip:
    """The image features of a CLIP model in transformers' format, from a local folder or a hub name.

    VPT used CLIP RN50x64, which exists only in OpenAI's own format; any `CLIPModel` takes its place here.
    """

    def __init__(self, model, batch=64, device="cpu"):
        from transformers import CLIPVisionModelWithProjection

        try:
            self.net = CLIPVisionModelWithProjection.from_pretrained(model, use_safetensors=True).eval().to(device)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"no CLIP model could be loaded from {str(model)!r} ({' '.join(str(error).split())[:200]});"
                " give a local folder with config.json and model.safetensors, or use embedding=statistics"
            ) from error
        self.batch, self.device = batch, device
        self.side = self.net.config.image_size
        self.name = f"clip-{_weights_hash(self.net)}"

    @torch.inference_mode()
    def __call__(self, frames):
        return np.concatenate([self._embed(frames[i : i + self.batch]) for i in range(0, len(frames), self.batch)])

    def _embed(self, frames):
        x = rearrange(torch.from_numpy(np.array(frames, np.uint8)).to(self.device), "t h w c -> t c h w").float() / 255
        x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (repeat(x.new_tensor(v), "c -> 1 c 1 1") for v in (CLIP_MEAN, CLIP_STD))
        features = self.net(pixel_values=(x - mean) / std).image_embeds
        return F.normalize(features, dim=-1).float().cpu().numpy()


def build(kind, clip_model=None):
    """`kind`: statistics | clip."""
    if kind == "statistics":
        return Statistics()
    if kind == "clip":
        if not clip_model:
            raise DataError("embedding=clip needs clip_model=<folder or hub name of a CLIPModel>")
        return Clip(clip_model)
    raise DataError(f"embedding={kind!r} is unknown; choose statistics or clip")


def _weights_hash(net):
    """A content hash of the weights, so that a filter fitted on other features is refused."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
