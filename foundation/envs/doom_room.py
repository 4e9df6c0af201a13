"""A room in ViZDoom with four coloured corners, one of them right per task: DPT's pixel setting (arXiv:2306.14892),
after its Miniworld room with four coloured boxes.

The engine draws the room once from every pose of a grid; steps go from pose to pose, in tensors, so that contexts cost
no engine. Poses: cells 48 units apart, eight headings of 45 degrees, so that forward leads from cell to cell.
"""

import functools
import struct
import tempfile
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from foundation.envs import worlds
from foundation.envs.worlds import World, at_least, count, integers, pick
from pipelines.schema import DataError

LEFT, RIGHT, FORWARD, STAY = range(4)
COLOURS = {"red": 0xFF0000, "green": 0x00FF00, "blue": 0x0000FF, "yellow": 0xFFFF00}  # clockwise from x+, y+
HEADINGS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # of 45 degrees each, turning left
SIZE = 25  # pixels a side, as the paper has it
CELL, MARGIN, CORNER = 48, 88, 88  # map units: between poses, from the outermost ones to the wall, of a corner's legs


class DoomRoom(World):
    """Observation: the picture, 25 x 25 x 3 in [0, 1] row by row, then the unit vector of the heading, [1877].

    Actions: turn left, turn right, forward, stay. Reward 1 whenever the next cell is the one before the right corner;
    never terminates. Episodes begin in the middle, facing x+. tasks: {"corner": int64 [b]}, all four in both splits.
    """

    state_dim, n_actions = 3 * SIZE * SIZE + 2, 4

    def __init__(self, cells=7, horizon=50, contexts="iid"):
        at_least(3, cells=cells)
        at_least(1, horizon=horizon)
        if cells % 2 == 0:
            raise DataError(f"cells={cells}: expected an odd number, so that there is a middle")
        self.cells, self.horizon, self.contexts = int(cells), int(horizon), worlds.kinds_of(contexts)
        poses = torch.tensor([(x, y, h) for x, y in product(range(cells), repeat=2) for h in range(len(HEADINGS))])
        self.place, self.heading = poses[:, :2], poses[:, 2]
        ways = torch.tensor(HEADINGS)
        unit = F.normalize(ways[self.heading].float(), dim=-1)
        self.states = torch.cat([pictures(self.cells), unit], 1)  # S s
        self.following = self._following(ways)  # S a
        far = cells - 1
        self.corners = torch.tensor([(far, far), (far, 0), (0, 0), (0, far)])  # as COLOURS
        self.labels = torch.stack([self._labels(corner, ways) for corner in self.corners])  # 4 S
        weights = torch.randn(self.state_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.weights, codes = weights, self.states.double() @ weights
        self.codes, self.order = codes.sort()

    def _following(self, ways):
        """Row of the pose after each action, int64 [S 4]; a wall holds."""
        ahead = self.place + ways[self.heading]
        inside = ((ahead >= 0) & (ahead < self.cells)).all(-1, keepdim=True)
        row = lambda place, heading: (place[:, 0] * self.cells + place[:, 1]) * len(HEADINGS) + heading % 8  # noqa: E731
        turned = [row(self.place, self.heading + by) for by in (1, -1)]
        forward = row(torch.where(inside, ahead, self.place), self.heading)
        return torch.stack([*turned, forward, row(self.place, self.heading)], 1)

    def _labels(self, corner, ways):
        """From the pose: turn towards the corner by the shorter way, then forward; there, stay. int64 [S]"""
        toward = (corner - self.place).sign()
        wanted = (toward[:, None] == ways).all(-1).int().argmax(-1)
        turn = (wanted - self.heading) % 8
        label = torch.where(turn == 0, FORWARD, torch.where(turn <= 4, LEFT, RIGHT))
        return torch.where((toward == 0).all(-1), STAY, label)

    def row(self, observation):
        """Which of `states` an observation [... s] is, int64 [...]: pictures and headings are all different."""
        code = (observation.double() @ self.weights).contiguous()
        near = torch.searchsorted(self.codes, code).clamp(1, len(self.codes) - 1)
        nearer = torch.where(code - self.codes[near - 1] < self.codes[near] - code, near - 1, near)
        return self.order[nearer]

    def hypotheses(self, split=None):
        return {"corner": torch.arange(len(COLOURS))}

    def start(self, tasks):
        middle = self.cells // 2
        row = (middle * self.cells + middle) * len(HEADINGS)
        return self.states[row].expand(count(tasks), -1)

    def step(self, tasks, observation, action, generator=None):
        row = pick(self.following[self.row(observation)], action)
        reward = (self.place[row] == self.corners[tasks["corner"]]).all(-1).float()
        return reward, self.states[row].expand(*reward.shape, -1)

    def optimal(self, tasks, observation):
        return self.labels[tasks["corner"][:, None], self.row(observation)]

    def queries(self, tasks, k, generator):
        """Uniform poses."""
        return self.states[integers(len(self.states), (count(tasks), k), generator)]


# the pictures


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
        sides.append(f'sidedef {{ sector = {front}; {"" if back else TEXTURE} }}')
        behind = f"sideback = {len(sides)}; twosided = true;" if back else "blocking = true;"
        parts.append(f"linedef {{ v1 = {a}; v2 = {b}; sidefront = {len(sides) - 1}; {behind} }}")
        sides += [f"sidedef {{ sector = {back}; }}"] if back else []
    lights = ["lightlevel = 176;", *(f"lightlevel = 255; lightcolor = {colour};" for colour in COLOURS.values())]
    skills = " ".join(f"skill{i} = true;" for i in range(1, 6))
    player = f"thing {{ x = 0.0; y = 0.0; angle = 0; type = 1; single = true; {skills} }}"
    return "\n".join([*parts, *sides, *(f"sector {{ {FLATS} {light} }}" for light in lights), player])


TEXTURE = 'texturemiddle = "GRAY1";'
FLATS = 'heightfloor = 0; heightceiling = 128; texturefloor = "FLOOR4_8"; textureceiling = "FLOOR4_8";'


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
