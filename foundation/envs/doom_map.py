"""Doom maps as arrays, read from the WAD files that ship with ViZDoom: lines, sectors, things, and what USE can open.

Two formats: the binary lumps of Doom (Freedoom) and the text format UDMF (ViZDoom's scenarios). Units are map units
(the player is a box of 32 x 32, 56 high, and walks 8.3 units a tic).
"""

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.schema import DataError

VOID = -1  # no sector
PLAYER_HEIGHT, STEP = 56, 24
# Doom line types by how they act: https://doomwiki.org/wiki/Linedef_type
MANUAL_DOORS, LOCKED_DOORS = (1, 31, 117, 118), (26, 27, 28, 32, 33, 34, 99, 133, 134, 135, 136, 137)
SWITCHES = (
    *(7, 9, 14, 15, 18, 20, 21, 23, 29, 41, 42, 43, 45, 49, 50, 55, *range(60, 72), 101, 102, 103),
    *(*range(111, 117), 122, 123, 127, 131, 132, 138, 139, 140),
)
EXITS = (11, 51, 52, 124)
REPEATABLE = (1, 117, 26, 27, 28, 42, 43, 45, *range(60, 71), 99, 114, 115, 116, 123, 132, 138, 139)
UDMF_DOORS, UDMF_EXITS = (10, 11, 12), (74, 75, 243, 244)
DAMAGING_SECTORS = (4, 5, 7, 11, 16)


@dataclass(frozen=True)
class DoomMap:
    """Static geometry of one map. n lines, m sectors, p things."""

    start: np.ndarray  # float [n 2]
    end: np.ndarray  # float [n 2]
    front: np.ndarray  # int [n] sector on the right-hand side
    back: np.ndarray  # int [n] sector on the left-hand side or VOID
    impassable: np.ndarray  # bool [n] one-sided or flagged
    door: np.ndarray  # bool [n] USE opens the back sector, no key needed
    usable: np.ndarray  # bool [n] USE does something (doors, switches)
    repeatable: np.ndarray  # bool [n] and does so every time
    exit: np.ndarray  # bool [n] ends the map
    floor: np.ndarray  # float [m]
    ceiling: np.ndarray  # float [m]
    damaging: np.ndarray  # bool [m]
    things: np.ndarray  # float [p 4] x, y, angle, type

    @functools.cached_property
    def player_start(self):
        """float [2]: the single player's start."""
        return self.things[self.things[:, 3] == 1][0, :2]

    @functools.cached_property
    def door_sectors(self):
        """int [...]: sectors that USE opens."""
        return np.unique(self.back[self.door & (self.back != VOID)])

    @functools.cached_property
    def open_ceiling(self):
        """float [m]: ceilings with all keyless doors open (4 below the lowest neighbour, as the engine does)."""
        ceiling = self.ceiling.copy()
        for sector in self.door_sectors:
            around = np.concatenate([self.back[self.front == sector], self.front[self.back == sector]])
            around = around[(around != VOID) & (around != sector)]
            if len(around):
                ceiling[sector] = self.ceiling[around].min() - 4
        return ceiling

    @functools.cached_property
    def _sight(self):
        """Lines that always block sight: (float [k 2], float [k 2])."""
        two_sided = self.back != VOID
        top = np.minimum(self.open_ceiling[self.front], self.open_ceiling[self.back])
        bottom = np.maximum(self.floor[self.front], self.floor[self.back])
        opaque = ~two_sided | (top <= bottom)
        return self.start[opaque], self.end[opaque]

    def sees(self, eye, target):
        """Whether no wall lies between two points; float [2] each. Doors count as open."""
        start, end = self._sight
        return not crossings(eye, target, start, end).any()

    def use_target(self, position, angle, reach=64.0):
        """Index of the line that USE activates from `position` looking along `angle` (degrees), or None.

        The engine's rule: the nearest line with a use action within 64 units, unless a closed line comes first.
        """
        toward = position + reach * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        hit = np.flatnonzero(crossings(position, toward, self.start, self.end))
        order = np.argsort(_distances(position, toward, self.start[hit], self.end[hit]))
        for line in hit[order]:
            if self.usable[line]:
                return int(line)
            if self.impassable[line] and self.back[line] == VOID:
                return None
        return None


def crossings(a, b, start, end):
    """bool [n]: which segments start-end cross the segment a-b."""
    d, e = b - a, end - start
    s = start - a
    denominator = d[0] * e[:, 1] - d[1] * e[:, 0]
    denominator = np.where(np.abs(denominator) < 1e-9, 1e-9, denominator)
    along = (s[:, 0] * e[:, 1] - s[:, 1] * e[:, 0]) / denominator
    across = (s[:, 0] * d[1] - s[:, 1] * d[0]) / denominator
    return (along >= 0) & (along <= 1) & (across >= 0) & (across <= 1)


def _distances(a, b, start, end):
    """float [n]: where along a-b (0..1) each crossing lies."""
    d, e, s = b - a, end - start, start - a
    return (s[:, 0] * e[:, 1] - s[:, 1] * e[:, 0]) / (d[0] * e[:, 1] - d[1] * e[:, 0])


@functools.lru_cache(maxsize=16)
def load_map(wad, name):
    """DoomMap `name` of the WAD file `wad`; DataError when the file or the map is missing."""
    data = Path(wad).read_bytes()
    count, directory = struct.unpack_from("<ii", data, 4)
    entries = [struct.unpack_from("<ii8s", data, directory + 16 * i) for i in range(count)]
    names = [entry[2].rstrip(b"\0").decode("latin-1").upper() for entry in entries]
    if name.upper() not in names:
        maps = [n for n in names if re.fullmatch(r"E\dM\d|MAP\d\d", n)]
        raise DataError(f"map {name!r} is not in {Path(wad).name}; it has {', '.join(maps)}")
    at = names.index(name.upper())
    following = range(min(at + 11, count) - 1, at, -1)  # backwards: of equal names the first counts
    lumps = {names[i]: data[entries[i][0] : sum(entries[i][:2])] for i in following}
    return _read_udmf(lumps["TEXTMAP"].decode()) if names[at + 1] == "TEXTMAP" else _read_binary(lumps)


def _read_binary(lumps):
    vertices = np.frombuffer(lumps["VERTEXES"], "<i2").reshape(-1, 2).astype(float)
    lines = np.frombuffer(lumps["LINEDEFS"], "<u2").reshape(-1, 7).astype(int)
    side_sector = np.frombuffer(lumps["SIDEDEFS"], [("_", "V28"), ("sector", "<u2")])["sector"].astype(int)
    sectors = np.frombuffer(lumps["SECTORS"], "<i2").reshape(-1, 13).astype(int)
    things = np.frombuffer(lumps["THINGS"], "<i2").reshape(-1, 5).astype(float)
    special, back = lines[:, 3], lines[:, 6]
    manual = np.isin(special, MANUAL_DOORS) & (back != 0xFFFF)
    return DoomMap(
        start=vertices[lines[:, 0]],
        end=vertices[lines[:, 1]],
        front=side_sector[lines[:, 5]],
        back=np.where(back == 0xFFFF, VOID, side_sector[np.where(back == 0xFFFF, 0, back)]),
        impassable=(back == 0xFFFF) | (lines[:, 2] & 1 == 1),
        door=manual,
        usable=manual | np.isin(special, SWITCHES),
        repeatable=np.isin(special, REPEATABLE),
        exit=np.isin(special, EXITS),
        floor=sectors[:, 0].astype(float),
        ceiling=sectors[:, 1].astype(float),
        damaging=np.isin(sectors[:, 11], DAMAGING_SECTORS),
        things=things[:, :4],
    )


def _read_udmf(text):
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    blocks = {"vertex": [], "linedef": [], "sidedef": [], "sector": [], "thing": []}
    for kind, body in re.findall(r"(\w+)\s*\{([^}]*)\}", text):
        if kind in blocks:
            blocks[kind].append(dict(re.findall(r"(\w+)\s*=\s*([^;]+);", body)))
    lines, sides = blocks["linedef"], blocks["sidedef"]

    def column(rows, name, default=0.0):
        return np.array([float(row.get(name, default)) for row in rows])

    def flag(name):
        return np.array([row.get(name) == "true" for row in lines], bool)

    vertices = np.stack([column(blocks["vertex"], "x"), column(blocks["vertex"], "y")], -1)
    sector_of = np.append(column(sides, "sector"), VOID).astype(int)  # the last entry answers for "no side"
    back = sector_of[column(lines, "sideback", -1).astype(int)]
    special, use = column(lines, "special").astype(int), flag("playeruse")
    door = np.isin(special, UDMF_DOORS) & use & (column(lines, "arg0") == 0) & (back != VOID)
    return DoomMap(
        start=vertices[column(lines, "v1").astype(int)],
        end=vertices[column(lines, "v2").astype(int)],
        front=sector_of[column(lines, "sidefront", -1).astype(int)],
        back=back,
        impassable=(back == VOID) | flag("blocking"),
        door=door,
        usable=use & (special != 0),
        repeatable=flag("repeatspecial"),
        exit=np.isin(special, UDMF_EXITS),
        floor=column(blocks["sector"], "heightfloor"),
        ceiling=column(blocks["sector"], "heightceiling"),
        damaging=column(blocks["sector"], "damageamount") > 0,
        things=np.stack([column(blocks["thing"], name) for name in ("x", "y", "angle", "type")], -1),
    )
