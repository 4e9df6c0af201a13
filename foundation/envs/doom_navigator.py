"""Where the scripted player walks: picks places it has not seen and things to take, and follows a path there."""

import numpy as np

from foundation.envs.doom_grid import CELL

SEEN = 6  # cells around the player that count as seen
FAR = 3000.0  # units of walking; goals beyond are not looked for
DOOR_AGAIN = 260  # frames until a door walked through is worth opening again; the engine shuts it after 75


class Navigator:
    """Goals and paths on one map. Positions are float [2] in map units; randomness from `rng`."""

    def __init__(self, grid, rng, curiosity=0.25):
        self.grid, self.rng, self.curiosity = grid, rng, curiosity
        self.graph = grid.graph.copy()  # where the player gets stuck costs more, for this player only
        self.seen = ~grid.reachable.reshape(grid.shape)
        self.ignored = set()  # objects that could not be taken
        self.doors = dict.fromkeys(grid.doorways.tolist(), 0)  # doorway -> frame from which it is of interest
        self.clock = 0
        self._drop()

    def _drop(self):
        self.goal, self.path, self.at, self.patience = None, None, 0, 0

    def look(self, position):
        """Marks the surroundings as seen."""
        row, column = divmod(self.grid.cell(position), self.grid.shape[1])
        self.seen[max(row - SEEN, 0) : row + SEEN + 1, max(column - SEEN, 0) : column + SEEN + 1] = True

    def waypoint(self, position, items, hungry=False):
        """float [2] to walk towards now, or None when there is nowhere to go.

        items: {id: position}. hungry: take things rather than look at places.
        """
        if self.path is None or self._arrived(position, items) or self.patience <= 0:
            self._give_up_or_finish(items)
            self._choose(position, items, hungry)
        if self.path is None:
            return None
        ahead = self._advance(position)
        if ahead is None:  # pushed off the path
            self._drop()
        return ahead

    def tick(self):
        """One frame passed."""
        self.patience -= 1
        self.clock += 1

    def blocked(self, position, toward):
        """The player did not get from `position` towards `toward`: avoid the cells just ahead."""
        direction = (toward - position) / max(np.hypot(*(toward - position)), 1e-6)
        for distance in (CELL, 2 * CELL):
            self.graph.data[self.graph.indices == self.grid.cell(position + distance * direction)] *= 8
        self._drop()

    def door_ahead(self):
        """Whether the next steps of the path lead through a door."""
        return self.path is not None and bool(self.grid.door.flat[self.path[self.at : self.at + 5]].any())

    def _arrived(self, position, items):
        kind, _ = self.goal
        if isinstance(kind, int) and kind not in items:  # taken, or gone
            return True
        return np.hypot(*(self.grid.centre(self.path[-1]) - position)) < (14 if kind != "explore" else 4 * CELL)

    def _give_up_or_finish(self, items):
        if self.goal is not None and self.goal[1] in self.doors:
            self.doors[self.goal[1]] = self.clock + DOOR_AGAIN
        if self.goal is not None and self.goal[0] in items:  # stood on it or ran out of patience, and it is still there
            self.ignored.add(self.goal[0])
        self._drop()

    def _choose(self, position, items, hungry):
        """Nearest unseen place or thing by walking cost, with a person's whims."""
        start = self.grid.nearest(position)
        if start is None:
            return
        cost, predecessors = self.grid.search(start, FAR, self.graph)
        things = self._things(cost, items) if hungry or self.rng.random() > self.curiosity else []
        options = things if hungry and things else self._places(cost) + things
        options = [option for option in options if np.isfinite(option[0])]
        if not options:
            self.seen = ~self.grid.reachable.reshape(self.grid.shape)  # all seen: start over
            return
        _, kind, cell = min(options, key=lambda option: option[0])
        self.goal, self.path, self.at = (kind, cell), self.grid.path(predecessors, cell), 0
        self.patience = int(cost[cell] / 4 + 120)  # frames; a free walk covers 16 units a frame

    def _places(self, cost):
        unseen = np.flatnonzero(~self.seen.ravel() & np.isfinite(cost))
        cells = self.rng.choice(unseen, min(24, len(unseen)), replace=False) if len(unseen) else []
        places = [((cost[c] + 100) * self.rng.uniform(0.6, 1.6), "explore", int(c)) for c in cells]
        doors = [c for c, since in sorted(self.doors.items()) if since <= self.clock]
        return places + [((cost[c] + 100) * self.rng.uniform(0.3, 0.8), "door", c) for c in doors]

    def _things(self, cost, items):
        found = []
        for name, place in items.items():
            cell = None if name in self.ignored else self.grid.nearest(place, within=32)
            if cell is not None:
                found.append((0.4 * cost[cell] * self.rng.uniform(0.7, 1.3), name, cell))
        return found

    def _advance(self, position):
        """Moves along the path to the nearest cell; float [2] of the farthest next cell in a straight walk, or None."""
        window = self.grid.centre(self.path[self.at : self.at + 14])  # n 2
        distance = np.hypot(*(window - position).T)
        nearest = int(distance.argmin())
        if distance[nearest] > 5 * CELL:
            return None
        self.at += nearest
        for ahead in (14, 9, 6, 4, 2):
            if nearest + ahead < len(window) and self.grid.straight(position, window[nearest + ahead]):
                return window[nearest + ahead]
        return window[min(nearest + 1, len(window) - 1)]
