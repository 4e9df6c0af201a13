"""The pictures of foundation.envs.doom_room: a map of a room with four coloured corners, drawn by ViZDoom's engine."""

import functools
import struct
import tempfile
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from pipelines.schema import DataError

COLOURS = {"red": 0xFF0000, "green": 0x00FF00, "blue": 0x0000FF, "yellow": 0xFFFF00}  # clockwise from x+, y+
HEADINGS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # of 45 degrees each, turning left
SIZE = 25  # pixels a side, as the paper has it
CELL, MARGIN, CORNER = 48, 88, 88  # map units: between poses, from the outermost ones to the wall, of a corner's legs
TEXTURE = 'texturemiddle = "GRAY1";'
FLATS = 'heightfloor = 0; heightceiling = 128; texturefloor = "FLOOR4_8"; textureceiling = "FLOOR4_8";'


@functools.lru_cache(maxsize=4)
def pictures(cells):
    """float32 [cells * cells * 8, 25 * 25 * 3] in [0, 1]: the room from every pose, as the engine draws it."""
    import vizdoom

    from foundation.envs.doom_engine import World as Map
    from foundation.envs.doom_engine import start_game

    options = {"privileged": False, "hud": False, "weapon": False, "skill": 1, "start_tics": 10, "episode_tics": 0,
               "living_reward": 0.0, "death_penalty": 0.0}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vizdoom-") as folder:
        folder = Path(folder)
        write_wad(folder / "room.wad", textmap(half(cells)))
        own = Map(Path(vizdoom.__file__).parent / "freedoom2.wad", folder / "room.wad", "MAP01")
        game = start_game(own, folder, options)
        try:
            game.new_episode()
            middle = cells // 2
            seen = [looks(game, CELL * (x - middle), CELL * (y - middle)) for x, y in product(range(cells), repeat=2)]
        finally:
            game.close()
    frames = torch.stack([frame for cell in seen for frame in cell]).float() / 255  # S h w c
    small = F.interpolate(frames.movedim(-1, 1), (SIZE, SIZE), mode="area")
    return small.movedim(1, -1).flatten(1)


def looks(game, x, y):
    """The eight frames uint8 [h w c] from a place, each 45 degrees further to the left."""
    game.send_game_command(f"warp {x} {y}")
    for _ in range(12):  # the engine's frozen moment after a teleport
        game.make_action([0.0] * 8, 2)
    frames = []
    for heading in range(len(HEADINGS)):
        angle = game.get_state().game_variables[3]
        turn = (angle - 45 * heading + 180) % 360 - 180  # to the right
        game.make_action([0.0] * 7 + [turn], 1)
        state = game.get_state()
        place = state.game_variables[:2]
        if max(abs(place[0] - x), abs(place[1] - y)) > 1:
            raise DataError(f"the engine shows {place}, the pose is {(x, y)}; install the ViZDoom of constraints.txt")
        frames.append(torch.from_numpy(state.screen_buffer.copy()))
    return frames


def half(cells):
    """Map units from the middle of the room to its walls."""
    return CELL * (cells // 2) + MARGIN


def textmap(w):
    """The room as UDMF: sector 0 is its floor, sectors 1 to 4 are the corners, lit in their colours."""
    c = w - CORNER
    points = [turned(p, q) for q in range(4) for p in ((c, w), (w, w), (w, c))]
    lines = []  # from, to, front sector on the right-hand side, back sector or None
    for q in range(4):
        before, tip, after, following = 3 * q, 3 * q + 1, 3 * q + 2, (3 * q + 3) % 12
        lines += [(before, tip, q + 1, None), (tip, after, q + 1, None), (after, following, 0, None)]
        lines += [(before, after, 0, q + 1)]
    parts = ['namespace = "zdoom";', *(f"vertex {{ x = {x}.0; y = {y}.0; }}" for x, y in points)]
    sides = []
    for a, b, front, back in lines:
        sides.append(f"sidedef {{ sector = {front}; {'' if back else TEXTURE} }}")
        behind = f"sideback = {len(sides)}; twosided = true;" if back else "blocking = true;"
        parts.append(f"linedef {{ v1 = {a}; v2 = {b}; sidefront = {len(sides) - 1}; {behind} }}")
        sides += [f"sidedef {{ sector = {back}; }}"] if back else []
    lights = ["lightlevel = 176;", *(f"lightlevel = 255; lightcolor = {colour};" for colour in COLOURS.values())]
    skills = " ".join(f"skill{i} = true;" for i in range(1, 6))
    player = f"thing {{ x = 0.0; y = 0.0; angle = 0; type = 1; single = true; {skills} }}"
    return "\n".join([*parts, *sides, *(f"sector {{ {FLATS} {light} }}" for light in lights), player])


def turned(point, quarters):
    """A point turned clockwise about the middle."""
    for _ in range(quarters):
        point = (point[1], -point[0])
    return point


def write_wad(path, text):
    """A WAD file with one map, MAP01."""
    lumps = (b"MAP01", b""), (b"TEXTMAP", text.encode()), (b"ENDMAP", b"")
    start, directory = 12, b""
    for name, body in lumps:
        directory += struct.pack("<ii8s", start, len(body), name)
        start += len(body)
    header = struct.pack("<4sii", b"PWAD", len(lumps), start)
    path.write_bytes(header + b"".join(body for _, body in lumps) + directory)
