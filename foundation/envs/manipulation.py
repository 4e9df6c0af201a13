"""OGBench's manipulation tasks from states (arXiv:2410.20092): a robot arm moves cubes, a drawer, a window and buttons.

Model, tasks and scripted players are those of the package `ogbench`. Two of its traps are closed here: goals, and what
the players do, come from random numbers that no seed reaches (of a space made anew at every look; NumPy's global ones).
"""

import warnings
from functools import lru_cache

import gymnasium
import numpy as np

from foundation.envs.goal_tasks import GoalTasks
from foundation.envs.manipulation_players import CollectionPlayer, TaskPlayer
from foundation.envs.maze_grid import REWARDS
from foundation.envs.states import require, single, unknown
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

VERSION = "-v0"
STEPS = {"cube-single": 200, "cube-double": 500, "cube-triple": 1000, "cube-quadruple": 1000, "scene": 750}
LENGTHS = {"play": 1000, "noisy": 1000}  # steps
ACTIONS = 5  # motion of the hand (3), its turn, opening of the gripper: all relative to where they are
COLLECT = "data_collection"  # the package's word
HIDDEN = (0.29, -0.3, 0.06, 0.08)  # metres: beyond these sides the scene's cube is out of sight, but in the drawer


def full_name(name):
    """cube-single or cube-single-v0 -> cube-single; DataError lists what is spelled like it."""
    short = str(name).removesuffix(VERSION)
    if short not in STEPS:
        raise unknown("manipulation task of OGBench", short, ["all", *STEPS])
    return short


class Manipulation(GoalTasks):
    """Observation: joints of the arm (6), their speeds (6), hand (3) and its direction (2), opening and contact of the
    gripper (2), then every cube: place (3), quaternion (4), direction (2); in the scene also the buttons, drawer and
    window; as OGBench scales them. The goal, an observation too, is `goal` and the `info["goal"]` of `reset`; nothing
    but its objects counts.

    The task is the one of OGBench's five that the seed leaves, seed mod 5 (or `options={"task_id": 1..5}`). reward:
    cost = -1 a step, 0 at the goal | sparse = 0, and 1 at the goal. terminate: whether the goal ends the episode.

    `options={"style": ...}` makes an episode of data, as OGBench collects them: one object after another is moved
    somewhere, by `player(style)`. play = along a plan made ahead, with smooth `noise`; noisy = by the state alone, with
    up to that much noise a step and a `random` share of random actions. Success and reward are those of the object
    that is moved. Such an episode has no `goal`; it has the length of `lengths`, but in the scene a cube that gets out
    of sight ends it.
    """

    styles = tuple(LENGTHS)

    def __init__(self, name, reward="cost", terminate=True, noise=0.1, random=0.1, lengths=None, episode_steps=None,
                 seed=None):  # fmt: skip
        self.task = full_name(single(name))
        self.lengths = {**LENGTHS, **(lengths or {})}
        if reward not in REWARDS:
            raise DataError(f"reward={reward!r}: expected one of {list(REWARDS)}")
        if set(self.lengths) != set(LENGTHS) or min(self.lengths.values()) < 1:
            raise DataError(f"lengths={lengths}: expected steps of {list(LENGTHS)}")
        if not noise >= 0 or not 0 <= random <= 1:
            raise DataError(f"noise={noise}, random={random}: expected at least 0, and a share")
        self.noise, self.random, self.terminate = float(noise), float(random), bool(terminate)
        self.world, self._rewards = world(self.task), REWARDS[reward]
        self._steps = STEPS[self.task] if episode_steps is None else episode_steps
        self.tasks = [info["task_name"] for info in self.world.task_infos]
        state_dim = len(self.world.reset(seed=0, options={"task_id": 1})[0])
        spaces = Spaces(state_dim, ACTIONS, low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)
        super().__init__(spaces, 1 / self.world.control_timestep(), self._steps, seed)
        self.goal, self.info, self._planned = None, None, TaskPlayer(self)

    @classmethod
    def names(cls, name):
        return [full_name(one) for one in (STEPS if name == "all" else [name])]

    def _begin(self, seed):
        self.episode_steps = self.lengths.get(self.style, self._steps)
        self.rng = np.random.default_rng(seed)  # of the scripted player
        self.world.chance.seed(seed)
        self.world._mode = COLLECT if self.style else "task"
        observation, self.info = self.world.reset(seed=seed, options={"task_id": self.task_number(seed) + 1})
        self.goal = None if self.style else np.asarray(self.info["goal"], np.float32)
        self._planned.start()
        return observation

    def _advance(self, action):
        observation, _, _, _, self.info = self.world.step(action)
        success = bool(self.info["success"])
        ended = success and self.terminate and self.style is None
        return observation, self._rewards[success], ended, bool(self.style) and self._out_of_sight(), success

    def _out_of_sight(self):
        """Whether the scene's cube is where no goal could show it, which OGBench leaves out of its data."""
        right, left, low, high = HIDDEN
        _, y, z = self.info["privileged/block_0_pos"]
        return self.task == "scene" and (y >= right or (y <= left and not low <= z <= high))

    def scripted(self):
        """Brings one object after another to its goal; in an episode of data, the one that is to be moved. [s] -> [5]

        It looks at the simulator, not at the observation."""
        return self._planned

    def player(self, style, rng):
        """Plays the episodes of a style, noise included. [s] -> [5]"""
        return CollectionPlayer(self, style, rng)


@lru_cache(len(STEPS))
def kind(task):
    """The package's class of a task's environments, with a generator of random actions that can be seeded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing display, which only pictures need
        cube = require("ogbench.manipspace.envs.cube_env", "ogbench").CubeEnv
        scene = require("ogbench.manipspace.envs.scene_env", "ogbench").SceneEnv
    base = scene if task == "scene" else cube
    return type("Seeded", (base,), {"action_space": property(lambda self: self.chance)})


def world(task):
    """OGBench's environment of a task; `chance` is what it samples random actions from."""
    made = kind(task)(task.removeprefix("cube-"), mode="task", visualize_info=False)
    made.chance = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)
    return made
