"""Geometry against a map drawn by hand: two rooms, a step, a ledge, a door and a pillar."""

import numpy as np
import pytest

from foundation.envs.doom_engine import World
from foundation.envs.doom_grid import WalkGrid
from foundation.envs.doom_map import VOID, DoomMap, crossings

# rooms from left to right, 128 x 128 each, walls around: 0 | 1 (20 higher) | 2 (60 higher) ; door 3 between 2 and 4
ROOMS = [(0, 128), (128, 256), (256, 384), (384, 400), (400, 528)]
FLOOR, CEILING = [0, 20, 80, 80, 80], [200, 200, 200, 80, 200]


def level():
    lines = []  # x1 y1 x2 y2 front back; the front is on the right of start -> end
    for room, (left, right) in enumerate(ROOMS):
        lines += [(left, 128, right, 128, room, VOID), (right, 0, left, 0, room, VOID)]
    lines += [(0, 0, 0, 128, 0, VOID), (528, 128, 528, 0, 4, VOID)]
    for left in range(4):
        x = ROOMS[left][1]
        lines += [(x, 128, x, 0, left, left + 1)] if left < 3 else [(x, 0, x, 128, left + 1, left)]
    table = np.array(lines, float)
    door = (table[:, 5] == 3) & (table[:, 4] != VOID)
    none = np.zeros(len(lines), bool)
    return DoomMap(
        start=table[:, :2], end=table[:, 2:4], front=table[:, 4].astype(int), back=table[:, 5].astype(int),
        impassable=table[:, 5] == VOID, door=door, usable=door, repeatable=door, exit=none,
        floor=np.array(FLOOR, float), ceiling=np.array(CEILING, float), damaging=np.zeros(5, bool),
        things=np.array([[64.0, 64.0, 0.0, 1.0]]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def grid():
    return WalkGrid(level())


def reaches(grid, a, b):
    cost, _ = grid.search(grid.cell(a))
    return np.isfinite(cost[grid.cell(b)])


def test_sectors_lie_where_they_were_drawn(grid):
    for room, (left, right) in enumerate(ROOMS):
        if right - left >= 32:
            assert grid.sector.flat[grid.cell(((left + right) / 2, 64))] == room
    assert grid.sector.flat[grid.cell((-10, 64))] == VOID


def test_a_box_keeps_its_distance_from_walls(grid):
    assert not grid.walkable.flat[grid.cell((8, 64))]  # 8 units from the wall, the box needs 16
    assert grid.walkable.flat[grid.cell((24, 64))]


def test_steps_up_to_24_and_any_ledge_down(grid):
    assert reaches(grid, (64, 64), (200, 64))  # 20 up
    assert not reaches(grid, (200, 64), (320, 64))  # 60 up
    assert reaches(grid, (320, 64), (64, 64))  # down


def test_doors_count_as_open(grid):
    assert grid.level.open_ceiling[3] == 196  # 4 below the lower neighbour
    assert reaches(grid, (320, 64), (460, 64))
    assert grid.door.flat[grid.cell((392, 64))]
    assert not grid.reachable[grid.cell((460, 64))]  # not from the start, below the ledge


def test_a_path_is_walkable_and_short(grid):
    start, goal = grid.cell((64, 64)), grid.cell((200, 40))
    cost, predecessors = grid.search(start)
    path = grid.path(predecessors, goal)
    assert path[0] == start
    assert path[-1] == goal
    steps = np.abs(np.diff(grid.centre(path), axis=0)).max(-1)
    assert steps.max() <= 16
    assert 136 <= cost[goal] < 250


def test_straight_walks(grid):
    assert grid.straight(np.array([64.0, 64.0]), np.array([200.0, 64.0]))
    assert not grid.straight(np.array([200.0, 64.0]), np.array([320.0, 64.0]))


def test_use_reaches_the_nearest_door(grid):
    assert grid.level.use_target(np.array([350.0, 64.0]), 0.0) is not None  # 34 units ahead
    assert grid.level.use_target(np.array([350.0, 64.0]), 180.0) is None
    assert grid.level.use_target(np.array([300.0, 64.0]), 0.0) is None  # 84 units


def test_walls_block_sight():
    plan = level()
    assert plan.sees(np.array([64.0, 64.0]), np.array([320.0, 64.0]))
    assert not plan.sees(np.array([64.0, 64.0]), np.array([64.0, 200.0]))


def test_crossings():
    start, end = np.array([[1.0, -1.0], [3.0, -1.0]]), np.array([[1.0, 1.0], [3.0, 1.0]])
    assert crossings(np.array([0.0, 0.0]), np.array([2.0, 0.0]), start, end).tolist() == [True, False]


def test_shipped_maps_in_both_formats():
    home, freedoom = World.parse("my_way_home:map01").grid, World.parse("freedoom2:map01").grid
    assert home.reachable.sum() == home.walkable.sum()  # one connected maze
    armour = home.level.things[home.level.things[:, 3] == 2018][0, :2]
    assert armour.tolist() == [1040, -352]
    assert freedoom.reachable.sum() > 5000
    assert len(freedoom.level.door_sectors) > 0
