"""Whole episodes for fine-tuning on vectors: who plays them, what is asked for, and what is kept of them.

Between two rounds no episode is running, so a run that stops there has no environment to bring back.
"""

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, replace

import gymnasium
import numpy as np
import torch

from foundation import hub
from foundation.actors import SequenceActor, UniformActor, target_return
from foundation.envs import registry
from foundation.envs.skills import with_skills, wrapped
from foundation.evaluate import play
from foundation.rollout import training_seed
from pipelines import schema
from pipelines.schema import DataError
from pipelines.trajectories import STEPWISE, Trajectories, joined
from pipelines.trajectory_windows import returns_of
from pipelines.values import is_number


class Recorded(gymnasium.Wrapper):
    """Takes actions in [-1, 1] (or choices), as policies give them, and keeps the arrays of every whole episode."""

    def __init__(self, env):
        super().__init__(env)
        self.spaces, self.fps, self.tags, self.finished = env.spaces, env.fps, getattr(env, "tags", {}), []

    def reset(self, **options):
        self.observation, info = self.env.reset(**options)
        self.rows, self.led = [], []
        return self.observation, info

    def step(self, action):
        following, reward, terminated, truncated, info = self.env.step(self.spaces.from_unit(action))
        self.rows.append((self.observation, np.asarray(action), reward, terminated, truncated))
        self.led.append(info.get(schema.NEXT_OBSERVATION))
        self.observation = following
        if terminated or truncated:
            names = schema.OBSERVATION, schema.ACTION, schema.REWARD, schema.TERMINATED, schema.TRUNCATED
            columns = zip(*self.rows, strict=True)
            arrays = {name: np.array(column, STEPWISE[name]) for name, column in zip(names, columns, strict=True)}
            if self.led[0] is not None:
                arrays[schema.NEXT_OBSERVATION] = np.array(self.led, np.float32)
            self.finished.append({**arrays, schema.FINAL_OBSERVATION: np.asarray(following, np.float32)})
        return following, reward, terminated, truncated, info

    def take(self):
        """The episodes that ended since the last call."""
        finished, self.finished = self.finished, []
        return finished


def unit(spaces):
    """The same spaces in a policy's units."""
    if spaces.n_actions is not None:
        return spaces
    return replace(spaces, low=(-1.0,) * spaces.action_dim, high=(1.0,) * spaces.action_dim)


class Explorer(SequenceActor):
    """A sequence policy in training: its mode plus `noise` * N(0, 1), or with noise None a sample, in [-1, 1]."""

    def __init__(self, bundle, target, seed, noise, device="cpu", clip=True):
        super().__init__(bundle, target, seed, greedy=noise is not None, device=device)
        self.noise, self.clip = noise, clip

    def choose(self, distribution):
        action = super().choose(distribution)
        if self.spaces.n_actions is not None:
            return action
        if self.noise:
            action = action + self.noise * torch.randn(action.shape, generator=self.generator)
        return action.clamp(-1, 1) if self.clip else action

    def act(self, frame):
        super().act(frame)
        return list(self.action.numpy())  # Recorded brings them to the environment's bounds


class Targets:
    """The return to ask for in each task: `factor` beyond the best of the last `recent` episodes and of `floors`.

    fixed: a number, or a quantile such as q0.9 of the policy's data, asked for instead, always. Beyond: 1.1 times a
    positive return, 0.9 times a negative one.
    """

    def __init__(self, fixed, floors, factor, recent, statistics):
        self.floors, self.factor = floors, factor
        known = {task: returns_of({"task": task}, statistics) for task in floors} if fixed is not None else {}
        self.fixed = {task: target_return(fixed, own) for task, own in known.items()}
        self.recent = {task: deque(maxlen=recent) for task in floors}

    def __call__(self, task):
        if self.fixed:
            return self.fixed[task]
        best = max([self.floors[task], *self.recent[task]])
        return float(best + (self.factor - 1) * abs(best))

    def add(self, task, returns):
        self.recent[task].extend(returns)

    def state_dict(self):
        return {task: list(returns) for task, returns in self.recent.items()}

    def load_state_dict(self, state):
        for task, returns in state.items():
            self.recent[task].clear()
            self.recent[task].extend(returns)


def floors(tasks, bundle, data, fixed=None):
    """{task: 0.9-quantile of the offline returns in it; of all where none has its tag; the policy's without data}

    fixed: the number that is asked for anyway; a policy that does not know the returns of its data needs one.
    """
    if data is None and is_number(fixed):
        return dict.fromkeys(tasks, float(fixed))
    if data is None and bundle.config.get("condition") == "none":  # it is asked for nothing
        return dict.fromkeys(tasks, 0.0)
    if data is None:
        return {task: target_return(None, returns_of({"task": task}, bundle.statistics)) for task in tasks}
    own = {task: [t.get("task") == task for t in data.tags] for task in tasks}
    return {task: float(np.quantile(data.returns[own[task] if any(own[task]) else slice(None)], 0.9)) for task in tasks}


@dataclass
class Played:
    """A round: episodes of one task."""

    task: str
    arrays: list  # of dicts as pipelines.trajectories.write_episode takes them, actions in [-1, 1]
    tags: list  # of dicts, one per episode
    episodes: list  # foundation.rollout.Episode, in the same order
    target: float | None  # return that was asked for


class Collector:
    """Plays rounds: number r is one episode in each of the environments of task r modulo their number.

    worlds: {task: [environments]}. noise: see Explorer; None as in algo=odt and ppo.
    """

    def __init__(self, worlds, bundle, targets, noise, seed, device="cpu", clip=True):
        self.worlds = {task: [Recorded(world) for world in made] for task, made in worlds.items()}
        self.bundle, self.targets, self.noise, self.seed, self.device = bundle, targets, noise, seed, device
        self.clip = clip

    def play(self, number, actor=None):
        """Round `number` with the policy of the bundle as it is now, or with another actor -> Played."""
        task = list(self.worlds)[number % len(self.worlds)]
        worlds, target = self.worlds[task], None if actor else self.targets(task)
        learning = actor is None and self.bundle.net.training
        if actor is None:
            seed = training_seed(self.seed, len(worlds), number)
            actor = Explorer(self.bundle, target, seed, self.noise, self.device, self.clip)
        seeds = [training_seed(self.seed, slot, number) for slot in range(len(worlds))]
        found = {episode.seed: episode for episode in play(actor, worlds, seeds, label="collecting")}
        if learning:
            self.bundle.net.train()  # an actor puts it into eval mode
        arrays = [one for world in worlds for one in world.take()]
        tags = [{**world.tags, "task": task} for world in worlds]
        episodes = [found[seed] for seed in seeds]
        if target is not None:
            self.targets.add(task, [episode.returns for episode in episodes])
        return Played(task, arrays, tags, episodes, target)

    def random(self, number):
        """A round of uniform actions."""
        task = list(self.worlds)[number % len(self.worlds)]
        spaces = unit(self.worlds[task][0].spaces)
        return self.play(number, UniformActor(spaces, training_seed(self.seed, len(self.worlds[task]), number)))


def in_skills(tasks, cfg):
    """The tasks with actions as `skills` says, or as the policy that goes on learning knows them."""
    if cfg.skills.init is not None or cfg.init is None:
        return with_skills(tasks, cfg.skills)
    return with_skills(tasks, hub.load(cfg.init).config.get("skills"))


def shaped(tasks, cfg):
    """The tasks as they are trained on: with `shaping`, which evaluations never see."""
    if cfg.shaping.init is None:
        if cfg.shaping.gamma is not None:
            raise DataError(
                f"shaping.gamma={cfg.shaping.gamma} shapes nothing without shaping.init=<run of method=hilp>"
            )
        return tasks
    told = cfg.data.condition if cfg.init is None else hub.load(cfg.init).config.get("condition", "return")
    if told != "none" or cfg.data.train is not None:
        raise DataError(
            "shaping changes rewards: the policy must be told no returns, data.condition=none, and learn from no given"
            " episodes, which lack it; leave out data.train"
        )
    gamma = cfg.algo.agent.gamma if cfg.shaping.gamma is None else cfg.shaping.gamma
    return [{**task, "shaping": {**cfg.shaping, "gamma": gamma}} for task in tasks]


def opened_worlds(stack: ExitStack, tasks, n):
    """{name of a task: list of n environments that `stack` closes}; DataError unless all have the same sizes."""
    worlds = {}
    for task in tasks:
        worlds[task["name"]] = made = [wrapped(registry.make(task, seed=i), task) for i in range(n)]
        for world in made:
            stack.callback(world.close)
            world.tags = {"task": task["name"]}
    first = next(iter(worlds.values()))[0].spaces
    for name, (world, *_) in worlds.items():
        if [getattr(world.spaces, k) for k in SIZES] != [getattr(first, k) for k in SIZES]:
            raise DataError(f"one policy cannot act in all of {list(worlds)}: {name} has {world.spaces}, not {first}")
    return worlds


SIZES = ("state_dim", "action_dim", "n_actions")


def stack_episodes(arrays, tags, spaces, fps):
    """Trajectories of episodes as `Played` has them."""
    flat = joined(arrays)
    flat[schema.ACTION] = flat[schema.ACTION].astype(spaces.action_kind)
    return Trajectories(
        **flat, final_observation=np.stack([one[schema.FINAL_OBSERVATION] for one in arrays]),
        offsets=np.cumsum([0, *(len(one[schema.REWARD]) for one in arrays)]), tags=tuple(tags), spaces=spaces, fps=fps,
    )  # fmt: skip
