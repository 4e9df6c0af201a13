"""Which keys led from one frame to the next: an image encoder learned from actions, to compare with that of a value."""

import torch
from torch import nn

from models.frame_encoders import FrameEncoder
from models.heads import Categorical
from models.mlp import EnsembleMLP


class FrameInverse(nn.Module):
    """net(s, s') -> Categorical over the key classes [b]; frames are uint8 [b h w c] and seen one by one.

    The encoder's keys are those of `models.icvf.ENCODER`. (`models.inverse_dynamics` labels better, from optical flow
    and many frames, of which there is nothing to use for single ones.)
    """

    def __init__(self, height, width, n_actions, encoder="impala", channels=(16, 32, 32), dim=256, layers=2):
        super().__init__()
        self.encoder = nn.ModuleList([FrameEncoder(encoder, height, width, channels)])
        self.head = EnsembleMLP(1, 2 * self.encoder[0].out, n_actions, dim, layers, "relu", norm=False)

    def phi(self, observation):
        """The representation, [1 b d], as that of other networks."""
        return self.encoder[0](observation)[None]

    def forward(self, observation, following):
        before, after = self.phi(torch.cat([observation, following]))[0].chunk(2)
        return Categorical.from_logits(self.head(torch.cat([before, after], -1))[0])
