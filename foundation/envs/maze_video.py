"""Mazes seen from above as an environment of frames: a new map for every seed, four keys, thousands of frames/s.

For learning from video at a size for CPUs and tests: distances between places are known exactly, for scoring. As every
task of frames it takes `{"keys", "mouse"}` (the mouse does nothing), so that what plays ViZDoom plays this.
"""

import zlib
from functools import lru_cache

import gymnasium
import numpy as np
from av import VideoFrame
from gymnasium.utils import seeding

from foundation.envs.maze_grid import REWARDS, MazeGrid
from foundation.envs.maze_picture import MazePicture
from pipelines.actions import ActionSpec
from pipelines.pixels import Resizer
from pipelines.schema import DataError

MAZE = ActionSpec(  # 18 x 9 classes, of which a policy that holds the mouse still uses 9 x 1
    name="maze",
    keys=("up", "down", "left", "right"),
    groups=(("up", "down"), ("left", "right")),
    cancelling=(0, 1),
    exclusive=(),
    camera_max=1.0,
    camera_mu=1.0,
    camera_bins=3,
)
FPS = 10.0
BODY = 0.3  # cells from the agent's middle to its sides: what walls stop
GAP = 1e-6  # cells left to a wall
SPLITS = ("train", "heldout")
ALL_MAPS = 1 << 31
FIDGET = (2, 7)  # frames of one random combination of keys, from and below
NO_MOUSE = np.zeros(2, np.float32)


class MazeVideo(gymnasium.Env):
    """Frames uint8 [h w 3] of an agent in a maze. The same seed and actions give the same frames.

    Frames have the colours of stored video, at half the resolution: against clips of the same play they agree to 45 dB,
    without that to 28 dB. `render()` is the drawing itself, which is what clips are encoded from.

    rooms, loops: of the map, see MazeGrid.carved. maps: how many there are in a split, null = 2^31; the splits share
    none. goals: null = the goal is any cell, or numbers into the map's own shuffled list of cells.
    show_goal: mark it in the picture. reward: cost = -1 a frame, 0 at the goal | sparse = 0, and 1 at the goal.
    terminate: whether the goal ends the episode. speed: cells a frame along each axis. privileged: no difference here,
    `player` always sees the maze.

    reset's options: {"roam": True} = another goal on arrival, without an end, unmarked; {"map": number}.
    Of the engine, never part of a frame: `position` (row, column) in cells, `cell` and `target`, the numbers of the
    agent's cell and of the goal's in `grid`; `distance` between them. `goal` is the frame of an agent at the goal.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode, fps, spec_of_actions = "rgb_array", FPS, MAZE

    def __init__(
        self,
        size=(64, 64),
        rooms=5,
        loops=0.2,
        maps=None,
        split="train",
        goals=None,
        show_goal=True,
        reward="cost",
        terminate=True,
        speed=0.2,
        episode_frames=500,
        privileged=False,
        seed=None,
    ):
        if rooms < 2 or not 0 <= loops <= 1 or not 0 < speed <= 0.5 or episode_frames < 1 or maps == 0:
            raise DataError(
                f"rooms={rooms}, loops={loops}, speed={speed}, episode_frames={episode_frames}, maps={maps}: expected"
                " at least 2, 0 to 1, up to 0.5, at least 1, at least 1 or null"
            )
        if split not in SPLITS or reward not in REWARDS:
            raise DataError(f"split={split!r}, reward={reward!r}: expected one of {SPLITS}, one of {list(REWARDS)}")
        places = rooms * rooms  # as many cells as every map has
        if goals is not None and not (len(goals) and all(0 <= goal < places for goal in goals)):
            raise DataError(f"goals={goals}: expected some of 0..{places - 1}, or null for any cell")
        self.size, self.look, self.split = tuple(size), (int(rooms), float(loops)), split
        self.maps, self.goals = ALL_MAPS if maps is None else int(maps), goals
        self.show_goal, self.terminate, self.rewards = bool(show_goal), bool(terminate), REWARDS[reward]
        self.speed, self.episode_frames = float(speed), int(episode_frames)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*self.size, 3), np.uint8)
        mouse = gymnasium.spaces.Box(-MAZE.camera_max, MAZE.camera_max, (2,), np.float32)
        self.action_space = gymnasium.spaces.Dict(keys=gymnasium.spaces.MultiBinary(len(MAZE.keys)), mouse=mouse)
        self._np_random, self._np_random_seed = seeding.np_random(seed)
        self._planar, self._rgb = Resizer(), Resizer()
        painted(self.split, 0, self.look, self.size)  # fail now rather than at the first reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = options or {}
        self.roam = bool(options.get("roam"))
        self.map = int(options.get("map", self.np_random.integers(self.maps)))
        self.grid, self.picture, self.places = painted(self.split, self.map, self.look, self.size)
        self.target = self._target()
        others = np.delete(np.arange(len(self.grid)), self.target)
        self.position = tuple((self.grid.cells[self.np_random.choice(others)] + 0.5).tolist())
        self._episode = {"return": 0.0, "frames": 0, "success": False}
        return self._draw(), self._info()

    def step(self, action):
        up, down, left, right = np.asarray(action["keys"], bool).tolist()
        for axis, way in enumerate((down - up, right - left)):
            self.position = slid(self.grid.walls, self.position, axis, way * self.speed)
        success = self.cell == self.target
        reward = self.rewards[success]
        self._episode["return"] += reward
        self._episode["frames"] += 1
        self._episode["success"] |= success
        terminated = success and self.terminate and not self.roam
        truncated = not terminated and self._episode["frames"] == self.episode_frames
        info = self._info() | {"success": success}
        if terminated or truncated:
            info["episode"] = dict(self._episode)
        if success and self.roam:
            self.target = self._target()
        return self._draw(), reward, terminated, truncated, info

    def render(self):
        return self._frame

    @property
    def cell(self):
        row, column = self.position
        return int(self.grid.number[int(row), int(column)])

    @property
    def goal(self):
        return self._stored(self.picture.frame(self.grid.cells[self.target] + 0.5, self._mark()))

    @property
    def distance(self):
        """Least steps of cells from the agent's cell to the goal's."""
        return float(self.grid.distances[self.cell, self.target])

    def player(self, seed=0, fidgeting=0.0):
        return MazePlayer(self, seed, fidgeting)

    def _target(self):
        """The cell of a new goal."""
        if self.roam or self.goals is None:
            return int(self.np_random.integers(len(self.grid)))
        return int(self.places[self.np_random.choice(self.goals)])

    def _mark(self):
        return tuple(self.grid.cells[self.target].tolist()) if self.show_goal and not self.roam else None

    def _draw(self):
        self._frame = self.picture.frame(self.position, self._mark())
        return self._stored(self._frame)

    def _stored(self, frame):
        """A drawing as a reader of stored video would see it."""
        return self._rgb.rgb(self._planar.planar(VideoFrame.from_ndarray(frame, format="rgb24")))

    def _info(self):
        return {"map": self.map, "position": self.position}


def slid(walls, position, axis, step):
    """The position after a step along one axis, up to the next wall. (row, column), in cells"""
    if not step:
        return position
    moved, other, side = position[axis] + step, position[1 - axis], 1 if step > 0 else -1
    ahead = int(moved + side * BODY)
    beside = (int(other - BODY), int(other + BODY))
    if any(walls[(ahead, n) if axis == 0 else (n, ahead)] for n in beside):
        moved = ahead - BODY - GAP if step > 0 else ahead + 1 + BODY + GAP
    return (moved, other) if axis == 0 else (other, moved)


class MazePlayer:
    """Walks to the goal by way of the cells' middles; in a share `fidgeting` of the frames it presses random keys."""

    def __init__(self, env, seed=0, fidgeting=0.0):
        if not 0 <= fidgeting < 1:
            raise DataError(f"fidgeting={fidgeting}: expected a share of frames in [0, 1)")
        self.env, self.rng = env, np.random.default_rng(seed)
        self.chance = fidgeting / (1 - fidgeting) / (sum(FIDGET) - 1) * 2  # of beginning, in a frame without
        self.reset()

    def reset(self):
        self.left, self.keys = 0, None

    def act(self):
        if not self.left and self.chance and self.rng.random() < self.chance:
            self.left, self.keys = int(self.rng.integers(*FIDGET)), self.rng.integers(2, size=4).astype(np.uint8)
        if self.left:
            self.left -= 1
            return {"keys": self.keys, "mouse": NO_MOUSE}
        env = self.env
        down, right = env.grid.cells[env.grid.toward[env.cell, env.target]] + 0.5 - env.position
        near = env.speed / 2  # no key for what a frame would overshoot
        keys = np.array([down < -near, down > near, right < -near, right > near], np.uint8)
        return {"keys": keys, "mouse": NO_MOUSE}


@lru_cache(64)
def painted(split, number, look, size):
    """(MazeGrid, MazePicture, its free cells in a random order) of a map."""
    rng = np.random.default_rng([zlib.crc32(split.encode()), number])
    grid = MazeGrid.carved(*look, rng)
    order = rng.permutation(len(grid))
    return grid, MazePicture(grid, size, rng), order
