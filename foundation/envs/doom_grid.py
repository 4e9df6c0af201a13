"""A walking grid over a Doom map: which cells a player's box fits in, and shortest paths between them."""

import functools

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, dijkstra

from foundation.envs.doom_map import PLAYER_HEIGHT, STEP, VOID, load_map

CELL = 16  # units; half a player's width, so that a corridor of 48 units always holds a cell centre that fits
RADIUS = 15.5  # of the player's box, a little less than the engine's 16: touching a wall is allowed
NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, -1), (-1, 1))
NOWHERE = -9999  # scipy's mark for "no predecessor"


@functools.lru_cache(maxsize=16)
def load_grid(wad, name):
    """WalkGrid of a map, built once per process (50-300 ms)."""
    return WalkGrid(load_map(wad, name))


class WalkGrid:
    """Cells of 16 x 16 units; flat cell index = row * columns + column.

    A cell is walkable when the player's box, centred in it, fits between floor and ceiling and touches no wall, keyless
    doors open. Its height is the highest floor under the box, so a step up of more than 24 units is no edge.
    """

    def __init__(self, level):
        self.level = level
        points = np.concatenate([level.start, level.end])
        self.origin = np.floor(points.min(0) / CELL) * CELL - CELL
        columns, rows = (np.ceil((points.max(0) - self.origin) / CELL) + 1).astype(int)
        self.shape = (int(rows), int(columns))
        self.sector = self._sectors()  # r c
        floor, ceiling = np.append(level.floor, 0.0), np.append(level.open_ceiling, 0.0)
        self.height = floor[self.sector].copy()
        self._top = ceiling[self.sector].copy()
        self._blocked = self.sector == VOID
        self.door = np.zeros(self.shape, bool)
        self._stamp_lines()
        self.walkable = ~self._blocked & (self._top - self.height >= PLAYER_HEIGHT)
        self.clearance = distance_transform_edt(self.walkable)  # cells to the nearest obstacle
        self.graph = self._graph()
        self.reachable = self._reachable(level.player_start)

    def _sectors(self):
        """int [r c]: sector under each cell centre, by scan lines: walking right, each line crossed names the next."""
        level = self.level
        x1, y1, x2, y2 = *level.start.T, *level.end.T
        sector = np.full(self.shape, VOID)
        centres = self.origin[0] + CELL * (np.arange(self.shape[1]) + 0.5)
        for row in range(self.shape[0]):
            y = self.origin[1] + CELL * (row + 0.5) + 0.01  # off the map's integer grid: no vertex is hit
            hit = np.flatnonzero((y1 > y) != (y2 > y))
            x = x1[hit] + (y - y1[hit]) / (y2[hit] - y1[hit]) * (x2[hit] - x1[hit])
            to_the_right = np.where(y2[hit] > y1[hit], level.front[hit], level.back[hit])
            order = np.argsort(x, kind="stable")
            last = np.searchsorted(x[order], centres) - 1
            sector[row] = np.where(last >= 0, np.append(to_the_right[order], VOID)[last], VOID)
        return sector

    def _stamp_lines(self):
        """Every line narrows the cells whose player box it touches: walls block, openings bound floor and ceiling."""
        level = self.level
        floor, ceiling = level.floor, level.open_ceiling
        for line in range(len(level.start)):
            front, back = level.front[line], level.back[line]
            if front == back and not level.impassable[line] and not level.exit[line]:
                continue
            cells = self._touched(level.start[line], level.end[line])
            if level.impassable[line] or level.exit[line] or VOID in (front, back):
                self._blocked[cells] = True
                continue
            self.height[cells] = np.maximum(self.height[cells], max(floor[front], floor[back]))
            self._top[cells] = np.minimum(self._top[cells], min(ceiling[front], ceiling[back]))
            self.door[cells] |= level.door[line]

    def _touched(self, a, b):
        """(rows, columns) of the cells whose box of +-RADIUS around the centre meets the segment a-b."""
        low = np.maximum(np.floor((np.minimum(a, b) - RADIUS - self.origin) / CELL - 0.5).astype(int), 0)
        high = np.ceil((np.maximum(a, b) + RADIUS - self.origin) / CELL - 0.5).astype(int)
        x = np.arange(low[0], min(high[0] + 1, self.shape[1]))
        y = np.arange(low[1], min(high[1] + 1, self.shape[0]))
        columns, rows = (axis.ravel() for axis in np.meshgrid(x, y))
        relative = self.origin + CELL * (np.stack([columns, rows], -1) + 0.5)  # centres
        enter, leave = np.zeros(len(rows)), np.ones(len(rows))
        for axis in (0, 1):  # slab test
            d = b[axis] - a[axis]
            near, far = relative[:, axis] - RADIUS - a[axis], relative[:, axis] + RADIUS - a[axis]
            if d == 0:
                leave = np.where((near < 0) & (far > 0), leave, -1.0)
            else:
                enter = np.maximum(enter, np.minimum(near / d, far / d))
                leave = np.minimum(leave, np.maximum(near / d, far / d))
        meets = enter < leave
        return rows[meets], columns[meets]

    def _graph(self):
        """Sparse [cells cells] walking costs in units: longer near walls, on damaging floors and down ledges."""
        rows, columns = self.shape
        index = np.arange(rows * columns).reshape(self.shape)
        harmful = np.append(self.level.damaging, False)[self.sector]
        cost = 1 + 0.6 * (self.clearance <= 1) + 0.2 * (self.clearance <= 2) + 6.0 * harmful
        sources, targets, weights = [], [], []
        for dr, dc in NEIGHBOURS:
            a = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in zip((dr, dc), self.shape, strict=True))
            b = tuple(slice(max(d, 0), n - max(-d, 0)) for d, n in zip((dr, dc), self.shape, strict=True))
            rise = self.height[b] - self.height[a]
            edge = self.walkable[a] & self.walkable[b] & (rise <= STEP)
            if dr and dc:  # no cutting of corners
                edge &= self.walkable[a[0], b[1]] & self.walkable[b[0], a[1]]
            length = CELL * np.hypot(dr, dc) * cost[b] + 2.0 * np.maximum(-rise - STEP, 0)
            sources.append(index[a][edge])
            targets.append(index[b][edge])
            weights.append(length[edge])
        entries = np.concatenate(weights), (np.concatenate(sources), np.concatenate(targets))
        return csr_matrix(entries, shape=(index.size, index.size))

    def _reachable(self, start):
        """bool [cells]: where the player can walk to from `start`."""
        reached = np.zeros(self.walkable.size, bool)
        cell = self.nearest(start)
        if cell is not None:
            reached[breadth_first_order(self.graph, cell, return_predecessors=False)] = True
        return reached

    @functools.cached_property
    def doorways(self):
        """int [n]: a reachable cell in the middle of each sector that USE opens."""
        usable = (self.walkable & self.reachable.reshape(self.shape)).ravel()
        inside = [np.flatnonzero((self.sector.ravel() == door) & usable) for door in self.level.door_sectors]
        return np.array([cells[len(cells) // 2] for cells in inside if len(cells)], int)

    def cell(self, position):
        """Flat index of the cell under float [2], clipped to the grid."""
        column, row = np.floor((np.asarray(position) - self.origin) / CELL).astype(int)
        row, column = np.clip(row, 0, self.shape[0] - 1), np.clip(column, 0, self.shape[1] - 1)
        return int(row * self.shape[1] + column)

    def centre(self, cells):
        """float [... 2]: positions of flat cell indices."""
        rows, columns = np.divmod(np.asarray(cells), self.shape[1])
        return self.origin + CELL * (np.stack([columns, rows], -1) + 0.5)

    def nearest(self, position, within=64):
        """The walkable cell nearest to `position`, or None when none is near."""
        cell = self.cell(position)
        if self.walkable.flat[cell]:
            return cell
        row, column = divmod(cell, self.shape[1])
        n = within // CELL
        top, left = max(row - n, 0), max(column - n, 0)
        rows, columns = np.nonzero(self.walkable[top : row + n + 1, left : column + n + 1])
        if not len(rows):
            return None
        cells = (rows + top) * self.shape[1] + columns + left
        return int(cells[np.argmin(np.square(self.centre(cells) - position).sum(-1))])

    def search(self, cell, limit=np.inf, graph=None):
        """Shortest paths from `cell`: (cost float [cells], inf where out of reach; predecessor int [cells])."""
        return dijkstra(self.graph if graph is None else graph, indices=cell, return_predecessors=True, limit=limit)

    def path(self, predecessors, target):
        """int [n]: cells from the search's source to `target`."""
        cells = [target]
        while predecessors[cells[-1]] != NOWHERE:
            cells.append(predecessors[cells[-1]])
        return np.array(cells[::-1])

    def straight(self, a, b):
        """Whether one can walk straight from `a` to `b` (float [2] each)."""
        n = max(int(np.hypot(*(b - a)) / (CELL / 2)), 1)
        at = ((a + (b - a) * np.linspace(0, 1, n + 1)[:, None] - self.origin) / CELL).astype(int)
        columns, rows = np.clip(at[:, 0], 0, self.shape[1] - 1), np.clip(at[:, 1], 0, self.shape[0] - 1)
        rise = np.diff(self.height[rows, columns])
        return bool(self.walkable[rows, columns][1:].all() and (rise <= STEP).all())
