"""Decision Transformer (Chen et al. 2021, arXiv:2106.01345): a causal sequence model of conditions, states and actions.

One network for the whole family. A timestep is a few tokens, `layout` says which:

    interleaved   condition, state, action      the action is read at the state (Decision Transformer, LaMo)
    merged        condition + state + previous action in one token, a third of the work
    tokenised     state, condition, one token per action dimension, reward    a dimension is read at the token before it
                  (the multi-domain transformer of L2M, arXiv:2306.14884)

`condition` is any vector: return-to-go, several returns, a goal, a latent skill, a preference. Windows are padded on
the right: what is padded comes after everything real, where a causal trunk never looks.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.bins import Autoregressive, from_bins
from models.heads import Categorical, Gaussian
from models.language import GPT, initialise

LAYOUTS = ("interleaved", "merged", "tokenised")


class ResidualMLP(nn.Module):
    """h = W0 x; W1 GELU(h) + h: LaMo's embedding (arXiv:2310.20587; the residual is in its code, not in the paper)."""

    def __init__(self, inputs, width):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x):
        h = self.first(x)
        return self.second(F.gelu(h)) + h


EMBEDDINGS = {"linear": nn.Linear, "mlp": ResidualMLP}


class DecisionTransformer(nn.Module):
    """policy(window) -> (distribution over the action of every step, None). `step` acts, one step of b episodes a call.

    window: {"observation": float [b t s], "condition": float [b t c], "action": float [b t a] in [-1, 1] or int [b t],
    what was done (that of the last step is not looked at), "timestep": int [b t] since the episode's start}; with
    layout=tokenised also "reward" [b t 1], and the actions are int [b t a] bins.

    n_actions: None for actions in [-1, 1]^a, a Gaussian; else the number of discrete actions (with layout=tokenised, of
    bins per dimension). embed: linear | mlp. head: tanh | linear | mlp (LaMo: no tanh). time: before | after
    `embed_norm` (LaMo: after). auxiliary: also predict next state and condition at the action token. trunk: a module
    with GPT's forward; None = a GPT of width, layers, heads, activation and dropout.
    """

    def __init__(self, state_dim, action_dim, condition_dim=1, n_actions=None, layout="interleaved", context=20,
                 max_timestep=1000, embed="linear", head="tanh", time="before", width=128, layers=3, heads=1,
                 activation="relu", dropout=0.1, log_std=-1.0, auxiliary=False, trunk=None):  # fmt: skip
        super().__init__()
        check(layout=(layout, LAYOUTS), embed=(embed, EMBEDDINGS), head=(head, ("tanh", "linear", "mlp")),
              time=(time, ("before", "after")))  # fmt: skip
        if layout == "tokenised" and n_actions is None:
            raise ValueError("layout=tokenised needs n_actions, the number of bins per action dimension")
        if auxiliary and layout != "interleaved":
            raise ValueError(f"auxiliary predictions are read at the action token; layout={layout} has none of its own")
        self.state_dim, self.action_dim, self.condition_dim = state_dim, action_dim, condition_dim
        self.n_actions, self.layout, self.context, self.time = n_actions, layout, context, time
        self.max_timestep = max_timestep
        self.trunk = trunk if trunk is not None else GPT(width, layers, heads, activation, dropout)
        self.width = width = self.trunk.width
        make = EMBEDDINGS[embed]
        self.embed_state, self.embed_condition = make(state_dim, width), make(condition_dim, width)
        self.embed_time = nn.Embedding(max_timestep, width)
        self.embed_norm = nn.LayerNorm(width)
        if n_actions is None:
            self.embed_action = make(action_dim, width)
        else:
            self.embed_action = nn.Embedding(n_actions, width)
        outputs = action_dim if n_actions is None else n_actions
        self.head = nn.Linear(width, outputs)
        if head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))
        self.squash = head == "tanh" and n_actions is None
        self.embed_reward = make(1, width) if layout == "tokenised" else None
        self.predict = nn.Linear(width, state_dim + condition_dim) if auxiliary else None
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std))) if n_actions is None else None
        own = [m for name, m in self.named_children() if name != "trunk" and m is not None]
        initialise(nn.ModuleList(own), 1)
        nn.init.normal_(self.embed_time.weight, std=0.02)
        if n_actions is not None:
            nn.init.normal_(self.embed_action.weight, std=0.02)

    # a window at once

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.distribution(latent), state

    def latent(self, window, state=None):
        """[b t d] before the head ([b t a d] with layout=tokenised), None."""
        return self.read(window)[..., 0, :] if self.layout != "tokenised" else self.read(window), None

    def distribution(self, latent):
        out = self.head(latent)
        if self.n_actions is not None:
            return Categorical.from_logits(out)
        return Gaussian(torch.tanh(out) if self.squash else out, self.log_std)

    def next_state_and_condition(self, window):
        """Predictions [b t s], [b t c] made at the action token; needs auxiliary=True."""
        return self.predict(self.read(window)[..., 1, :]).split((self.state_dim, self.condition_dim), -1)

    def read(self, window):
        """Outputs of the trunk at the tokens that are read, [b t r d]; its last block runs at these alone."""
        x = self.tokens(window)
        t, m = x.shape[1:3]
        first, last = self._reads()
        tokens = rearrange(x, "b t m d -> b (t m) d")[:, : (t - 1) * m + last]  # nothing behind the last one read
        places = torch.arange(t, device=x.device)[:, None] * m + torch.arange(first, last, device=x.device)  # t r
        y, _ = self.trunk(tokens, None if m == 1 else places.flatten())
        return rearrange(y, "b (t r) d -> b t r d", t=t)

    @property
    def read_at(self):
        """Number of the token of a step at which its action, or the first dimension of it, is read."""
        return self._reads()[0]

    def _reads(self):
        """Tokens of a step that are read: [first, last)."""
        if self.layout == "merged":
            return 0, 1
        return 1, 1 + self.action_dim if self.layout == "tokenised" else 2 if self.predict is None else 3

    def tokens(self, window):
        """Embeddings of all tokens [b t m d], m per step."""
        state, condition = self.embed_state(window["observation"]), self.embed_condition(window["condition"])
        action = self.embed_action(window["action"])  # b t d, or b t a d
        if self.layout == "tokenised":
            reward = self.embed_reward(window["reward"])
            parts = torch.cat([torch.stack([state, condition], 2), action, reward[:, :, None]], 2)
        elif self.layout == "merged":
            parts = (state + condition + F.pad(action, (0, 0, 1, 0))[:, :-1])[:, :, None]
        else:
            parts = torch.stack([condition, state, action], 2)
        time = self.embed_time(window["timestep"])[:, :, None]
        return self._timed(parts, time)

    def _timed(self, x, time):
        return self.embed_norm(x + time) if self.time == "before" else self.embed_norm(x) + time

    def state_tokens(self, window):
        """[b t d]: the states as the trunk gets them where they have a token of their own, without all the others."""
        return self._timed(self.embed_state(window["observation"]), self.embed_time(window["timestep"]))

    def action_token(self, bins, time):
        """Bins int [b] of one dimension, embedding of the step [b d] -> [b d]."""
        return self._timed(self.embed_action(bins), time)

    # a step at a time

    def initial_state(self, batch_size, device=None):
        """Empty histories: the last `context` steps of every episode, and how many there are."""
        discrete = self.n_actions is not None
        actions = (self.action_dim,) if not discrete or self.layout == "tokenised" else ()
        sizes = {"observation": (self.state_dim,), "condition": (self.condition_dim,), "action": actions}
        sizes |= {"timestep": ()}
        sizes |= {"reward": (1,)} if self.layout == "tokenised" else {}
        integers = {"timestep"} | ({"action"} if discrete else set())
        return {
            "length": torch.zeros(batch_size, dtype=torch.long, device=device),
            **{name: torch.zeros(batch_size, self.context, *size, device=device,
                                 dtype=torch.long if name in integers else torch.float32)
               for name, size in sizes.items()},
        }  # fmt: skip

    def step(self, now, first, state):
        """now: {"observation" [b s], "condition" [b c], "timestep" [b], and of the step before "action", "reward"}.

        first bool [b]: an episode starts. -> (distribution over [b], latent [b d], state). The whole window is computed
        again, as in training; rows need not be equally long.
        """
        state = remember(now, first, state, self.context)
        return *self.look(state), state

    def look(self, state):
        """Histories as `remember` leaves them -> (distribution over [b], latent [b d]) at their last step."""
        window, length = histories(state), state["length"]
        if self.layout == "tokenised":
            distribution = self.decoder(window, length)
            return distribution, distribution.latent
        latent, _ = self.latent(window)
        latent = latent[torch.arange(len(length), device=length.device), length - 1]
        return self.distribution(latent), latent

    def decoder(self, window, length):
        """Distribution over the bins [b a] of every row's last step, of which state and condition are known."""
        x = self.tokens(window)
        t, m = x.shape[1:3]
        tokens, place = rearrange(x, "b t m d -> b (t m) d")[:, : (t - 1) * m + 2], (length - 1) * m + 1  # b
        rows, visible = torch.arange(len(x), device=x.device), None
        if (length == t).all():
            y, memory = self.trunk(tokens, place[:1])
            latent = y[:, 0]
        else:  # shorter rows have padding before the tokens to come
            visible = torch.arange(tokens.shape[1], device=x.device) <= place[:, None]
            y, memory = self.trunk(tokens)
            latent = y[rows, place]
        time = self.embed_time(window["timestep"][rows, length - 1])
        return Autoregressive(self, self.trunk, latent, memory, time, visible)

    def unit(self, action):
        """What `step` said and was told as actions in [-1, 1]; those of discrete worlds stay as they are."""
        return from_bins(action, self.n_actions) if self.layout == "tokenised" else action


def remember(now, first, state, context):
    """The histories after a step: the action and reward of the step before are filled in, the oldest step drops out."""
    rows = torch.arange(len(first), device=first.device)
    length = torch.where(first, 0, state["length"])
    full = length == context
    place = (torch.arange(context, device=first.device) + full[:, None]).clamp(max=context - 1)  # b k
    after = {name: value[rows[:, None], place] for name, value in state.items() if name != "length"}
    length = length - full.long()
    going = length > 0
    for name in ("action", "reward"):
        if name in after and name in now:  # at the very first step nothing was done yet
            after[name][rows[going], length[going] - 1] = now[name][going].to(after[name].dtype)
    for name in ("observation", "condition", "timestep"):
        after[name][rows, length] = now[name].to(after[name].dtype)
    return {**after, "length": length + 1}


def histories(state):
    """The window [b t ...] of a state, t = the longest history, with `mask`: which steps there are."""
    length = state["length"]
    window = {name: value[:, : int(length.max())] for name, value in state.items() if name != "length"}
    steps = torch.arange(window["timestep"].shape[1], device=length.device)
    return {**window, "mask": steps < length[:, None]}


def check(**choices):
    """ValueError for a value that is none of its options."""
    for name, (value, options) in choices.items():
        if value not in options:
            raise ValueError(f"{name}={value!r}: expected one of {list(options)}")
