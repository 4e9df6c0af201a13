"""A causal policy from pixels: convolutional encoder, transformer with carried memory, joint action head."""

from einops import rearrange
from torch import nn

from models.heads import JointHead
from models.transformer import CausalTransformer
from models.vision import ConvEncoder


class VideoPolicy(nn.Module):
    """policy(window) -> (Joint, state); window: {"observation": uint8 [b t h w c], "first": bool [b t], optional}.

    A window may bring "features" [b t d] (outputs of `encode`) in place of frames. Frame t sees the last `context`
    frames of its own episode. `step` is the same function for one frame.

    encoder: one of single frames in place of the convolutions that `channels` describes, such as that of a run of
    method=icvf (models.frame_encoders.FrameEncoder); what it makes of a frame is brought to `dim` numbers by `project`.
    """

    def __init__(self, height, width, n_buttons, n_camera, camera_on, camera_null, context=64,
                 channels=(16, 32, 64, 64), dim=256, layers=2, heads=4, dropout=0.0, encoder=None):  # fmt: skip
        super().__init__()
        self.width = dim
        self.encoder = ConvEncoder(height, width, tuple(channels), dim) if encoder is None else encoder
        self.project = None if encoder is None else nn.Sequential(nn.Linear(encoder.out, dim), nn.LayerNorm(dim))
        self.trunk = CausalTransformer(dim, layers, heads, context, dropout)
        self.head = JointHead(dim, n_buttons, n_camera, camera_on, camera_null)

    def initial_state(self, batch_size, device=None):
        return self.trunk.initial_state(batch_size, device)

    def encode(self, frames):
        """uint8 [b t h w c] -> [b t d]"""
        if self.project is None:
            return self.encoder(frames)
        features = self.encoder(rearrange(frames, "b t h w c -> (b t) h w c"))
        return rearrange(features, "(b t) d -> b t d", b=len(frames))

    def latent(self, window, state=None):
        features = window["features"] if "features" in window else self.encode(window["observation"])
        features = features if self.project is None else self.project(features)
        return self.trunk(features, window.get("first"), state)

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.head(latent), state

    def step(self, observation, first, state):
        """observation uint8 [b h w c], first bool [b] -> (Joint over [b], latent [b d], state)."""
        window = {"observation": observation[:, None], "first": first[:, None]}
        latent, state = self.latent(window, state)
        latent = rearrange(latent, "b 1 d -> b d")
        return self.head(latent), latent, state
