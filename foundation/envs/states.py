"""Environments whose observations are vectors, behind one interface; gymnasium's and dm_control's by their ids.

Each has `spaces` (pipelines.trajectories.Spaces), `fps` (steps per second), and `scripted()`: a function observation
[s] -> action [a] in the bounds of `spaces`, or None where nobody has written such a policy.
"""

import difflib
import importlib
import warnings

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from pipelines.schema import DataError
from pipelines.trajectories import Spaces


class StateEnv(gymnasium.Env):
    """Base: the same seed and actions give the same episode, whatever was played before.

    Actions are clipped to the bounds. After `episode_steps` (None: no limit) an episode is truncated. `info["success"]`
    is that of the step, where the task defines it; the last step's `info["episode"]` has the whole episode's, which is
    success at any step, beside return and frames. Subclasses define `_begin` and `_advance`.

    styles: names of the task's own ways to play, for data. `reset(options={"style": name})` starts such an episode,
    `player(name, rng)` is a function observation [s] -> action that plays it, noise included.
    """

    styles = ()

    def __init__(self, spaces, fps, episode_steps=None, seed=None):
        self.spaces, self.fps = spaces, float(fps)
        self.episode_steps = None if episode_steps is None else int(episode_steps)
        if self.episode_steps is not None and self.episode_steps < 1:
            raise DataError(f"episode_steps={episode_steps}: expected at least 1, or null for the task's own limit")
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spaces.state_dim,), np.float32)
        if spaces.n_actions is not None:
            self.action_space = gymnasium.spaces.Discrete(spaces.n_actions)
        else:
            self._low, self._high = np.array(spaces.low, np.float32), np.array(spaces.high, np.float32)
            self.action_space = gymnasium.spaces.Box(self._low, self._high, dtype=np.float32)
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    @classmethod
    def names(cls, name):
        """The tasks that a name in a task YAML stands for: list of their names."""
        return [name]

    def _begin(self, seed):
        """Starts the episode of that seed -> observation [s]."""
        raise NotImplementedError

    def _advance(self, action):
        """One step with an action in the bounds -> observation [s], reward, terminated, truncated, success or None."""
        raise NotImplementedError

    def scripted(self):
        return None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._episode = {"return": 0.0, "frames": 0}
        return np.asarray(self._begin(int(self.np_random.integers(2**31))), np.float32), {}

    def step(self, action):
        observation, reward, terminated, truncated, success = self._advance(self._checked(action))
        self._episode["return"] += float(reward)
        self._episode["frames"] += 1
        truncated = truncated or self._episode["frames"] == self.episode_steps
        info = {}
        if success is not None:
            info["success"] = bool(success)
            self._episode["success"] = self._episode.get("success", False) or info["success"]
        if terminated or truncated:
            info["episode"] = dict(self._episode)
        observation = np.asarray(observation, np.float32)
        return observation, float(reward), bool(terminated), bool(truncated and not terminated), info

    def _checked(self, action):
        """The action inside the bounds; DataError for another size, or NaN, which a simulator would play as a reset."""
        if self.spaces.n_actions is not None:
            if not 0 <= int(action) < self.spaces.n_actions:
                raise DataError(f"action {action}: expected 0..{self.spaces.n_actions - 1}")
            return int(action)
        action = np.asarray(action, np.float32)
        if action.shape != self._low.shape or not np.isfinite(action).all():
            raise DataError(f"expected an action of {len(self._low)} finite numbers, got {np.array2string(action)}")
        return np.clip(action, self._low, self._high)


def require(module, extra):
    """Imports what an extra of ours installs; DataError names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f'{package} is missing ({error}): pip install "foundation-policy[{extra}]"') from error


def unknown(kind, name, known):
    """DataError for a name that does not exist, with those that are spelled like it."""
    near = difflib.get_close_matches(str(name).lower(), known, 5, 0.5)
    return DataError(f"unknown {kind} {name!r}; " + (f"did you mean {', '.join(near)}?" if near else f"known: {known}"))


def single(task):
    """The name of a task that an environment is to play; DataError for a list."""
    if not isinstance(task, str):
        raise DataError(f"an environment plays one task, got {task!r}; registry.tasks_of makes one mapping per name")
    return task


class Gymnasium(StateEnv):
    """An environment of gymnasium with vectors as observations, such as Hopper-v5; its own time limit by default."""

    def __init__(self, task, episode_steps=None, seed=None):
        if ":" in single(task):  # gymnasium would import the module named before the colon
            raise DataError(f"{task!r}: expected an id without a module, such as Hopper-v5")
        limit = {} if episode_steps is None else {"max_episode_steps": int(episode_steps)}
        try:
            self._env = gymnasium.make(task, disable_env_checker=True, **limit)
        except gymnasium.error.DependencyNotInstalled as error:
            raise DataError(f'{task}: {error}: pip install "foundation-policy[mujoco]"') from error
        except gymnasium.error.Error as error:
            raise DataError(f"unknown gymnasium environment {task!r}: {error}") from error
        inner = self._env.unwrapped
        fps = 1 / inner.dt if hasattr(inner, "dt") else inner.metadata.get("render_fps", 1)
        super().__init__(spaces_of(task, self._env), fps, episode_steps, seed)

    def _begin(self, seed):
        return self._env.reset(seed=seed)[0]

    def _advance(self, action):
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, reward, terminated, truncated, info.get("is_success")

    def close(self):
        self._env.close()


def spaces_of(task, env):
    """Spaces of a gymnasium environment; DataError unless it shows vectors and takes numbers or one choice."""
    shown, taken = env.observation_space, env.action_space
    box, choice = (isinstance(taken, kind) for kind in (gymnasium.spaces.Box, gymnasium.spaces.Discrete))
    if not isinstance(shown, gymnasium.spaces.Box) or len(shown.shape) != 1 or not (choice or len(taken.shape) == 1):
        raise DataError(f"{task} shows {shown} and takes {taken}; expected vectors, or one of n actions")
    if choice:
        return Spaces(shown.shape[0], 1, n_actions=int(taken.n))
    if not (box and taken.is_bounded()):
        raise DataError(f"{task} takes {taken}; expected actions with bounds")
    return Spaces(shown.shape[0], taken.shape[0], low=tuple(taken.low.tolist()), high=tuple(taken.high.tolist()))


class DmControl(StateEnv):
    """A task of dm_control's suite as <domain>-<task>, such as cheetah-run or ball_in_cup-catch.

    The observation is all of the task's entries in their order, one after another; actions are scaled to [-1, 1].
    """

    def __init__(self, task, episode_steps=None, seed=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing display, which only pictures need
            suite = require("dm_control.suite", "dm_control")
        known = ["-".join(pair) for pair in suite.ALL_TASKS]
        if single(task) not in known:
            raise unknown("dm_control task", task, known)
        self._env = suite.load(*task.split("-", 1))
        taken = self._env.action_spec()
        self._floor, self._range = taken.minimum, taken.maximum - taken.minimum
        size = sum(int(np.prod(entry.shape)) for entry in self._env.observation_spec().values())
        (n,) = taken.shape
        spaces = Spaces(size, n, low=(-1.0,) * n, high=(1.0,) * n)
        super().__init__(spaces, 1 / self._env.control_timestep(), episode_steps, seed)

    def _begin(self, seed):
        self._env.task.random.seed(seed)
        return flat(self._env.reset())

    def _advance(self, action):
        now = self._env.step(self._floor + (action.astype(np.float64) + 1) / 2 * self._range)
        terminated = now.last() and now.discount == 0  # a discount at the last step: only the time was up
        return flat(now), now.reward, terminated, now.last(), None


def flat(timestep):
    return np.concatenate([np.ravel(value) for value in timestep.observation.values()])
