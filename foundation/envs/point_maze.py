"""OGBench's point mazes (arXiv:2410.20092): a ball in a maze is moved to a goal by steps of up to 0.2 units.

Model, maps and tasks are those of the package `ogbench`; its environment is built once per process and never stepped.
Its random numbers are NumPy's global ones, ours follow from the seed of `reset`, which takes 0.02 ms instead of 0.5.
"""

import math
import os
from functools import lru_cache

import numpy as np

from foundation.envs.maze_grid import REWARDS, MazeGrid
from foundation.envs.states import StateEnv, require, single, unknown
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

FAMILY, VERSION = "pointmaze-", "-v0"
MAZES = ("medium", "large", "giant", "teleport")
GOALS = ("tasks", "random")
STRIDE, SUBSTEPS = 0.2, 5  # units that an action of 1 moves the ball, steps of the engine after that
NEAR = 1.0  # units from the goal that are success
JITTER = 1.0  # starts and goals are that far from the middle of their cell at most, along each axis
STITCH = 4  # cells from the start to the goal
TURN = 0.05  # chance per step that an explorer takes another direction
LENGTHS = {"navigate": 1000, "stitch": 200, "explore": 500}  # steps


def full_name(name):
    """medium, pointmaze-medium or pointmaze-medium-v0 -> pointmaze-medium; DataError lists what is spelled like it."""
    short = str(name).removeprefix(FAMILY).removesuffix(VERSION)
    if short not in MAZES:
        raise unknown("point maze", short, ["all", *MAZES])
    return FAMILY + short


class PointMaze(StateEnv):
    """Observation: x, y in units, 4 to a cell. Action: the step along both axes in [-1, 1]. The goal [2], in units, is
    `goal` and the `info["goal"]` of `reset`.

    goals: tasks = of OGBench's five pairs of start and goal the one that the seed leaves, seed mod 5 (or
    `options={"task_id": 1..5}`) | random = any two free cells. reward: cost = -1 a step, 0 at the goal | sparse = 0,
    and 1 at the goal; both say what the step led to. terminate: whether the goal ends the episode.

    `options={"style": ...}` makes an episode of data, as OGBench collects them; it starts anywhere and has the
    length of `lengths`: navigate = to goals outside corridors, another one on arrival; stitch = to one goal 4 cells
    away; explore = in a random direction, changed now and then. `player(style)` plays it, with Gaussian `noise`.
    """

    styles = tuple(LENGTHS)

    def __init__(self, maze, goals="tasks", reward="cost", terminate=True, noise=0.5, lengths=None,
                 episode_steps=1000, seed=None):  # fmt: skip
        self.task = full_name(single(maze))
        super().__init__(Spaces(2, 2, low=(-1.0,) * 2, high=(1.0,) * 2), 10, episode_steps, seed)
        self.lengths, self._steps = {**LENGTHS, **(lengths or {})}, self.episode_steps
        if goals not in GOALS or reward not in REWARDS:
            raise DataError(f"goals={goals!r}, reward={reward!r}: expected one of {GOALS} and one of {list(REWARDS)}")
        if set(self.lengths) != set(LENGTHS) or min(self.lengths.values()) < 1 or not noise >= 0:
            raise DataError(f"noise={noise}, lengths={lengths}: expected at least 0, and steps of {list(LENGTHS)}")
        self.goals, self._rewards, self.terminate, self.noise = goals, REWARDS[reward], bool(terminate), float(noise)
        self._mujoco, self._world = require("mujoco", "ogbench"), world(self.task.removeprefix(FAMILY))
        self._data, self.grid = self._mujoco.MjData(self._world.model), grid(self.task.removeprefix(FAMILY))
        self._unit, self._offset = self._world._maze_unit, np.array([self._world._offset_x, self._world._offset_y])
        self.tasks = [(self.grid.at(*one["init_ij"]), self.grid.at(*one["goal_ij"])) for one in self._world.task_infos]
        teleport = self._world._teleport_info or {"teleport_in_xys": (), "teleport_out_xys": (), "teleport_radius": 0}
        self._inward, self._outward = teleport["teleport_in_xys"], teleport["teleport_out_xys"]
        self._reach = 1.5 * teleport["teleport_radius"]
        self._middles = [tuple(map(float, xy)) for xy in self.xy(np.arange(len(self.grid)))]

    @classmethod
    def names(cls, name):
        return [full_name(one) for one in (MAZES if name == "all" else [name])]

    # cells

    @property
    def steps_per_cell(self):
        """Least actions from the middle of a cell to that of the next."""
        return self._unit / STRIDE

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
        return np.array(self._goal, np.float32)

    def reset(self, *, seed=None, options=None):
        options = options or {}
        self.style, task = options.get("style"), options.get("task_id")
        if self.style not in (None, *self.styles) or task not in (None, *range(1, len(self.tasks) + 1)):
            raise DataError(f"options {options}: expected style in {self.styles}, task_id in 1..{len(self.tasks)}")
        self._task = seed if task is None else task - 1
        observation, info = super().reset(seed=seed)
        return observation, {**info, "goal": self.goal}

    def _begin(self, seed):
        self._rng = np.random.default_rng(seed)
        self.episode_steps = self.lengths.get(self.style, self._steps)
        if self.style is None and self.goals == "tasks":
            start, goal = self.tasks[(seed if self._task is None else self._task) % len(self.tasks)]
        else:
            start = self._rng.choice(self.grid.main)
            goal = self._target(start)
        xy, self._goal = self._jittered(start), self._jittered(goal)
        self._mujoco.mj_resetData(self._world.model, self._data)
        self._move(xy)
        return xy

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
        success = math.dist(xy, self._goal) <= NEAR
        if any(math.dist(xy, entry) <= self._reach for entry in self._inward):  # seen one step later, as in OGBench
            self._move(self._outward[self._rng.integers(len(self._outward))])
        if success and self.style == "navigate":
            self._goal = self._jittered(self._target(None))
        return xy, self._rewards[success], success and self.terminate and self.style is None, False, success

    # players

    def scripted(self):
        """To the middle of the next cell on a shortest way; in the goal's cell, to the goal. [2] -> [2]"""
        return self._oracle

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
