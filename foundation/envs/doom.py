"""ViZDoom with a person's interface: RGB frames out, held keys and degrees of mouse motion in.

An action is `{"keys": uint8 [k], "mouse": float32 [2]}`: the keys of `pipelines.actions.DOOM` held during the frame,
and degrees turned during the frame (pitch down positive, yaw right positive). One frame lasts `tics` of the engine's 35
tics a second; at 2 tics, 17.5 frames/s. The engine's delta buttons act per tic, so each tic gets `mouse / tics`.
"""

import tempfile
from pathlib import Path

import gymnasium
import numpy as np
from av import VideoFrame
from gymnasium.utils import seeding

from foundation.envs.doom_engine import FACTS, NATIVE, TICS_PER_SECOND, World, start_game
from pipelines.actions import DOOM
from pipelines.pixels import Resizer
from pipelines.schema import DataError

BELONGINGS = [FACTS.index(name) for name in ("health", "armor", "ammo2", "ammo3", "ammo4", "ammo5")]


class DoomEnv(gymnasium.Env):
    """One ViZDoom game. The same seed and actions give the same frames.

    maps: list of "wad:map", or {split: list}; a reset draws one by its seed, or takes `options={"map": ...}`.
    start: "default" (the map's own), "random" (anywhere the player can walk to), or a name in `starts`, whose list
        of positions the map's own random start is drawn from (by rejection).
    reward: the engine's (set by `living_reward`, `death_penalty` and the map's script) plus, in `bonus`, points per
        newly visited square of `cell_units`, per item taken and per monster killed, from the engine's state.
    goal: ending the episode alive is success, and reported as such.
    enabled_keys: the other keys do nothing.
    privileged: also lists objects, for the scripted player. Never part of an observation.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(
        self,
        maps,
        split="train",
        size=NATIVE,
        tics=2,
        episode_tics=2100,
        start_tics=10,
        skill=3,
        hud=False,
        living_reward=0.0,
        death_penalty=0.0,
        bonus=None,
        start="default",
        starts=None,
        goal=False,
        enabled_keys=DOOM.keys,
        privileged=False,
        seed=None,
    ):
        self.maps = [str(m) for m in self._split(maps, split)]
        self.size, self.tics = (int(size[0]), int(size[1])), int(tics)
        self.fps = TICS_PER_SECOND / self.tics
        self.spec_of_actions = DOOM
        self.start = str(start)
        self.starts = {name: np.array(points, float) for name, points in dict(starts or {}).items()}
        if self.start not in ("default", "random", *self.starts):
            raise DataError(f"start {start!r}: expected default, random or one of {sorted(self.starts)} (`starts`)")
        self.bonus = {"cell": 0.0, "item": 0.0, "kill": 0.0, "cell_units": 128, **dict(bonus or {})}
        self.goal = bool(goal)
        self.enabled_keys = tuple(enabled_keys)
        self._enabled = np.array([key in self.enabled_keys for key in DOOM.keys], float)
        self._options = dict(
            episode_tics=int(episode_tics), start_tics=int(start_tics), skill=int(skill), hud=bool(hud),
            living_reward=float(living_reward), death_penalty=float(death_penalty), privileged=bool(privileged),
        )  # fmt: skip
        self.observation_space = gymnasium.spaces.Box(0, 255, (*self.size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Dict(
            keys=gymnasium.spaces.MultiBinary(len(DOOM.keys)),
            mouse=gymnasium.spaces.Box(-DOOM.camera_max, DOOM.camera_max, (2,), np.float32),
        )
        self._resize = resizer(self.size)
        self._game, self._world, self._folder = None, None, None
        self._np_random, self._np_random_seed = seeding.np_random(seed)
        World.parse(self.maps[0])  # fail now rather than at the first reset

    @staticmethod
    def _split(maps, split):
        if not hasattr(maps, "keys"):
            return list(maps)
        if split not in maps:
            raise DataError(f"split {split!r}: this task has {', '.join(maps)}")
        return list(maps[split])

    # gymnasium

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        name = (options or {}).get("map") or self.maps[int(self.np_random.integers(len(self.maps)))]
        self._open(World.parse(name))
        self._begin()
        self._read()
        self._visited = {self._square()}
        self._episode = {"return": 0.0, "frames": 0, "kills": 0, "items": 0, "cells": 1}
        return self._resize(self._frame), self._info()

    def step(self, action):
        mouse = np.clip(np.asarray(action["mouse"], np.float64), -DOOM.camera_max, DOOM.camera_max) / self.tics
        before = self.facts
        # positive look turns the view up in the engine; pitch is positive down here
        held = self._enabled * np.asarray(action["keys"])
        reward = self._game.make_action([*held, -mouse[0], mouse[1]], self.tics)
        finished = self._game.is_episode_finished()
        self._read()
        reward += self._score(before)
        truncated = finished and self._game.is_episode_timeout_reached() and not self.facts[FACTS.index("dead")]
        terminated = finished and not truncated
        self._episode["return"] += reward
        self._episode["frames"] += 1
        info = self._info()
        if finished:
            info["episode"] = dict(self._episode)
            if self.goal:
                info["episode"]["success"] = bool(terminated and not self.facts[FACTS.index("dead")])
        return self._resize(self._frame), float(reward), bool(terminated), bool(truncated), info

    def render(self):
        return self._frame

    def __del__(self):
        self.close()

    def close(self):
        if getattr(self, "_game", None) is not None:
            self._game.close()
            self._folder.cleanup()
        self._game = self._world = None

    # privileged, for the scripted player and for scoring

    @property
    def grid(self):
        """The WalkGrid of the current map."""
        return self._world.grid

    def objects(self):
        """Objects of the current map: list of (id, name, x, y, z). Needs privileged=True."""
        found = self._state.objects if self._state else []
        return [(o.id, o.name, o.position_x, o.position_y, o.position_z) for o in found]

    # inside

    def _open(self, world):
        """Starts the engine, or moves the running one to another map of the same WAD."""
        if self._game is not None and self._world.wad == world.wad:
            if world != self._world:
                self._game.set_doom_map(world.name)
        else:
            self.close()
            self._folder = tempfile.TemporaryDirectory(prefix="vizdoom-")
            self._game = start_game(world, Path(self._folder.name), self._options)
        self._world = world

    def _begin(self):
        """A new episode with an engine seed from our generator; draws again until the wanted start comes up."""
        for _ in range(1000):
            self._game.set_seed(int(self.np_random.integers(2**31)))
            self._game.new_episode()
            if self.start not in self.starts:
                break
            position = self._game.get_state().game_variables[:2]
            if np.abs(self.starts[self.start] - position).max(-1).min() < 24:
                break
        else:
            raise DataError(f"start {self.start!r} of {self._world}: no such spawn in 1000 resets; check `starts`")
        if self.start == "random":
            self._warp()

    def _warp(self):
        """Moves the player to a random cell it could have walked to, looking anywhere."""
        harmful = np.append(self.grid.level.damaging, False)[self.grid.sector].ravel()
        cells = np.flatnonzero(self.grid.reachable & ~harmful)
        x, y = self.grid.centre(cells[self.np_random.integers(len(cells))])
        self._game.send_game_command(f"warp {x:.0f} {y:.0f}")
        for _ in range(12):  # the engine's frozen moment after a teleport
            self._game.make_action([0.0] * 8, 2)
        self._game.make_action([0.0] * 7 + [float(self.np_random.integers(-180, 180))], 1)

    def _read(self):
        """Takes over the engine's state: one copy per frame. After an episode's end the last frame stands."""
        self._state = self._game.get_state()
        if self._state is None:
            variables = self._game.get_available_game_variables()
            self.facts = np.array([self._game.get_game_variable(v) for v in variables])
        else:
            self._frame, self.facts = self._state.screen_buffer, self._state.game_variables  # float [len(FACTS)]

    def _square(self):
        return tuple((self.facts[:2] // self.bonus["cell_units"]).astype(int))

    def _score(self, before):
        """Counts squares, items and kills of the last frame; returns their bonus."""
        gained = self.facts - before
        kills = int(max(gained[FACTS.index("killcount")], 0))
        items = int((gained[BELONGINGS] > 0).any())
        square = self._square()
        new = square not in self._visited
        self._visited.add(square)
        self._episode["kills"] += kills
        self._episode["items"] += items
        self._episode["cells"] += new
        return self.bonus["cell"] * new + self.bonus["item"] * items + self.bonus["kill"] * kills

    def _info(self):
        return {"map": str(self._world), "engine_seed": int(self._game.get_seed()), "facts": self.facts}


def resizer(size):
    """Function uint8 [h w c] native -> uint8 [*size c], the way `ingest` stores frames: scaled in 4:2:0.

    Against stored frames of the same play this agrees to 35.5 dB, all of it compression; scaling in RGB to 33.3 dB.
    """
    if size == NATIVE:
        return np.array
    if min(size) < 2 or size[0] % 2 or size[1] % 2:
        raise DataError(f"size {list(size)}: expected an even height and width, as stored video has")
    scaler, converter = Resizer(size), Resizer()
    return lambda frame: converter.rgb(scaler.planar(VideoFrame.from_ndarray(frame, format="rgb24")))
