"""An actor and critics that see frames: what offline RL trains from an encoder of video (V-PTR, arXiv:2309.13041).

Actions are the keys alone, one class for all of them together, the mouse at rest.
"""

import torch
from einops import rearrange
from torch import nn

from models.frame_encoders import FrameEncoder
from models.heads import Categorical, Joint
from models.mlp import EnsembleMLP

NEVER = -1e4  # log-probability of classes that move the mouse: finite, so that entropies are numbers


class VisualActorCritic(nn.Module):
    """policy(window) -> (Joint, None); window: {"observation": uint8 [b t h w c]}; every frame is by itself.

    Actor and critics have an encoder each, see `models.frame_encoders`; the critics share theirs, with V(s) if there is
    one. dim, layers: of the MLPs. value: with V(s), which IQL needs. tasks: numbers of a one-hot that says which task
    is meant; when acting it is the one of `told`, which is saved with the weights.

    What offline RL asks of it takes `now`: {"observation": uint8 [b h w c], "condition": [b tasks] if there are tasks},
    and actions int [b] of `n_actions`, which are the rows of `still`, buttons classes that leave the mouse alone.
    """

    def __init__(self, height, width, n_buttons, n_camera, camera_on, camera_null, encoder="impala",
                 channels=(16, 32, 32), dim=256, layers=2, members=2, value=False, tasks=0):  # fmt: skip
        super().__init__()
        self.n_camera, self.camera_null, self.tasks, self.width = n_camera, camera_null, tasks, dim
        still = [i for i, moves in enumerate(camera_on) if not moves]
        self.n_actions = len(still)
        self.register_buffer("camera_on", torch.as_tensor(list(camera_on), dtype=torch.bool), persistent=False)
        self.register_buffer("still", torch.as_tensor(still), persistent=False)
        self.register_buffer("told", torch.zeros(tasks))
        seeing = (height, width, encoder, channels, tasks, dim, layers)
        self.actor = Seeing(*seeing, members=1, outputs=self.n_actions)
        self.critic = Seeing(*seeing, members=members, outputs=self.n_actions)
        self.value = EnsembleMLP(1, dim + tasks, 1, dim, layers, "relu", norm=False) if value else None

    # values

    def all_q(self, now, critic=None):
        """Q_k(s, a) of every action, [e b n]; critic: another than its own, such as its slow copy."""
        return (self.critic if critic is None else critic)(now)

    def q(self, now, action, critic=None):
        """Q_k(s, a) [e b] of actions int [b]."""
        every = self.all_q(now, critic)
        return every.gather(-1, action.long().expand(len(every), -1)[..., None])[..., 0]

    def v(self, now):
        """V(s) [b]"""
        return self.value(self.critic.see(now))[0, :, 0]

    def act(self, now):
        """Categorical over [b]."""
        return Categorical.from_logits(self.actor(now)[0])

    # acting

    def forward(self, window, state=None):
        frames = window["observation"]
        joint, _, state = self.step(rearrange(frames, "b t h w c -> (b t) h w c"), None, state)
        shape = frames.shape[:2]
        logs = (x.unflatten(0, shape) for x in (joint.buttons_log_probs, joint.camera_log_probs))
        return Joint(*logs, self.camera_on, self.camera_null), state

    def initial_state(self, batch_size, device=None):
        return {}

    def step(self, observation, first, state):
        """observation uint8 [b h w c] -> (Joint over [b], latent [b d], state)."""
        now = {"observation": observation}
        if self.tasks:
            now["condition"] = self.told.expand(len(observation), -1)
        seen = self.actor.see(now)
        log_probs = Categorical.from_logits(self.actor.net(seen)[0]).log_probs
        buttons = log_probs.new_full((len(seen), len(self.camera_on)), NEVER)
        camera = log_probs.new_full((len(seen), self.n_camera), NEVER)
        camera[:, self.camera_null] = 0.0
        buttons = buttons.index_copy(1, self.still, log_probs)
        return Joint(buttons, camera, self.camera_on, self.camera_null), seen, state


class Seeing(nn.Module):
    """MLPs over one encoder: {"observation": uint8 [b h w c], ...} -> [members b outputs].

    The code goes through a linear layer, layer norm and tanh, as in V-PTR; which task is meant is put beside it.
    """

    def __init__(self, height, width, encoder, channels, tasks, dim, layers, members, outputs):
        super().__init__()
        self.encoder = FrameEncoder(encoder, height, width, channels)
        self.embed = nn.Sequential(nn.Linear(self.encoder.out, dim), nn.LayerNorm(dim), nn.Tanh())
        self.net = EnsembleMLP(members, dim + tasks, outputs, dim, layers, "relu", norm=False)
        self.tasks = tasks

    def see(self, now):
        """[b dim + tasks]"""
        x = self.embed(self.encoder(now["observation"]))
        return torch.cat([x, now["condition"]], -1) if self.tasks else x

    def forward(self, now):
        return self.net(self.see(now))
