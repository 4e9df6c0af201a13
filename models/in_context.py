"""Decision-Pretrained Transformer (Lee et al. 2023, arXiv:2306.14892): the action for a state, from transitions alone.

A token is a transition [s, a, s', r] of the task at hand, or a query [s, 0, 0, 0]. `query` says where the queries are:

    first   query, transitions    one query a pass, answered at every prefix of the context (the paper)
    last    transitions, queries  each query sees the prefix it is placed after and no other query: many in a pass, and
                                  what the context left in the trunk can be kept (`read`) and asked again (`answer`)

Without positions a context may be longer than any in training; with `mixing=none` too, transitions do not look at each
other, so that their order cannot matter.
"""

import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from models.heads import Categorical, Gaussian
from models.language import GPT, Kept, length_of


class InContext(nn.Module):
    """policy(window) -> (distribution, None); `step` acts, one step of b episodes a call.

    window: a context {"observation" [b n s], "action" [b n] or [b n a], "next_observation" [b n s], "reward" [b n]}
    with "place" int [p], how many transitions each of p answers has seen, and "query" [b p s], or with query=first
    [b 1 s] -> distribution over [b p]. Or, with query=last, the trajectory {"observation" [b t s], "action",
    "scaled_reward" [b t]}: each step is a query after those before it -> [b t]. "next_observation" [b t s], where it
    is there, is what steps led to; else that is the observation of the step after.

    n_actions: None for actions in [-1, 1]^a, a Gaussian; else the number of discrete ones. context: transitions that
    acting looks back on, and with positions=learned the longest context. next_state: whether tokens hold s'. encoder:
    a module that makes `out` numbers of an observation, such as models.vision.PictureEncoder. gain: see `scaled`.
    """

    max_timestep = 1 << 60  # no clock

    def __init__(self, state_dim, action_dim=1, n_actions=None, context=500, width=32, layers=4, heads=4,
                 activation="gelu_tanh", dropout=0.0, query="first", positions="learned", mixing="causal",
                 next_state=True, encoder=None, log_std=-1.0, gain=0.5):  # fmt: skip
        super().__init__()
        check(query, positions, mixing)
        self.state_dim, self.action_dim, self.n_actions, self.context = state_dim, action_dim, n_actions, context
        self.query, self.mixing, self.next_state, self.width, self.heads = query, mixing, next_state, width, heads
        self.trunk = GPT(width, layers, heads, activation, dropout)
        scaled(self.trunk, gain)
        choices = action_dim if n_actions is None else n_actions
        self.encoder = encoder
        self.encoded = getattr(encoder, "out", state_dim)
        self.embed = nn.Linear(self.encoded * (2 if next_state else 1) + choices + 1, width)
        self.norm = nn.LayerNorm(width) if encoder is not None else nn.Identity()
        self.positions = nn.Embedding(context + 1, width) if positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.head = nn.Linear(width, choices)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std))) if n_actions is None else None
        self.caches = [f"{name}{i}" for i in range(layers) for name in ("key", "value")]

    # a window at once

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.distribution(latent), state

    def latent(self, window, state=None):
        """What the head reads, [b p d]; None."""
        if "query" not in window:
            if self.query == "first":
                raise ValueError("query=first answers one query a pass; trajectories need a policy with query=last")
            return self._trajectory(window), None
        if self.query == "first":
            return self.first(window, window["query"], window["place"]), None
        _, memory = self.read(None, window) if window["action"].shape[1] else (None, None)
        return self.answer(memory, window["query"], window["place"]), None

    def distribution(self, latent):
        out = self.head(latent)
        return Gaussian(out, self.log_std) if self.n_actions is None else Categorical.from_logits(out)

    def _trajectory(self, window):
        x, memory = window["observation"], None
        following = window["next_observation"][:, :-1] if "next_observation" in window else x[:, 1:]
        context = {"observation": x[:, :-1], "next_observation": following, "action": window["action"][:, :-1],
                   "reward": window["scaled_reward"][:, :-1]}  # fmt: skip
        if x.shape[1] > 1:
            _, memory = self.read(None, context)
        return self.answer(memory, x, torch.arange(x.shape[1], device=x.device))

    # tokens

    def transitions(self, context):
        """Tokens [b n d]."""
        state, action = self._states(context["observation"]), context["action"]
        action = action.to(state.dtype) if self.n_actions is None else F.one_hot(action.long(), self.n_actions)
        after = [self._states(context["next_observation"])] if self.next_state else []
        parts = [state, action.to(state.dtype), *after, context["reward"].to(state.dtype)[..., None]]
        return self.norm(self.embed(torch.cat(parts, -1)))

    def queries(self, observation):
        """Tokens [b k d]: a transition of which nothing but the state is known."""
        state = self._states(observation)
        return self.norm(self.embed(F.pad(state, (0, self.embed.in_features - self.encoded))))

    def _states(self, observation):
        return observation if self.encoder is None else self.encoder(observation)

    def placed(self, x, place):
        """x [b n d] with the positions int [n] or [b n]; ValueError beyond the last one there is."""
        if self.positions is None:
            return x
        if place.numel() and place.max() > self.context:
            raise ValueError(
                f"a context of {int(place.max())} transitions: this policy was built for {self.context}; give fewer, or"
                " train one with positions=none"
            )
        return x + self.positions(place)

    # query=first

    def first(self, context, query, read=None):
        """[b k*p d]: each of the queries [b k s] answered after `read` int [p] transitions; None = after 0 to n."""
        k, x = query.shape[1], self.transitions(context)
        x = torch.cat([rearrange(self.queries(query), "b k d -> (b k) 1 d"), repeat(x, "b n d -> (b k) n d", k=k)], 1)
        y, _ = self.trunk(self.placed(x, torch.arange(x.shape[1], device=x.device)), read)
        return rearrange(y, "(b k) p d -> b (k p) d", k=k)

    def begin(self, observation, memory=None):
        """A context that opens with a query [b s] -> (latent [b d], memory), to be continued with `read`."""
        x = self.queries(observation[:, None])
        y, memory = self.trunk(self.placed(x, torch.zeros(1, dtype=torch.long, device=x.device)), None, memory)
        return y[:, 0], memory

    # what a context leaves

    def read(self, memory, context, visible=None, place=None):
        """Goes on with n transitions [b n ...] -> (latent [b n d], with query=last of the last one or None, memory).

        visible: bool [b m+n], what of the m tokens before and of these is there, None = all. place: int [b n] their
        positions, None = those after the m before.
        """
        x = self.transitions(context)
        if self.mixing == "none":
            return self._each(memory, x)
        past, n = length_of(memory), x.shape[1]
        place = torch.arange(past, past + n, device=x.device) if place is None else place
        last = torch.tensor([n - 1], device=x.device) if self.query == "last" else None  # nobody reads the others
        return self.trunk(self.placed(x, place), last, memory, visible)

    def _each(self, memory, x):
        """`read` where a transition looks at itself alone: as sequences of one token, whose last block gives keys and
        values and nothing else."""
        nothing = torch.zeros(0, dtype=torch.long, device=x.device)
        _, new = self.trunk(rearrange(x, "b n d -> (b n) 1 d"), nothing)
        new = [[rearrange(one, "(b n) h 1 e -> b h n e", b=len(x)) for one in pair] for pair in new]
        if memory is not None and isinstance(memory[0], Kept):
            for kept, pair in zip(memory, new, strict=True):
                kept.add(*pair)
            new = memory
        elif memory is not None:
            new = [[torch.cat(both, 2) for both in zip(*pairs, strict=True)] for pairs in zip(memory, new, strict=True)]
        return None, new

    def answer(self, memory, query, place=None, visible=None):
        """Queries [b k s] -> latents [b k d]; place: int [k], after how many tokens of the memory, None = all.

        visible: bool [b m], which of them are there, None = all.
        """
        x = self.queries(query)
        k, past = x.shape[1], length_of(memory)
        place = torch.full((k,), past, device=x.device) if place is None else place
        before = torch.arange(past, device=x.device) < place[:, None]
        mask = torch.cat([before, torch.eye(k, dtype=torch.bool, device=x.device)], 1)
        visible = None if visible is None else F.pad(visible, (0, k), value=True)
        y, _ = self.trunk(x, None, memory, visible, mask)
        for kept in memory or ():
            if isinstance(kept, Kept):
                kept.length = past  # nobody looks at a query but itself
        return y

    def room(self):
        """A memory for `read` and `answer` that grows in place."""
        return [Kept() for _ in self.trunk.blocks]

    # a step at a time

    def initial_state(self, batch_size, device=None):
        """No transition yet: keys and values [b h 0 e] of every block; with query=first the transitions [b 0 ...]."""
        if self.query == "last":
            empty = torch.zeros(batch_size, self.heads, 0, self.width // self.heads, device=device)
            kept = dict.fromkeys(self.caches, empty)
        else:
            shape, kind = (batch_size, 0), torch.long
            if self.n_actions is None:
                shape, kind = (batch_size, 0, self.action_dim), torch.float32
            kept = {"action": torch.zeros(shape, dtype=kind, device=device)}
            kept |= {"reward": torch.zeros(batch_size, 0, device=device)}
            kept |= dict.fromkeys(("observation", "next_observation"), torch.zeros(batch_size, 0, 0, device=device))
        return {**kept, "visible": torch.zeros(batch_size, 0, dtype=torch.bool, device=device)}

    def step(self, now, first, state):
        """now: {"observation" [b s], and of the step before "action" and "reward" [b 1]}; first bool [b]: forget all.

        "first" bool [b] in `now`: an episode of the same task begins, so that what led here was no transition.
        "next_observation" [b s] in `now`: what the step before led to, where that is not the observation.
        -> (distribution over [b], latent [b d], state).
        """
        observation, visible = now["observation"][:, None], state["visible"] & ~first[:, None]
        kept = {name: value for name, value in state.items() if name not in ("visible", "last")}
        if "last" in state:
            visible = torch.cat([visible, ~(first | now.get("first", first))[:, None]], 1)
            following = now["next_observation"][:, None] if "next_observation" in now else observation
            new = {"observation": state["last"], "next_observation": following, "action": now["action"][:, None],
                   "reward": now["reward"]}  # fmt: skip
            kept = self._remember(kept, new, visible)
            kept = {name: value[:, :, -self.context :] if name in self.caches else value[:, -self.context :]
                    for name, value in kept.items()}  # fmt: skip
            visible = visible[:, -self.context :]
        latent = self._look(kept, visible, observation)
        return self.distribution(latent), latent, {**kept, "visible": visible, "last": observation}

    def _remember(self, kept, new, visible):
        if self.query == "first":
            return {name: torch.cat([kept[name], new[name]], 1) if kept[name].shape[1] else new[name] for name in kept}
        place = (visible.sum(1, keepdim=True) - 1).clamp(min=0)  # where an episode begins nobody looks at the new one
        if self.positions is not None and place.max() >= self.context:
            raise ValueError(
                f"{int(place.max()) + 1} transitions: this policy was trained on {self.context}; shorten the episodes,"
                " or train it with method.net.positions=none"
            )
        _, memory = self.read(self._memory(kept), new, visible, place)
        return dict(zip(self.caches, (tensor for pair in memory for tensor in pair), strict=True))

    def _memory(self, kept):
        return list(zip(*(map(kept.get, self.caches[i::2]) for i in (0, 1)), strict=True))

    def _look(self, kept, visible, observation):
        """Latents [b d] of one query per row."""
        if self.query == "last":
            return self.answer(self._memory(kept), observation, None, visible)[:, 0]
        if not visible.shape[1]:
            return self.begin(observation[:, 0])[0]
        visible = F.pad(visible, (1, 0), value=True)
        x = torch.cat([self.queries(observation), self.transitions(kept)], 1)
        y, _ = self.trunk(self.placed(x, visible.cumsum(1) - 1), None, None, visible)
        last = visible.shape[1] - 1 - visible.flip(1).long().argmax(1)  # b
        return y[torch.arange(len(y), device=y.device), last]

    def unit(self, action):
        """What `step` said, as the environment's spaces have it."""
        return action


def scaled(trunk, gain):
    """Matrices N(0, gain^2 / inputs): at gain 0.5 GPT-2's 0.02 at its width of 768, which is too little in a small net.

    At width 32 a bandit of 40 rounds is 0.06 nats above the least loss after 400 steps, with 0.02 still 0.23.
    """
    for layer in trunk.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)


def check(query, positions, mixing):
    """ValueError for values that are none of their options, or do not go together."""
    for name, value, options in (("query", query, ("first", "last")), ("positions", positions, ("learned", "none")),
                                 ("mixing", mixing, ("causal", "none"))):  # fmt: skip
        if value not in options:
            raise ValueError(f"{name}={value!r}: expected one of {list(options)}")
    if mixing == "none" and (query == "first" or positions == "learned"):
        raise ValueError("mixing=none makes the order of transitions meaningless; it needs query=last, positions=none")
