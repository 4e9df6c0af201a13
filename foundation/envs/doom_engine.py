"""The ViZDoom engine behind `DoomEnv`: which map to load from where, and how the game is set up."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import vizdoom

from foundation.envs.doom_grid import load_grid
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
            raise DataError(f"map {text!r}: expected <wad>:<map>, e.g. freedoom2:MAP01; wads: {', '.join(known)}")
        world = cls(own if own.exists() else package / "freedoom2.wad", path, name.upper())
        world.grid  # noqa: B018  names the maps there are, should this one be missing
        return world

    @property
    def grid(self):
        return load_grid(str(self.wad), self.name)

    def __str__(self):
        return f"{self.wad.stem}:{self.name}"


def start_game(world, folder, options):
    """A running vizdoom.DoomGame; `folder` receives what the engine writes."""
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
    game.set_render_weapon(options.get("weapon", True))
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
