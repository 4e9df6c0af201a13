"""Image encoders: one frame to one vector, and a frame between its neighbours to one vector."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.flow import flow_to_next

PIXELS = 4.0  # of flow per unit of the network's input: about its spread in first-person play


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


class PictureEncoder(nn.Module):
    """A small picture and further numbers, float [... h*w*3 + extra], -> [... out]: DPT's for 25 x 25 (2306.14892).

    The picture is in [0, 1], row by row; two convolutions and a linear layer make `features` numbers of it, the further
    ones (a heading, say) stay as they are. `out` = features + extra.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as the release normalises

    def __init__(self, height=25, width=25, channels=16, features=8, extra=2):
        super().__init__()
        self.size, self.out = (height, width), features + extra
        self.net = nn.Sequential(nn.Conv2d(3, channels, 3, 2), nn.ReLU(), nn.Conv2d(channels, channels, 3), nn.ReLU())
        rows, columns = ((length - 3) // 2 - 1 for length in self.size)
        self.linear = nn.Linear(channels * rows * columns, features)
        for name in ("mean", "std"):
            self.register_buffer(f"colour_{name}", torch.tensor(getattr(self, name))[:, None, None], persistent=False)

    def forward(self, x):
        h, w = self.size
        picture, extra = x.flatten(0, -2).split((3 * h * w, x.shape[-1] - 3 * h * w), -1)
        planes = rearrange(picture, "b (h w c) -> b c h w", h=h, w=w)
        maps = self.net((planes - self.colour_mean) / self.colour_std)
        seen = F.relu(self.linear(rearrange(maps, "b c h w -> b (c h w)")))
        return torch.cat([seen, extra], -1).unflatten(0, x.shape[:-1])


def out_size(length, scales):
    """Length of an axis after `scales` stride-2 convolutions with half padding."""
    for _ in range(scales):
        length = (length + 1) // 2
    return length


class FlowEncoder(nn.Module):
    """A frame, what it is about to become and what it was -> one vector, uint8 [b t h w 3] -> [b t d].

    `stem` is a fixed function of the pixels, worth keeping: optical flow to the next frame, and the picture at half
    resolution. `fuse` is learned: convolutions over the flow to and from the frame, its colours and their change. The
    flow, averaged over a coarse grid, also goes straight to the output: a camera turn is the same shift everywhere, a
    step forward pulls the cells apart. Nothing is seen beyond the ends of the window.
    """

    reach = 1
    grid = (8, 10)

    def __init__(self, height, width, channels=(32, 48, 64), out=256):
        super().__init__()
        layers, previous = [], 10
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, 2, padding=1), nn.ReLU()]
            previous = c
        self.net = nn.Sequential(*layers)
        flat = previous * out_size(height // 2, len(channels)) * out_size(width // 2, len(channels))
        self.out = nn.Sequential(nn.Linear(flat + 4 * self.grid[0] * self.grid[1], out), nn.LayerNorm(out))

    def stem(self, frames):
        """uint8 [b t h w 3] -> float16 [b t h/2 w/2 5]: flow right and down in pixels, colours in [-0.5, 0.5]."""
        with torch.autocast(frames.device.type, enabled=False):  # it cannot join half-precision tensors
            colours = F.avg_pool2d(to_planes(frames), 2)
            colours = rearrange(colours, "(b t) c h w -> b t h w c", b=frames.shape[0])
            return torch.cat([flow_to_next(frames), colours.half()], -1)

    @staticmethod
    def mirror_stem(stem):
        """The stem of frames whose left and right are exchanged."""
        return stem.flip(-2) * torch.tensor([-1.0, 1, 1, 1, 1], device=stem.device).to(stem.dtype)

    def fuse(self, stem):
        """[b t h' w' 5] of `stem` -> [b t d]."""
        flow, colours = rearrange(stem.float(), "b t h w c -> b t c h w").split((2, 3), 2)
        there = torch.cat([flow[:, :-1], torch.zeros_like(flow[:, :1])], 1) / PIXELS
        back = torch.cat([torch.zeros_like(there[:, :1]), there[:, :-1]], 1)
        change = (torch.cat([colours[:, 1:], colours[:, -1:]], 1) - colours) * 3  # about unit variance, as the flow
        motion = rearrange([there, back], "n b t c h w -> (b t) (n c) h w")
        maps = self.net(torch.cat([motion, rearrange([colours, change], "n b t c h w -> (b t) (n c) h w")], 1))
        coarse = F.adaptive_avg_pool2d(motion, self.grid)
        parts = [rearrange(x, "bt c h w -> bt (c h w)") for x in (maps, coarse)]
        return rearrange(self.out(torch.cat(parts, -1)), "(b t) d -> b t d", b=stem.shape[0])

    def forward(self, frames):
        return self.fuse(self.stem(frames))
