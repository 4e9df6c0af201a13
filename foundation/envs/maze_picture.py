"""Pictures of mazes from above, drawn in NumPy: a maze, its textures and colours, and an agent, 32 to 64 pixels high.

Textures and colours differ from maze to maze, so that what one maze's pixels say about the place does not hold in the
next one.
"""

from itertools import product

import numpy as np

from pipelines.schema import DataError

RADIUS = 0.35  # of the agent, in cells
STRENGTH = 25  # levels by which a pattern leaves its colour
CONTRAST = 60  # levels between the mean brightness of walls and floor, at least
PURE = np.array(list(product((10.0, 245.0), repeat=3)))  # 8 3: colours of agents and goals


class MazePicture:
    """The look of one maze. Positions are (row, column) in cells: cell (r, c) is [r, r + 1) x [c, c + 1).

    background: uint8 [h w c]; agent, goal: colours, float [3].
    """

    def __init__(self, grid, size, rng):
        self.size, shape = tuple(size), grid.walls.shape
        if len(self.size) != 2 or any(n % 2 for n in self.size) or min(self.size) < 2 * max(shape):
            raise DataError(f"size={list(size)}: expected even h, w, of 2 pixels a cell or more; the maze has {shape}")
        self.scale = np.array(self.size) / shape  # pixels a cell
        floor, wall = colours(rng)
        rows, columns = (np.arange(n) * cells // n for n, cells in zip(self.size, shape, strict=True))
        walls = grid.walls[np.ix_(rows, columns)][..., None]  # h w 1
        drawn = np.where(walls, texture(rng, self.size, wall), texture(rng, self.size, floor))
        self.background = drawn.clip(0, 255).astype(np.uint8)
        apart = np.linalg.norm(PURE[:, None] - np.stack([floor, wall]), axis=-1).min(1)
        best = np.argsort(apart)[::-1]
        self.agent = PURE[best[rng.integers(2)]]
        away = np.minimum(apart, np.linalg.norm(PURE - self.agent, axis=-1))
        self.goal, self._marked = PURE[away.argmax()], {}

    def frame(self, position, goal=None):
        """uint8 [h w c] with the agent at `position`, and a mark in the cell `goal`."""
        if goal is not None and goal not in self._marked:
            self._marked = {goal: self._mark(goal)}
        frame = (self.background if goal is None else self._marked[goal]).copy()
        middle, radius = np.asarray(position) * self.scale, RADIUS * self.scale
        (top, left), (bottom, right) = (middle - radius - 1).astype(int).clip(0), (middle + radius + 2).astype(int)
        patch = frame[top:bottom, left:right]
        y = (np.arange(top, top + patch.shape[0]) + 0.5 - middle[0]) / radius[0]
        x = (np.arange(left, left + patch.shape[1]) + 0.5 - middle[1]) / radius[1]
        inside = (1 - np.sqrt(y[:, None] ** 2 + x**2)) * radius.min() + 0.5  # pixels from the edge
        cover = inside.clip(0, 1)[..., None]
        patch[:] = patch + cover * (self.agent - patch) + 0.5
        return frame

    def _mark(self, goal):
        """The background with a framed square in a cell."""
        marked = self.background.copy()
        (top, left), (bottom, right) = (np.round(np.add(goal, k) * self.scale).astype(int) for k in (0, 1))
        inside = marked[top + 1 : bottom - 1, left + 1 : right - 1].copy()
        marked[top:bottom, left:right] = self.goal
        marked[top + 1 : bottom - 1, left + 1 : right - 1] = inside
        return marked


def colours(rng):
    """Of the floor and of walls, float [3] each."""
    while True:
        floor, wall = rng.uniform(30, 225, (2, 3))
        if abs(floor.mean() - wall.mean()) >= CONTRAST:
            return floor, wall


def texture(rng, size, colour):
    """A colour with a random mixture of waves, checks and grains, float [h w 3]."""
    (y, x), (angle, period) = np.mgrid[: size[0], : size[1]], (rng.uniform(0, np.pi), rng.uniform(4, 16))
    waves = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    checks = np.sign(np.sin(2 * np.pi * (x + 0.5) / period) * np.sin(2 * np.pi * (y + 0.5) / period))
    grains = np.kron(rng.uniform(-1, 1, [(n + 1) // 2 for n in size]), np.ones((2, 2)))[: size[0], : size[1]]
    pattern = np.tensordot(rng.dirichlet(np.ones(3)), np.stack([waves, checks, grains]), 1)  # h w
    return colour + STRENGTH * pattern[..., None] * rng.uniform(-1, 1, 3)
