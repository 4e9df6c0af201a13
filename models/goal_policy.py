"""Policies of single steps on vectors with the values that train them; they are told a goal, a skill or nothing."""

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from models.heads import Categorical, Gaussian
from models.mlp import EnsembleMLP, precise

LOG_STD = (-5.0, 2.0)  # bounds of an actor's log deviation


class ConditionedPolicy(nn.Module):
    """policy(window) -> (distribution over actions, None), every step by itself; what it is told is `condition`.

    window: {"observation": float [b t s], "condition": float [b t c]}; where condition_dim is 0, a condition is not
    needed and not looked at. n_actions: None for actions in [-1, 1]^a, a Gaussian whose deviation does not depend on
    the state; else the number of discrete ones. Beside the actor it holds what trains it: `critic` Q_k(s, a, c) and
    `value` V(s, c), None in an actor alone. What they take is `now`, a window without its time axis.
    """

    max_timestep, context = 1 << 60, 1  # neither clock nor memory

    def build(self, state_dim, action_dim, n_actions, condition_dim, width, layers, critics=2, activation="relu",
              learned_std=True):  # fmt: skip
        """Makes the networks; to be called once, after `__init__` of the module. activation: of the actor. learned_std:
        whether the Gaussian's deviation is learned; otherwise it stays at 1."""
        self.state_dim, self.action_dim, self.n_actions = state_dim, action_dim, n_actions
        self.condition_dim, self.width = condition_dim, width
        choices = action_dim if n_actions is None else n_actions
        inputs = state_dim + condition_dim
        self.critic = EnsembleMLP(critics, inputs + choices, 1, width, layers) if critics else None
        self.value = EnsembleMLP(1, inputs, 1, width, layers) if critics else None
        self.actor = EnsembleMLP(1, inputs, choices, width, layers, activation, norm=False, scale=1e-2)
        if n_actions is not None:
            self.log_std = None
        elif learned_std:
            self.log_std = nn.Parameter(torch.zeros(action_dim))
        else:
            self.register_buffer("log_std", torch.zeros(action_dim), persistent=False)

    # acting

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.distribution(latent), state

    def latent(self, window, state=None):
        """[b t d] before the actor's last layer, None."""
        x = self.inputs(window)
        return self.actor.hidden(rearrange(x, "... i -> (...) i"))[0].unflatten(0, x.shape[:-1]), None

    def distribution(self, latent):
        out = precise(self.actor.out, latent[None])[0]
        if self.n_actions is not None:
            return Categorical.from_logits(out)
        return Gaussian(out, self.log_std.clamp(*LOG_STD))

    def initial_state(self, batch_size, device=None):
        return {}

    def step(self, now, first, state):
        """now: {"observation" [b s], "condition" [b c]} -> (distribution over [b], latent [b d], state)."""
        latent, _ = self.latent(now)
        return self.distribution(latent), latent, state

    def unit(self, action):
        """What `step` said as actions in [-1, 1]; those of discrete worlds stay as they are."""
        return action

    # values

    def act(self, now):
        """A distribution over the actions of [b] steps."""
        return self(now)[0]

    def q(self, now, action, critic=None):
        """Q_k(s, a, c) [e b] of actions [b a] or int [b]; critic: another than its own, such as a slow copy."""
        action = action if self.n_actions is None else F.one_hot(action.long(), self.n_actions)
        x = self.inputs(now, action.to(now["observation"].dtype))
        return (self.critic if critic is None else critic)(x)[..., 0]

    def all_q(self, now, critic=None):
        """Q_k(s, a, c) [e b n] of all n discrete actions."""
        b, n = len(now["observation"]), self.n_actions
        every = {name: repeat(value, "b i -> (b n) i", n=n) for name, value in now.items()}
        action = torch.arange(n, device=now["observation"].device).repeat(b)
        return rearrange(self.q(every, action, critic), "e (b n) -> e b n", n=n)

    def v(self, now):
        """V(s, c) [b]"""
        return self.value(self.inputs(now))[0, :, 0]

    def inputs(self, now, *more):
        """State, what is given beside it, and the condition, in this order, [... i]; ValueError for another size."""
        for name, size in (("observation", self.state_dim), ("condition", self.condition_dim)):
            if size and now[name].shape[-1] != size:
                raise ValueError(f"a policy whose {name} has {size} numbers was given {now[name].shape[-1]}")
        told = [now["condition"]] if self.condition_dim else []
        return torch.cat([now["observation"], *more, *told], -1)


class GoalPolicy(ConditionedPolicy):
    """Told a goal: a state to be reached, as `condition`; goal_dim 0 = nothing, a policy of one task.

    Networks as OGBench's (arXiv:2410.20092): GELU throughout, layer norms in the values only. critics: Q networks, 0 =
    an actor alone, for imitation.
    """

    def __init__(self, state_dim, action_dim=1, n_actions=None, goal_dim=0, width=512, layers=3, critics=2,
                 learned_std=False):  # fmt: skip
        super().__init__()
        if critics < 0 or goal_dim < 0:
            raise ValueError(f"critics={critics}, goal_dim={goal_dim}: expected at least 0 of each")
        self.goal_dim = goal_dim
        self.build(state_dim, action_dim, n_actions, goal_dim, width, layers, critics, "gelu_tanh", learned_std)
