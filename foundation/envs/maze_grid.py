"""Mazes as grids: which cells are free, how many steps lie between any two, and which neighbour is nearer."""

from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, shortest_path

from pipelines.schema import DataError

WAYS = ((-1, 0), (0, -1), (1, 0), (0, 1))  # (row, column), in the order in which ties of equal distance are decided
WALL, FREE = "#", "."
REWARDS = {"cost": (-1.0, 0.0), "sparse": (0.0, 1.0)}  # of mazes: of a step elsewhere, of one to the goal


class MazeGrid:
    """walls: bool [r c], True = wall; the border must be. The n free cells are numbered row by row."""

    def __init__(self, walls):
        self.walls = np.asarray(walls, bool)
        if self.walls.ndim != 2 or self.walls.all() or not (self.walls[[0, -1]].all() and self.walls[:, [0, -1]].all()):
            raise DataError(f"expected walls [rows columns] that enclose a free cell, got shape {self.walls.shape}")
        self.cells = np.argwhere(~self.walls)  # n 2: row, column
        self.number = np.full(self.walls.shape, -1)  # r c: which free cell it is
        self.number[~self.walls] = np.arange(len(self.cells))

    @classmethod
    def from_rows(cls, rows):
        """The inverse of `rows`; DataError for anything else."""
        if not rows or any(set(row) - {WALL, FREE} or len(row) != len(rows[0]) for row in rows):
            raise DataError(f"expected a maze as equally long rows of {WALL} and {FREE}, got {rows!r:.60}")
        return cls([[sign == WALL for sign in row] for row in rows])

    @property
    def rows(self):
        """One string per row, for people and JSON."""
        return ["".join(WALL if wall else FREE for wall in row) for row in self.walls]

    def __len__(self):
        return len(self.cells)

    @cached_property
    def neighbours(self):
        """The free cell in each of WAYS, -1 where there is a wall. int [n 4]"""
        return np.stack([self.number[tuple((self.cells + way).T)] for way in WAYS], 1)

    @cached_property
    def _graph(self):
        start, way = np.nonzero(self.neighbours >= 0)
        edges = start, self.neighbours[start, way]
        return csr_matrix((np.ones(len(start)), edges), shape=(len(self), len(self)))

    @cached_property
    def distances(self):
        """Least steps from cell to cell, inf where there is no way. float32 [n n]"""
        return shortest_path(self._graph, unweighted=True).astype(np.float32)

    @cached_property
    def toward(self):
        """The first neighbour of row's cell that is nearer to column's; the cell itself if none is. int [n n]"""
        there = np.where((self.neighbours >= 0)[..., None], self.distances[self.neighbours], np.inf)  # n 4 n
        best = there.argmin(1)  # n n
        nearer = there.min(1) < self.distances
        return np.where(nearer, np.take_along_axis(self.neighbours, best, 1), np.arange(len(self))[:, None])

    @cached_property
    def main(self):
        """Cells of the largest connected part. int [...]"""
        part = connected_components(self._graph, directed=False)[1]
        return np.flatnonzero(part == np.bincount(part).argmax())

    @cached_property
    def rooms(self):
        """Cells of that part that are no corridor: one with free cells on two opposite sides and nowhere else."""
        open_ = self.neighbours >= 0
        corridor = (open_ == (True, False, True, False)).all(1) | (open_ == (False, True, False, True)).all(1)
        return self.main[~corridor[self.main]]

    @classmethod
    def carved(cls, rooms, loops, rng):
        """A maze of `rooms` x `rooms` cells two apart: a tree of ways between them, from a random depth-first walk, and
        each of the other walls between two rooms opened with probability `loops`.
        """
        walls = np.ones((2 * rooms + 1,) * 2, bool)
        walls[1::2, 1::2] = False
        seen, path = np.zeros((rooms, rooms), bool), [tuple(rng.integers(rooms, size=2).tolist())]
        seen[path[0]] = True
        while path:
            row, column = path[-1]
            ahead = [(row + down, column + right) for down, right in WAYS]
            ahead = [cell for cell in ahead if min(cell) >= 0 and max(cell) < rooms and not seen[cell]]
            if not ahead:
                path.pop()
                continue
            path.append(ahead[rng.integers(len(ahead))])
            seen[path[-1]] = True
            walls[row + path[-1][0] + 1, column + path[-1][1] + 1] = False
        between = np.add.outer(np.arange(len(walls)), np.arange(len(walls))) % 2 == 1
        between[[0, -1]] = between[:, [0, -1]] = False
        return cls(walls & ~(between & (rng.random(walls.shape) < loops)))

    def between(self, a, b):
        """Least steps between the cells of positions [... 2], (row, column) in cells: those of stored clips, say."""
        a, b = (self.number[tuple(np.moveaxis(np.asarray(p).astype(int), -1, 0))] for p in (a, b))
        if min(a.min(), b.min()) < 0:
            raise DataError("a position lies in a wall; expected those of an agent in this maze")
        return self.distances[a, b]

    def at(self, row, column):
        """Number of a free cell, or of the free cell nearest to a wall that a body was pressed into."""
        number = self.number[row, column]
        return number if number >= 0 else int(np.abs(self.cells - (row, column)).sum(1).argmin())
