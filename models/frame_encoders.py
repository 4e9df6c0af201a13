"""Image encoders of single frames by name, so that one network's encoder can begin another's: see `FrameEncoder`."""

import math

import torch
from einops import rearrange, reduce
from torch import nn
from torch.nn import functional as F

from models.vision import to_planes
from models.vpt_layers import Impala

BLOCKS = 2  # residual blocks per scale, as IMPALA has
GROUPS = 8  # of a group norm, where the channels can be divided so


class FrameEncoder(nn.Module):
    """uint8 frames [b h w c] -> [b out].

    kind: `impala` (arXiv:1802.01561, in the form of VPT's release: 256 numbers of the flattened map) | `resnet` (the
    mean over the map of a pre-activation ResNet, `channels[-1]` numbers: V-PTR's kind at a size for small frames).
    channels: of each scale, which halves the picture.
    """

    def __init__(self, kind, height, width, channels=(16, 32, 32)):
        super().__init__()
        if kind not in ENCODERS:
            raise ValueError(f"encoder {kind!r}: expected one of {sorted(ENCODERS)}")
        self.size = (height, width, 3)
        self.net, self.out = ENCODERS[kind](height, width, list(channels))

    def forward(self, frames):
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != self.size:
            raise ValueError(
                f"observations are {frames.dtype} {list(frames.shape[1:])}, this encoder takes uint8 frames"
                f" {list(self.size)}"
            )
        return self.net(to_planes(frames[None]))


def impala(height, width, channels):
    return Impala((height, width, 3), channels, first_norm=False), 256


def resnet(height, width, channels):
    return ResNetV2(channels), channels[-1]


ENCODERS = {"impala": impala, "resnet": resnet}


class ResNetV2(nn.Module):
    """planes [b 3 h w] -> [b channels[-1]]: norm and ReLU before every convolution (arXiv:1603.05027), group norm and
    standardised weights in place of batch norm, so that a picture's code depends on no other (BiT, arXiv:1912.11370).
    """

    def __init__(self, channels):
        super().__init__()
        self.stem = StandardConv(3, channels[0], 3, padding=1)
        pairs = zip([channels[0], *channels], channels, strict=False)
        blocks = [[PreActivation(a, b, 2), *(PreActivation(b, b) for _ in range(BLOCKS - 1))] for a, b in pairs]
        self.blocks = nn.Sequential(*(block for scale in blocks for block in scale))
        self.norm = group_norm(channels[-1])

    def forward(self, planes):
        return reduce(F.relu(self.norm(self.blocks(self.stem(planes)))), "b c h w -> b c", "mean")


class PreActivation(nn.Module):
    """x + conv(relu(norm(conv(y)))), y = relu(norm(x)); where the shape changes a 1x1 convolution of y replaces x."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.norm0, self.norm1 = group_norm(n_in), group_norm(n_out)
        self.conv0 = StandardConv(n_in, n_out, 3, stride, padding=1, bias=False)
        self.conv1 = StandardConv(n_out, n_out, 3, padding=1, bias=False)
        same = stride == 1 and n_in == n_out
        self.shortcut = None if same else StandardConv(n_in, n_out, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norm0(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        return kept + self.conv1(F.relu(self.norm1(self.conv0(y))))


class StandardConv(nn.Conv2d):
    """A convolution with the weights of every output standardised (arXiv:1903.10520), to variance 1/fan-in.

    There it is 1, so that a block adds the more to its input the wider it is.
    """

    def forward(self, x):
        flat = rearrange(self.weight, "o c h w -> o (c h w)")
        flat = F.layer_norm(flat, flat.shape[1:]) / math.sqrt(flat.shape[1])
        return self._conv_forward(x, flat.reshape(self.weight.shape), self.bias)


def group_norm(channels):
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
