"""A room of cells with a wall between its halves, one door in it: recorded random walks, and exact distances."""

from collections import deque

import numpy as np

from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode

SIZE = 6
WALL = {(3, y) for y in range(1, SIZE)}  # the door is at (3, 0)
CELLS = [(x, y) for x in range(SIZE) for y in range(SIZE) if (x, y) not in WALL]
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
SPACES = Spaces(2, 1, n_actions=len(MOVES))


def moved(cell, action):
    after = (cell[0] + MOVES[action][0], cell[1] + MOVES[action][1])
    return after if after in CELLS else cell


def state(cell):
    """Coordinates in [-1, 1], float32 [2]."""
    return np.float32(cell) / (SIZE - 1) * 2 - 1


def distances():
    """Least number of steps between all cells, int [n n]."""
    found = np.full((len(CELLS), len(CELLS)), -1)
    for i, start in enumerate(CELLS):
        found[i, i], queue = 0, deque([start])
        while queue:
            cell = queue.popleft()
            for after in {moved(cell, action) for action in range(len(MOVES))}:
                if found[i, CELLS.index(after)] < 0:
                    found[i, CELLS.index(after)] = found[i, CELLS.index(cell)] + 1
                    queue.append(after)
    return found


def write_walks(root, episodes=100, length=60, seed=0):
    """Trajectory shards of walks that change their direction at every third step or so."""
    generator = np.random.default_rng(seed)
    with ShardWriter(root, "episodes", samples_per_shard=50) as writer:
        for i in range(episodes):
            cells, actions = [CELLS[generator.integers(len(CELLS))]], []
            while len(actions) < length:
                anew = not actions or generator.random() < 0.35
                actions.append(int(generator.integers(len(MOVES))) if anew else actions[-1])
                cells.append(moved(cells[-1], actions[-1]))
            arrays = {
                "observation": [state(cell) for cell in cells[:-1]], "action": actions, "reward": np.zeros(length),
                "terminated": np.zeros(length, bool), "truncated": np.arange(length) == length - 1,
                "final_observation": state(cells[-1]),
            }  # fmt: skip
            write_episode(writer, f"e{i:04d}", arrays, SPACES, 10.0, "grid")
    return root
