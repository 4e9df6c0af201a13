"""Image encoders: one frame to one vector, and a frame with its neighbours to one vector."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


def to_planes(frames):
    """uint8 [b t h w c] -> float [(b t) c h w] in [-0.5, 0.5], channels-last in memory."""
    planes = rearrange(frames, "b t h w c -> (b t) c h w").contiguous(memory_format=torch.channels_last)
    return planes.float().div_(255).sub_(0.5)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the branch starting at zero."""

    def __init__(self, channels):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv1.weight)

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv0(F.relu(x))))


class ConvEncoder(nn.Module):
    """uint8 [b t h w c] -> [b t d]: strided convolutions with one residual block per scale after the first two."""

    def __init__(self, height, width, channels=(16, 32, 64, 64), out=256):
        super().__init__()
        layers, previous = [], 3
        for scale, c in enumerate(channels):
            layers += [nn.Conv2d(previous, c, 5 if scale == 0 else 3, 2, padding=2 if scale == 0 else 1), nn.ReLU()]
            layers += [Residual(c), nn.ReLU()] if scale >= 2 else []
            previous = c
        self.net = nn.Sequential(*layers)
        rows, columns = out_size(height, len(channels)), out_size(width, len(channels))
        self.out = nn.Sequential(nn.Linear(previous * rows * columns, out), nn.LayerNorm(out))

    def forward(self, frames):
        maps = self.net(to_planes(frames))
        features = self.out(rearrange(maps, "bt c h w -> bt (c h w)"))
        return rearrange(features, "(b t) d -> b t d", b=frames.shape[0])


def out_size(length, scales):
    """Length of an axis after `scales` stride-2 convolutions with half padding."""
    for _ in range(scales):
        length = (length + 1) // 2
    return length


class Correlation(nn.Module):
    """Local correlation of two feature maps [b c h w]: how well each place matches its neighbours in the other map.

    Returns [b (2 dy + 1)(2 dx + 1) h w], the cost volume of FlowNet (arXiv:1504.06852) as row-by-row matrix products.
    A camera turn is a shift of the picture, which this makes visible without being learned.
    """

    def __init__(self, dy, dx):
        super().__init__()
        self.dy, self.dx = dy, dx

    def forward(self, now, then):
        h, w = now.shape[2:]
        now = rearrange(now, "b c h w -> h b w c").contiguous()  # rows outermost: shifting rows is a slice, not a copy
        then = F.pad(rearrange(then, "b c h w -> h b c w"), (self.dx, self.dx, 0, 0, 0, 0, self.dy, self.dy))
        bands = []
        for dy in range(2 * self.dy + 1):
            full = now @ then[dy : dy + h]  # h b w w+2dx
            flat = F.pad(rearrange(full, "h b w k -> h b (w k)"), (0, w))
            skewed = rearrange(flat, "h b (w k) -> h b w k", w=w)  # row i starts at its own column i
            bands.append(skewed[..., : 2 * self.dx + 1])
        return rearrange(torch.cat(bands, -1), "h b w k -> b k h w")


class MotionEncoder(nn.Module):
    """A frame with its neighbours t-1 and t+1 -> one vector, uint8 [b t h w c] -> [b t d]; beyond the ends: zeros.

    Each frame is convolved once at full resolution. It meets the next one by correlation, at half the columns and a
    quarter of the rows (`dx`, `dy`: its reach there, in cells), and both neighbours at a quarter of both, channel by
    channel. The correlation, averaged over a coarse grid, also goes straight to the output: a camera turn is the same
    shift everywhere, a step forward pulls the cells apart.
    """

    reach = 1
    grid = (2, 4)

    def __init__(self, height, width, channels=(16, 32, 32, 64, 96), out=256, dy=1, dx=6):
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.first = nn.Conv2d(3, c0, 5, 2, padding=2)
        self.second = nn.Conv2d(c0, c1, 3, 2, padding=1)
        self.match = nn.Conv2d(c0, c1, 3, (2, 1), padding=1)
        self.fuse = nn.Conv2d(c1, 3 * c2, 3, padding=1)  # for itself, its successor, its predecessor
        self.correlation = Correlation(dy, dx)
        displacements = (2 * dy + 1) * (2 * dx + 1)
        self.flow = nn.Conv2d(displacements, c2, (1, 3), (1, 2), padding=(0, 1))
        self.tail = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c2, c3, 3, 2, padding=1), Residual(c3), nn.ReLU(),
            nn.Conv2d(c3, c4, 3, 2, padding=1), Residual(c4), nn.ReLU(),
        )  # fmt: skip
        flat = c4 * out_size(height, 4) * out_size(width, 4)
        self.out = nn.Sequential(nn.Linear(flat + displacements * self.grid[0] * self.grid[1], out), nn.LayerNorm(out))

    def forward(self, frames):
        b, t = frames.shape[:2]
        half = F.relu(self.first(to_planes(frames)))  # (b t) c h w
        volume = self._volume(self.match(half), t)
        now, before, after = self.fuse(F.relu(self.second(half))).chunk(3, 1)
        maps = self.tail(now + shift(before, t, 1) + shift(after, t, -1) + self.flow(volume))
        coarse = F.adaptive_avg_pool2d(volume, self.grid)
        parts = [rearrange(x, "bt c h w -> bt (c h w)") for x in (maps, coarse)]
        return rearrange(self.out(torch.cat(parts, -1)), "(b t) d -> b t d", b=b)

    def _volume(self, maps, t):
        """How well each place fits its neighbourhood in the next frame, spread to about unit variance."""
        unit = F.normalize(F.instance_norm(maps), dim=1)  # without the mean, or every place matches every other
        return self.correlation(unit, shift(unit, t, -1)) * 3


def shift(maps, t, by):
    """Maps [(b t) c h w] moved along time by `by` frames inside windows of t, zeros coming in."""
    moved = torch.zeros_like(maps)
    source = rearrange(maps, "(b t) c h w -> b t c h w", t=t)
    target = rearrange(moved, "(b t) c h w -> b t c h w", t=t)
    if by > 0:
        target[:, by:] = source[:, :-by]
    else:
        target[:, :by] = source[:, -by:]
    return moved
