"""OGBench's point mazes (arXiv:2410.20092): a ball in a maze is moved to a goal by steps of up to 0.2 units.

Model, maps and tasks are those of the package `ogbench`; its environment is built once per process and never stepped.
Its random numbers are NumPy's global ones, ours follow from the seed of `reset`, which takes 0.02 ms instead of 0.5.
"""

import math
import os
from functools import cached_property, lru_cache

import numpy as np

from foundation.envs import state_rewards
from foundation.envs.goal_tasks import GoalTasks
from foundation.envs.maze_grid import REWARDS, MazeGrid
from foundation.envs.state_rewards import STRIDE
from foundation.envs.states import require, single, unknown
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

FAMILY, VERSION = "pointmaze-", "-v0"
MAZES = ("medium", "large", "giant", "teleport")
GOALS = ("tasks", "random")
SUBSTEPS = 5  # of the engine after a stride
RADIUS = 0.7  # of the ball
NEAR = 1.0  # units from the goal that are success
JITTER = 1.0  # starts and goals are that far from the middle of their cell at most, along each axis
STITCH = 4  # cells from the start to the goal
TURN = 0.05  # chance per step that an explorer takes another direction
STEPS, REWARD_STEPS = 1000, 300  # of an episode with a goal, with a reward of states
AS_GOOD = 0.01  # places whose rewards differ by less are equally good to go to
LENGTHS = {"navigate": 1000, "stitch": 200, "explore": 500}  # steps


def full_name(name):
    """medium, pointmaze-medium or pointmaze-medium-v0 -> pointmaze-medium; DataError lists what is spelled like it."""
    short = str(name).removeprefix(FAMILY).removesuffix(VERSION)
    if short not in MAZES:
        raise unknown("point maze", short, ["all", *MAZES])
    return FAMILY + short


class PointMaze(GoalTasks):
    """Observation: x, y in units, 4 to a cell. Action: the step along both axes in [-1, 1]. The goal [2], in units, is
    `goal` and the `info["goal"]` of `reset`.

    goals: tasks = of OGBench's five pairs of start and goal the one that the seed leaves, seed mod 5 (or
    `options={"task_id": 1..5}`) | random = any two free cells. reward: cost = -1 a step, 0 at the goal | sparse = 0,
    and 1 at the goal | a name of state_rewards.REWARDS; all say what the step led to. terminate: whether the goal ends
    the episode. A reward of states knows no success, starts anywhere, and only time ends it; its goal, which the
    scripted player goes to, is the nearest of the best places, None where moving is rewarded.

    `options={"style": ...}` makes an episode of data, as OGBench collects them; it starts anywhere and has the
    length of `lengths`: navigate = to goals outside corridors, another one on arrival; stitch = to one goal 4 cells
    away; explore = in a random direction, changed now and then. `player(style)` plays it, with Gaussian `noise`.
    """

    styles = tuple(LENGTHS)

    def __init__(self, maze, goals="tasks", reward="cost", terminate=True, noise=0.5, lengths=None,
                 episode_steps=None, seed=None):  # fmt: skip
        self.task, named = full_name(single(maze)), reward in state_rewards.REWARDS
        steps = (REWARD_STEPS if named else STEPS) if episode_steps is None else episode_steps
        super().__init__(Spaces(2, 2, low=(-1.0,) * 2, high=(1.0,) * 2), 10, steps, seed)
        self.lengths, self._steps = {**LENGTHS, **(lengths or {})}, self.episode_steps
        if goals not in GOALS or not (named or reward in REWARDS):
            known = [*REWARDS, *state_rewards.REWARDS]
            raise DataError(f"goals={goals!r}, reward={reward!r}: expected one of {GOALS} and one of {known}")
        if set(self.lengths) != set(LENGTHS) or min(self.lengths.values()) < 1 or not noise >= 0:
            raise DataError(f"noise={noise}, lengths={lengths}: expected at least 0, and steps of {list(LENGTHS)}")
        self.goals, self._rewards, self.noise = goals, REWARDS.get(reward), float(noise)
        self.terminate = bool(terminate) and not named
        self._mujoco, self._world = require("mujoco", "ogbench"), world(self.task.removeprefix(FAMILY))
        self._data, self.grid = self._mujoco.MjData(self._world.model), grid(self.task.removeprefix(FAMILY))
        self._unit, self._offset = self._world._maze_unit, np.array([self._world._offset_x, self._world._offset_y])
        self.tasks = [(self.grid.at(*one["init_ij"]), self.grid.at(*one["goal_ij"])) for one in self._world.task_infos]
        teleport = self._world._teleport_info or {"teleport_in_xys": (), "teleport_out_xys": (), "teleport_radius": 0}
        self._inward, self._outward = teleport["teleport_in_xys"], teleport["teleport_out_xys"]
        self._reach = 1.5 * teleport["teleport_radius"]
        self._middles = [tuple(map(float, xy)) for xy in self.xy(np.arange(len(self.grid)))]
        self.state_reward = state_rewards.reward_of(reward, self.bounds) if named else None

    @classmethod
    def names(cls, name):
        return [full_name(one) for one in (MAZES if name == "all" else [name])]

    # cells

    @property
    def steps_per_cell(self):
        """Least actions from the middle of a cell to that of the next."""
        return self._unit / STRIDE

    @property
    def bounds(self):
        """(low [2], high [2]) of where the middle of the ball can be."""
        reach = self._unit / 2 - RADIUS
        return np.min(self._middles, 0) - reach, np.max(self._middles, 0) + reach

    def distances(self):
        """Least steps from cell to cell, float32 [n n]; inf where there is no way. Teleports are none."""
        return self.grid.distances

    def cell(self, xy):
        """Numbers of the cells that points [... 2] lie in, int [...]."""
        column, row = np.moveaxis((np.asarray(xy) + self._offset + self._unit / 2) // self._unit, -1, 0).astype(int)
        return np.vectorize(self.grid.at, otypes=[int])(row, column)

    def xy(self, cell):
        """The middle of cells [...] by their numbers, float32 [... 2]."""
        return (self.grid.cells[cell][..., ::-1] * self._unit - self._offset).astype(np.float32)

    # episodes

    @property
    def goal(self):
        return None if self._goal is None else np.array(self._goal, np.float32)

    def _begin(self, seed):
        self._rng = np.random.default_rng(seed)
        self.episode_steps = self.lengths.get(self.style, self._steps)
        if self.style is None and self.goals == "tasks" and not self._pays_states:
            start, goal = self.tasks[self.task_number(seed)]
        else:
            start = self._rng.choice(self.grid.main)
            goal = None if self._pays_states else self._target(start)
        xy = self._jittered(start)
        self._goal = self._best(start) if self._pays_states else self._jittered(goal)
        self._mujoco.mj_resetData(self._world.model, self._data)
        self._move(xy)
        self._xy = xy
        return xy

    @property
    def _pays_states(self):
        """Whether this is an episode of a reward of states, and not one of data."""
        return self.state_reward is not None and self.style is None

    def _best(self, start):
        """The nearest to the cell `start` of the places with the most reward for being there, (x, y) or None."""
        places, cells, rewards = self._rewarded
        best = np.flatnonzero(rewards >= rewards.max() - AS_GOOD)
        nearest = best[self.grid.distances[start, cells[best]].argmin()]
        return tuple(map(float, places[nearest])) if rewards[nearest] > 0 else None

    @cached_property
    def _rewarded(self):
        """(places [m 2] all over the cells, their cells [m], rewards for staying there [m])"""
        steps = np.linspace(-1, 1, 7) * (self._unit / 2 - RADIUS)
        around = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        places = (self.xy(self.grid.main)[:, None] + around).reshape(-1, 2)
        return places, np.repeat(self.grid.main, len(around)), self.state_reward(places, places)

    def _target(self, start):
        """The cell to go to next."""
        if self.style == "navigate":
            return self._rng.choice(self.grid.rooms)
        if self.style == "stitch":
            away = self.grid.distances[start, self.grid.main]
            return self._rng.choice(self.grid.main[away == min(STITCH, away.max())])
        return self._rng.choice(self.grid.main)

    def _jittered(self, cell):
        """A point in a cell, (x, y)."""
        (x, y), (dx, dy) = self._middles[cell], self._rng.uniform(-JITTER, JITTER, 2)
        return x + dx, y + dy

    def _move(self, xy):
        self._data.qpos[:], self._data.qvel[:] = xy, 0
        self._mujoco.mj_forward(self._world.model, self._data)

    def _advance(self, action):
        data = self._data
        data.qpos += STRIDE * action
        data.qvel[:] = 0
        self._mujoco.mj_step(self._world.model, data, SUBSTEPS)
        xy = data.qpos.tolist()
        if self._pays_states:
            success, reward = None, self._paid(xy)
        else:
            success = math.dist(xy, self._goal) <= NEAR
            reward = self._paid(xy) if self._rewards is None else self._rewards[success]
        self._xy = xy
        if any(math.dist(xy, entry) <= self._reach for entry in self._inward):  # seen one step later, as in OGBench
            self._move(self._outward[self._rng.integers(len(self._outward))])
        if success and self.style == "navigate":
            self._goal = self._jittered(self._target(None))
        return xy, reward, bool(success) and self.terminate and self.style is None, False, success

    def _paid(self, xy):
        """The reward of states for coming here, a float."""
        return float(self.state_reward(np.array([self._xy]), np.array([xy]))[0])

    # players

    def scripted(self):
        """To the middle of the next cell on a shortest way; in the goal's cell, to the goal. [2] -> [2]

        None where a reward of states is none for any place."""
        return self._oracle if self.state_reward is None or self._rewarded[2].any() else None

    def player(self, style, rng):
        """Plays the episodes of a style: that direction, or an explorer's, and noise. [2] -> [2]"""
        heading = _turned(rng)

        def play(observation):
            nonlocal heading
            if style == "explore" and rng.random() < TURN:
                heading = _turned(rng)
            wanted = heading if style == "explore" else self._oracle(observation)
            return np.clip(wanted + self.noise * rng.standard_normal(2), -1, 1).astype(np.float32)

        return play

    def _oracle(self, observation):
        x, y = map(float, observation)
        here, there = self._number(x, y), self._number(*self._goal)
        target_x, target_y = self._goal if here == there else self._middles[self.grid.toward[here, there]]
        dx, dy = target_x - x, target_y - y
        far = max(math.hypot(dx, dy), STRIDE)  # nearer than a stride: a shorter one
        return np.array([dx / far, dy / far], np.float32)

    def _number(self, x, y):
        """`cell` of one point, without arrays."""
        half = self._unit / 2
        row, column = (y + self._offset[1] + half) // self._unit, (x + self._offset[0] + half) // self._unit
        return self.grid.at(int(row), int(column))


def _turned(rng):
    """A random direction, [2]."""
    angle = rng.uniform(-np.pi, np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


@lru_cache(len(MAZES))
def world(maze):
    """OGBench's environment: its model, map and tasks, shared by all of ours in this process and never changed."""
    made = require("ogbench.locomaze.maze", "ogbench").make_maze_env("point", "maze", maze_type=maze)
    os.unlink(made.fullpath)  # it leaves its model in a temporary file
    return made


@lru_cache(len(MAZES))
def grid(maze):
    """MazeGrid of a maze."""
    return MazeGrid(world(maze).maze_map == 1)
