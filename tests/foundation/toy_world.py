"""A tiny learnable world with the real action space, and a tiny policy with memory; both made for tests.

Each episode shows a bar on the left or on the right half of the picture, `visible` frames long (then grey). A turn
towards the bar's side brings reward 1/length, away from it -1/length.
"""

import gymnasium
import numpy as np
import torch
from torch import nn

from models.heads import JointHead
from pipelines.actions import DOOM, ActionCodec
from pipelines.schema import FIRST, OBSERVATION

CODEC = ActionCodec(DOOM)


class Bar(gymnasium.Env):
    """`ends`: "truncated" or "terminated" after `length` frames; success = more right than wrong turns."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gymnasium.spaces.Dict(
        keys=gymnasium.spaces.MultiBinary(len(DOOM.keys)), mouse=gymnasium.spaces.Box(-20, 20, (2,), np.float32)
    )

    def __init__(self, length=12, visible=100, ends="truncated"):
        self.length, self.visible, self.ends = length, visible, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        self.jitter = int(self.np_random.integers(3))
        self.t, self.score = 0, 0.0
        return self.picture(), {}

    def picture(self):
        image = np.full((8, 8, 3), 60 + 10 * self.jitter, np.uint8)
        if self.t < self.visible:
            image[:, 4 * self.side : 4 * self.side + 4, 0] = 250
        return image

    def step(self, action):
        turn = np.sign(action["mouse"][1])  # right positive
        reward = float(turn * (2 * self.side - 1)) / self.length
        self.t, self.score = self.t + 1, self.score + reward
        done = self.t >= self.length
        info = {"episode": {"success": float(self.score > 0)}} if done else {}
        return self.picture(), reward, done and self.ends == "terminated", done and self.ends == "truncated", info


class TinyPolicy(nn.Module):
    """Pixels -> linear -> GRU cell -> Joint; memory reset wherever an episode begins."""

    def __init__(self, width=32, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.width = width
        self.encoder = nn.Sequential(nn.Linear(8 * 8 * 3, width), nn.ReLU())
        self.cell = nn.GRUCell(width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = JointHead(width, CODEC.n_buttons, CODEC.n_camera, CODEC.camera_on, CODEC.camera_null)

    def initial_state(self, batch_size, device=None):
        return {"h": torch.zeros(batch_size, self.width, device=device)}

    def encode(self, frames):
        return self.encoder(frames.flatten(2).float() / 255 - 0.5)

    def latent(self, window, state=None):
        features = window["features"] if "features" in window else self.encode(window[OBSERVATION])  # b t d
        h = (state or self.initial_state(len(features), features.device))["h"]
        first = window.get(FIRST, torch.zeros(features.shape[:2], dtype=torch.bool))
        latents = []
        for t in range(features.shape[1]):
            h = self.cell(features[:, t], torch.where(first[:, t, None], 0.0, h))
            latents.append(h)
        return self.dropout(torch.stack(latents, 1)), {"h": h}

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.head(latent), state

    def step(self, observation, first, state):
        latent, state = self.latent({OBSERVATION: observation[:, None], FIRST: first[:, None]}, state)
        return self.head(latent[:, 0]), latent[:, 0], state
