"""Worlds: families of small tasks that are stepped together in tensors, for learners that learn in context.

A batch of tasks is a dict of tensors with a leading axis b, one row per task; the world itself keeps nothing about
any of them. All randomness comes from the torch.Generator at hand, so equal generators give equal tasks and contexts,
and tensors live on the generator's device. Axes: b tasks, n transitions, k queries, s numbers of an observation.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError

TRANSITION = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION)  # keys of a context
SPLITS = ("train", "heldout")
CONTEXTS = ("iid", "random_walk", "history")
ADAPTIVE = {"history", "thompson", "posterior"}  # what is done depends on what came before


class World:
    """Base. Leading axes of `tasks`, `observation` and `action` broadcast in `step`, so that one call can also step n
    transitions of a task, or one transition in many tasks."""

    state_dim: int
    n_actions: int | None = None  # None: continuous, then `action_dim`
    action_dim = 1
    horizon: int  # steps of an episode; of bandits: rounds
    pictures = False  # whether an observation is a picture, flattened, with some numbers behind it
    states = None  # float32 [S s] every observation there is, where that is a short list
    contexts = ()  # kinds of contexts that were asked for, where there is a choice
    defining = None  # names in `tasks` of what a task is, where the others follow from these; None: all

    @property
    def ordered(self):
        """Whether contexts are collected adaptively: their order must be kept, and only prefixes cut."""
        return not ADAPTIVE.isdisjoint(self.contexts)

    def hypotheses(self, split=None):
        """All tasks of a finite family (or of a split of it), equally probable: {name: [m ...]}; None: no such list."""
        return None

    def draw(self, b, generator, split="train"):
        """b tasks of a split (train | heldout, where the family tells them apart), each from the prior."""
        found = self.hypotheses(checked("split", split, SPLITS))
        rows = integers(len(next(iter(found.values()))), (b,), generator)
        return {name: value.to(rows.device)[rows] for name, value in found.items()}

    def start(self, tasks):
        """The first observation of an episode, float32 [b s]."""
        raise NotImplementedError

    def step(self, tasks, observation, action, generator):
        """Takes action int [b] on observation [b s] -> (reward float32 [b], next observation float32 [b s])."""
        raise NotImplementedError

    def possible(self, tasks, observation):
        """Whether tasks have such an observation at all; leading axes broadcast. All have, unless a world says so."""
        return torch.ones((), dtype=torch.bool, device=observation.device)

    def mean_reward(self, tasks, action, observation=None):
        """What an action [b ...] of a bandit brings on average, [b ...]. `observation`: where the mean needs it."""
        raise NotImplementedError(f"{type(self).__name__} is no bandit: play its episodes instead")

    def optimal(self, tasks, observation):
        """The label: an optimal action for each observation [b k s] -> int64 [b k]."""
        raise NotImplementedError

    def queries(self, tasks, k, generator):
        """Observations to be labelled, [b k s]."""
        raise NotImplementedError

    def context(self, tasks, n, generator):
        """n transitions of each task by the context policy of pretraining: {OBSERVATION [b n s], ACTION [b n], ...}.

        Here by `contexts`: iid = uniform states and actions, every transition on its own; random_walk = trajectories
        of uniform actions; history = a learning history without a learner, see `trajectory`; posterior = play of
        posterior sampling, where the world knows its own (`player`). Of several kinds, each call takes one, equally
        often.
        """
        kind = one_of(self.contexts, generator)
        if kind == "posterior":
            return interact(self, self.player(), tasks, n, generator)
        if kind == "iid":
            observation = self.queries(tasks, n, generator)
            action = integers(self.n_actions, observation.shape[:2], generator)
            reward, following = self.step(per_row(tasks), observation, action, generator)
            return transitions(observation, action, reward, following)
        rise = torch.linspace(0, 1, n) if kind == "history" else torch.zeros(n)
        return self.trajectory(tasks, n, generator, rise)

    def player(self):
        """The learner whose play is a context of kind posterior."""
        raise NotImplementedError

    def trajectory(self, tasks, n, generator, skill):
        """n steps in order, episodes of `horizon` steps one after another. Step i takes the label with probability
        skill[i], otherwise a uniform action: rising skill is noise distillation, as of arXiv:2312.12275 (ad-eps)."""
        shape = (count(tasks), n)
        uniform_action, skilled = integers(self.n_actions, shape, generator), uniform(shape, generator)
        rows, observation = [], None
        for i in range(n):
            observation = self.start(tasks) if i % self.horizon == 0 else observation
            label = self.optimal(tasks, observation[:, None])[:, 0]
            action = torch.where(skilled[:, i] < skill[i], label, uniform_action[:, i])
            reward, following = self.step(tasks, observation, action, generator)
            rows.append(transitions(observation, action, reward, following))
            observation = following
        return stacked(rows)


def interact(world, learner, tasks, n, generator, greedy=False):
    """A learner acts n steps on all it has seen of its task, update after every step -> its transitions [b n ...]."""
    return played(world, learner, tasks, range(n), generator, learner.start(count(tasks)), greedy=greedy)[1]


def played(world, learner, tasks, steps, generator, state, learning=True, greedy=False):
    """A learner goes on from `state` for as many steps -> (state after them, transitions [b n ...]).

    Episodes of `world.horizon` steps follow one another; while `learning`, the state follows every step.
    """
    rows, observation = [], None
    for i in steps:
        observation = world.start(tasks) if i % world.horizon == 0 else observation
        action = learner.act(state, observation, generator, greedy)
        reward, following = world.step(tasks, observation, action, generator)
        rows.append(transitions(observation, action, reward, following))
        if learning:
            state = learner.observe(state, per_row(rows[-1]))
        observation = following
    return state, stacked(rows)


# small parts


def transitions(observation, action, reward, following):
    """The dict of a context. Any leading axes."""
    return dict(zip(TRANSITION, (observation, action, reward, following), strict=True))


def stacked(rows):
    """n dicts of [b ...] -> a dict of [b n ...]."""
    return {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}


def count(tasks):
    """b of a batch of tasks."""
    return len(next(iter(tasks.values())))


def per_row(values):
    """Tasks, or one transition of each, [b ...] -> [b 1 ...]."""
    return {name: value[:, None] for name, value in values.items()}


def pick(table, index):
    """table [b k], index int [b ...] -> [b ...]; axes of size 1 broadcast."""
    table = table.reshape(*table.shape[:-1], *(1,) * (index.ndim - table.ndim + 1), table.shape[-1])
    return torch.take_along_dim(table, index[..., None], -1)[..., 0]


def categorical(p, n, generator):
    """n independent draws from each distribution p [b k] -> int64 [b n]."""
    bounds = p.cumsum(-1)[:, :-1].contiguous()  # without the last: rounding may leave it below 1
    return torch.searchsorted(bounds, uniform((len(p), n), generator), right=True)


def uniform(shape, generator):
    return torch.rand(shape, generator=generator, device=generator.device)


def normal(shape, generator):
    return torch.randn(shape, generator=generator, device=generator.device)


def integers(high, shape, generator):
    return torch.randint(high, tuple(shape), generator=generator, device=generator.device)


def shuffled_split(items, share=0.8):
    """{"train", "heldout"}: the first `share` of the items, and the others, in the order of RandomState(0).shuffle."""
    items = np.array(items)
    np.random.RandomState(0).shuffle(items)
    cut = int(share * len(items))
    return {"train": torch.tensor(items[:cut]), "heldout": torch.tensor(items[cut:])}


def checked(name, value, allowed):
    """`value`; DataError unless it is one of `allowed`."""
    if value not in allowed:
        raise DataError(f"{name}={value!r}: expected {' or '.join(map(str, allowed))}")
    return value


def kinds_of(contexts, allowed=CONTEXTS):
    """The kinds of contexts that an option names, one or several, as a tuple; DataError for another word."""
    several = contexts if isinstance(contexts, Sequence) and not isinstance(contexts, str) else [contexts]
    if not several:
        raise DataError(f"contexts=[]: expected one or several of {', '.join(allowed)}")
    return tuple(checked("contexts", kind, allowed) for kind in several)


def one_of(kinds, generator):
    """Any of them, equally often."""
    return kinds[int(integers(len(kinds), (), generator)) if len(kinds) > 1 else 0]


def differences(one, other):
    """How the configs of two worlds differ: {option: (its values)} of what both say, but for how contexts are made."""
    both = sorted(one.keys() & other.keys() - {"contexts"})
    return {name: (one[name], other[name]) for name in both if one[name] != other[name]}


def at_least(least, **values):
    """DataError for a value below `least`, by its name."""
    for name, value in values.items():
        if not value >= least:
            raise DataError(f"{name}={value}: expected at least {least}")
