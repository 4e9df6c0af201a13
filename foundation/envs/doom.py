"""ViZDoom with a person's interface: RGB frames out, held keys and degrees of mouse motion in.

An action is `{"keys": uint8 [k], "mouse": float32 [2]}`: the keys of `pipelines.actions.DOOM` held during the frame, and
degrees turned during the frame (pitch down positive, yaw right positive). One frame lasts `tics` of the engine's 35
tics a second; at 2 tics, 17.5 frames/s. The engine's delta buttons act per tic, so each tic gets `mouse / tics`.
"""

import contextlib
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import vizdoom
from av import VideoFrame
from gymnasium.utils import seeding

from foundation.envs.doom_grid import load_grid
from pipelines.actions import DOOM
from pipelines.pixels import Resizer
from pipelines.schema import DataError

TICS_PER_SECOND = 35
NATIVE = (120, 160)  # h w
BUTTONS = [
    getattr(vizdoom.Button, name)
    for name in (
        *("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "ATTACK", "USE"),  # order of DOOM.keys
        *("LOOK_UP_DOWN_DELTA", "TURN_LEFT_RIGHT_DELTA"),  # order of MOUSE
    )
]
FACTS = (
    *("position_x", "position_y", "position_z", "angle", "pitch", "health", "armor", "killcount", "itemcount"),
    *("selected_weapon", "selected_weapon_ammo", "ammo2", "ammo3", "ammo4", "ammo5", "dead"),
)
BELONGINGS = [FACTS.index(name) for name in ("health", "armor", "ammo2", "ammo3", "ammo4", "ammo5")]
_MOVING = threading.Lock()


@dataclass(frozen=True)
class World:
    """One map: the game data it needs, the WAD that holds it, and its name there."""

    game: Path
    wad: Path
    name: str

    @classmethod
    def parse(cls, text):
        """From "freedoom2:MAP01" or, for a scenario of ViZDoom, "my_way_home:map01"; DataError if there is none."""
        package, scenarios = Path(vizdoom.__file__).parent, Path(vizdoom.scenarios_path)
        wad, _, name = str(text).partition(":")
        own = package / f"{wad}.wad"
        path = own if own.exists() else scenarios / f"{wad}.wad"
        if not name or not path.exists():
            known = sorted(p.stem for p in [*package.glob("*.wad"), *scenarios.glob("*.wad")])
            raise DataError(f"map {text!r}: expected <wad>:<map> such as freedoom2:MAP01, with a wad of {', '.join(known)}")
        world = cls(own if own.exists() else package / "freedoom2.wad", path, name.upper())
        world.grid  # noqa: B018  names the maps there are, should this one be missing
        return world

    @property
    def grid(self):
        return load_grid(str(self.wad), self.name)

    def __str__(self):
        return f"{self.wad.stem}:{self.name}"


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
        self._frame = self._game.get_state().screen_buffer
        self.facts = self._facts()
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
        if not finished:  # else the last frame stands: the engine has none after the end
            self._frame = self._game.get_state().screen_buffer
        self.facts = self._facts()
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
        state = self._game.get_state()
        found = state.objects if state else []
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
            self._game = _start_game(world, Path(self._folder.name), self._options)
        self._world = world

    def _begin(self):
        """A new episode with an engine seed from our generator; draws again until the wanted start comes up."""
        for _ in range(1000):
            self._game.set_seed(int(self.np_random.integers(2**31)))
            self._game.new_episode()
            if self.start not in self.starts:
                break
            facts = self._facts()
            if np.abs(self.starts[self.start] - facts[:2]).max(-1).min() < 24:
                break
        else:
            raise DataError(f"start {self.start!r} of {self._world}: no such spawn in 1000 resets; check `starts`")
        if self.start == "random":
            self._warp()

    def _warp(self):
        """Moves the player to a random cell it could have walked to, looking anywhere."""
        cells = np.flatnonzero(self.grid.reachable & ~np.append(self.grid.level.damaging, False)[self.grid.sector].ravel())
        x, y = self.grid.centre(cells[self.np_random.integers(len(cells))])
        self._game.send_game_command(f"warp {x:.0f} {y:.0f}")
        for _ in range(12):  # the engine's frozen moment after a teleport
            self._game.make_action([0.0] * 8, 2)
        self._game.make_action([0.0] * 7 + [float(self.np_random.integers(-180, 180))], 1)

    def _facts(self):
        """float [len(FACTS)] from the engine; valid after the end of an episode too."""
        state = self._game.get_state()
        if state is not None:
            return state.game_variables
        return np.array([self._game.get_game_variable(v) for v in self._game.get_available_game_variables()])

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


def _start_game(world, folder, options):
    game = vizdoom.DoomGame()
    game.set_doom_config_path(str(folder / "vizdoom.ini"))  # else the engine writes one where the user stands
    game.set_doom_game_path(str(world.game))
    if world.wad != world.game:
        game.set_doom_scenario_path(str(world.wad))
    game.set_doom_map(world.name)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.add_game_args("-nosound")  # set_sound_enabled alone still opens a device, which can abort the engine
    game.set_available_buttons(BUTTONS)
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name.upper()) for name in FACTS])
    game.set_objects_info_enabled(options["privileged"])
    game.set_render_hud(options["hud"])
    game.set_render_screen_flashes(False)
    game.set_doom_skill(options["skill"])
    game.set_episode_start_time(options["start_tics"])
    game.set_episode_timeout(options["episode_tics"])
    game.set_living_reward(options["living_reward"])
    game.set_death_penalty(options["death_penalty"])
    game.set_mode(vizdoom.Mode.PLAYER)
    with _inside(folder):  # the engine makes its scratch folder where it is started
        game.init()
    return game


@contextlib.contextmanager
def _inside(folder):
    """The working directory, for a moment; one thread at a time."""
    with _MOVING:
        before = os.getcwd()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def resizer(size):
    """Function uint8 [h w c] native -> uint8 [*size c], by the scaler that `ingest` stores frames with."""
    if size == NATIVE:
        return np.array
    scaler = Resizer(size)
    return lambda frame: scaler.rgb(VideoFrame.from_ndarray(frame, format="rgb24"))
