"""Mazes as grids: distances against a search by hand, ways that follow them, rooms and corridors, rows as text."""

from collections import deque

import numpy as np
import pytest

from foundation.envs.maze_grid import WAYS, MazeGrid
from pipelines.schema import DataError

TWO_PARTS = ["#########", "#...#...#", "#.#.#.#.#", "#...#...#", "#########"]
SMALL = ["######", "#....#", "#.##.#", "#.#..#", "######"]


def searched(walls, start):
    """{(row, column): steps} by a queue."""
    found, queue = {start: 0}, deque([start])
    while queue:
        row, column = queue.popleft()
        for down, right in WAYS:
            cell = row + down, column + right
            if not walls[cell] and cell not in found:
                found[cell] = found[row, column] + 1
                queue.append(cell)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_a_search_by_hand(seed):
    walls = np.pad(np.random.default_rng(seed).random((7, 9)) < 0.35, 1, constant_values=True)
    grid = MazeGrid(walls)
    for number, cell in enumerate(map(tuple, grid.cells)):
        found = searched(walls, cell)
        wanted = [found.get(tuple(other), np.inf) for other in grid.cells]
        np.testing.assert_array_equal(grid.distances[number], wanted)
        assert grid.number[cell] == number
    assert (grid.distances == grid.distances.T).all()


def test_the_next_cell_is_one_step_nearer_and_a_cell_without_a_way_stays():
    for rows in (SMALL, TWO_PARTS):
        grid = MazeGrid.from_rows(rows)
        here, goal = np.indices(grid.distances.shape)
        after = grid.distances[grid.toward, goal]
        way = np.isfinite(grid.distances) & (grid.distances > 0)
        np.testing.assert_array_equal(after[way], grid.distances[way] - 1)
        np.testing.assert_array_equal(grid.toward[~way], here[~way])


def test_rooms_are_cells_where_one_can_turn_or_must_turn_back():
    grid = MazeGrid.from_rows(SMALL)
    assert [tuple(grid.cells[n]) for n in grid.rooms] == [(1, 1), (1, 4), (3, 1), (3, 3), (3, 4)]
    assert len(MazeGrid.from_rows(TWO_PARTS).main) == 8


def test_distances_between_places_are_those_of_their_cells():
    grid = MazeGrid.from_rows(SMALL)
    np.testing.assert_array_equal(grid.between([[1.2, 1.9], [3.5, 3.5]], [[3.1, 1.1], [1.0, 1.0]]), [2, 6])
    with pytest.raises(DataError, match="in a wall"):
        grid.between([2.5, 2.5], [1.5, 1.5])


def test_rows_are_the_maze_as_text():
    assert MazeGrid.from_rows(SMALL).rows == SMALL
    assert MazeGrid.from_rows(SMALL).at(2, 2) in (MazeGrid.from_rows(SMALL).number[1, 2], 4)  # of a wall: the nearest


@pytest.mark.parametrize("rows", [[], ["###", "#.", "###"], ["###", "#a#", "###"], ["###", "###"], ["#.#", "#.#"]])
def test_what_is_no_maze_is_told(rows):
    with pytest.raises(DataError, match="expected"):
        MazeGrid.from_rows(rows)
