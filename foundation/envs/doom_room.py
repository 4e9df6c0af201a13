"""A room in ViZDoom with four coloured corners, one of them right per task: DPT's pixel setting (arXiv:2306.14892),
after its Miniworld room with four coloured boxes.

The engine draws the room once from every pose of a grid; steps go from pose to pose, in tensors, so that contexts cost
no engine. Poses: cells 48 units apart, eight headings of 45 degrees, so that forward leads from cell to cell.
"""

from itertools import product

import torch
from torch.nn import functional as F

from foundation.envs import worlds
from foundation.envs.doom_pictures import COLOURS, HEADINGS, SIZE
from foundation.envs.doom_pictures import pictures as drawn
from foundation.envs.worlds import World, at_least, count, integers, pick
from pipelines.schema import DataError

LEFT, RIGHT, FORWARD, STAY = range(4)


class DoomRoom(World):
    """Observation: the picture, 25 x 25 x 3 in [0, 1] row by row, then the unit vector of the heading, [1877].

    Actions: turn left, turn right, forward, stay. Reward 1 whenever the next cell is the one before the right corner;
    never terminates. Episodes begin in the middle, facing x+. tasks: {"corner": int64 [b]}, all four in both splits.
    """

    state_dim, n_actions, pictures = 3 * SIZE * SIZE + 2, 4, True

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
        self.states = torch.cat([drawn(self.cells), unit], 1)  # S s
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
