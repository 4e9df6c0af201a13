"""Acting with a Decision Transformer that keeps keys and values from step to step, and computes each token once.

`DecisionTransformer.step` computes its whole window again, as in training. Here a token is forgotten after `context`
steps. Until an episode is longer than the context both say the same; after that what is kept still carries traces of
steps that have left the window, as in any rolling cache.
"""

import torch
from einops import rearrange
from torch import nn

from models.bins import Autoregressive

SHARED = ("layout", "n_actions", "context", "max_timestep", "state_dim", "action_dim", "unit")
STEP = ("observation", "condition", "timestep")


class Rolling(nn.Module):
    """`step` and `initial_state` of a DecisionTransformer at 1 / context of its work; ValueError for other policies."""

    def __init__(self, policy):
        super().__init__()
        blocks = getattr(getattr(policy, "trunk", None), "blocks", None)
        if blocks is None or not hasattr(policy, "tokens"):
            raise ValueError("cache=rolling: only a DecisionTransformer in a trunk of ours keeps keys and values")
        self.policy = policy
        for name in SHARED:
            setattr(self, name, getattr(policy, name))
        self.heads, self.size = blocks[0].attention.heads, policy.width // blocks[0].attention.heads
        self.caches = [f"{name}{i}" for i in range(len(blocks)) for name in ("key", "value")]

    def initial_state(self, batch_size, device=None):
        """The step before, which there is not yet, and keys and values [b h 0 e] of every block."""
        before = self.policy.initial_state(batch_size, device)
        empty = torch.zeros(batch_size, self.heads, 0, self.size, device=device)
        return {
            **{name: value[:, 0] for name, value in before.items() if name != "length"},
            **dict.fromkeys(self.caches, empty),
            "visible": torch.zeros(batch_size, 0, dtype=torch.bool, device=device),  # b n
        }

    def step(self, now, first, state):
        """As `DecisionTransformer.step`: (distribution over [b], latent [b d], state)."""
        policy, upto = self.policy, self.policy.read_at + 1
        last = {name: now.get(name, state[name]) for name in ("action", "reward") if name in state}  # of the one before
        window = {name: torch.stack([value, torch.zeros_like(value)], 1) for name, value in last.items()}
        window |= {name: torch.stack([state[name], now[name].to(state[name].dtype)], 1) for name in STEP}
        x = policy.tokens(window)  # b 2 m d
        if first.any():  # nothing was done before
            alone = policy.tokens({name: value[:, 1:] for name, value in window.items()})
            x = torch.cat([x[:, :1], torch.where(first[:, None, None, None], alone, x[:, 1:])], 1)
        m = x.shape[2]
        new = rearrange(x, "b t m d -> b (t m) d")[:, upto : upto + m]  # the rest of the step before, then this one
        keep = (self.context - 1) * m + upto - m
        past = {name: state[name][:, :, max(0, state[name].shape[2] - keep) :] for name in self.caches}
        known = state["visible"][:, max(0, state["visible"].shape[1] - keep) :]
        own = torch.arange(m, device=first.device) >= m - upto
        visible = torch.cat([known & ~first[:, None], own | ~first[:, None]], 1)
        pairs = zip(self.caches[::2], self.caches[1::2], strict=True)
        memory = [(past[key], past[value]) for key, value in pairs]
        y, memory = policy.trunk(new, torch.tensor([m - 1], device=new.device), memory, visible)
        latent, flat = y[:, 0], [tensor for pair in memory for tensor in pair]
        after = {name: now[name].to(state[name].dtype) for name in STEP} | last
        after |= {**dict(zip(self.caches, flat, strict=True)), "visible": visible}
        if self.layout == "tokenised":
            time = policy.embed_time(now["timestep"])
            return Autoregressive(policy, policy.trunk, latent, memory, time, visible), latent, after
        return policy.distribution(latent), latent, after
