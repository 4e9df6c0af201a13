"""Inverse dynamics: which keys and mouse motion turned these frames into one another?

Non-causal, as in VPT (arXiv:2206.11795, section 3), with what its release lacks: positions in the trunk, temporal
fusion by optical flow, and a size that fits the number of labels.
"""

from torch import nn

from models.heads import FactoredHead
from models.transformer import Encoder
from models.vision import FlowEncoder


class InverseDynamics(nn.Module):
    """uint8 frames [b t h w c] -> Factored distribution over the action of every frame.

    Frame t with its neighbours becomes one vector (`encode` = `fuse` of `stem`), a bidirectional transformer over the
    window reads the actions from these (`decode`). `stem` has no parameters: training computes it once per frame and
    gives it back as `stem=`. `window` is the number of frames it is trained on and labels with.
    """

    def __init__(self, height, width, n_keys, n_bins, window=64, channels=(32, 48, 64), dim=256, layers=3, heads=4,
                 dropout=0.1):  # fmt: skip
        super().__init__()
        self.window = window
        self.encoder = FlowEncoder(height, width, tuple(channels), dim)
        self.trunk = Encoder(dim, layers, heads, dropout)
        self.head = FactoredHead(dim, n_keys, n_bins)

    @property
    def reach(self):
        """A feature depends on frames at most this far away."""
        return self.encoder.reach

    def stem(self, frames):
        return self.encoder.stem(frames)

    def mirror_stem(self, stem):
        return self.encoder.mirror_stem(stem)

    def encode(self, frames):
        return self.encoder(frames)

    def decode(self, features, mask=None):
        return self.head(self.trunk(features, mask))

    def forward(self, frames=None, mask=None, stem=None):
        return self.decode(self.encode(frames) if stem is None else self.encoder.fuse(stem), mask)
