"""Grid worlds in the manner of MiniGrid: an agent that faces a direction looks for an unseen goal between walls.

Cells, directions and the three actions are MiniGrid's: x to the right, y downwards, a wall around `size` x `size`
cells, left and right turn on the spot, forward goes one cell unless there is a wall. Unlike MiniGrid's, episodes do not
end at the goal and the agent sees no picture: it knows its pose, must find the goal, and is paid for staying there.
"""

from itertools import product

import torch

from foundation.envs import worlds
from foundation.envs.worlds import World, at_least, checked, count, integers, per_row, pick
from pipelines.schema import DataError

LEFT, RIGHT, FORWARD = range(3)
HEADINGS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by MiniGrid's direction: right, down, left, up
WALLS = ("empty", "four_rooms")
LISTED = 1 << 14  # tasks of a family of which a list is made


class GridWorld(World):
    """Observation: the cell (x, y) and the unit vector of the heading, [4], from (1, 1) facing right; reward 1
    whenever the next cell is the goal; never terminates.

    walls: empty | four_rooms, divided by a cross of walls with an opening in each arm, drawn per task. 80 % of the
    goals are train, 20 % held out; layouts are shared. contexts: see World.context.
    tasks: {"goal": int64 [b 2], "openings": int64 [b 4], "distance": float32 [b S], actions from every pose to it}.
    """

    state_dim, n_actions = 4, 3
    defining = ("goal", "openings")

    def __init__(self, size=9, horizon=50, walls="empty", contexts="iid"):
        at_least(4 if walls == "empty" else 5, size=size)
        at_least(1, horizon=horizon)
        self.walls = checked("walls", walls, WALLS)
        if walls == "four_rooms" and size % 2 == 0:
            raise DataError(f"size={size}: four equal rooms need an odd size, such as {size + 1}")
        self.size, self.horizon, self.middle = int(size), int(horizon), int(size) // 2
        self.contexts = worlds.kinds_of(contexts)
        cells = list(product(range(1, self.size - 1), repeat=2))
        self.states = torch.tensor([(*cell, *way) for cell in cells for way in HEADINGS], dtype=torch.float32)
        self.goals = worlds.shuffled_split([c for c in cells if walls == "empty" or self.middle not in c])
        self.layouts = torch.tensor(list(self._layouts()))
        self.listed = {}

    def _layouts(self):
        """Where the openings are: y in the upper and lower arm of the cross, x in the left and right one."""
        if self.walls == "empty":
            return [(0, 0, 0, 0)]
        near, far = range(1, self.middle), range(self.middle + 1, self.size - 1)
        return product(near, far, near, far)

    def hypotheses(self, split=None):
        goals = torch.cat([self.goals[name] for name in ([split] if split else self.goals)])
        if len(goals) * len(self.layouts) > LISTED:
            return None
        if split not in self.listed:
            goal, layout = (x.flatten() for x in torch.meshgrid(
                torch.arange(len(goals)), torch.arange(len(self.layouts)), indexing="ij"))  # fmt: skip
            self.listed[split] = self.tasks(goals[goal], self.layouts[layout])
        return self.listed[split]

    def draw(self, b, generator, split="train"):
        goals = self.goals[checked("split", split, worlds.SPLITS)].to(generator.device)
        layouts = self.layouts.to(generator.device)
        goal, layout = (integers(len(found), (b,), generator) for found in (goals, layouts))
        return self.tasks(goals[goal], layouts[layout])

    def tasks(self, goal, openings):
        """The tasks of goals [b 2] and openings [b 4], with the way from everywhere."""
        tasks = {"goal": goal, "openings": openings}
        return {**tasks, "distance": self._distances(tasks)}

    def _distances(self, tasks):
        """Breadth-first search from the goal in all tasks at once: actions from every pose [b S], inf without a way."""
        states = self.states.to(tasks["goal"].device)[None]
        following = [self.index(self.move(per_row(tasks), states, action)) for action in range(self.n_actions)]
        at_goal = (states[..., :2] == tasks["goal"][:, None]).all(-1)
        distance = torch.where(at_goal, 0.0, torch.inf)
        while True:
            through = torch.stack([pick(distance, index.expand_as(distance)) for index in following]).amin(0)
            closer = torch.minimum(distance, through + 1)
            if torch.equal(closer, distance):
                return torch.where(self.free(per_row(tasks), states[..., :2]), distance, torch.inf)
            distance = closer

    def free(self, tasks, cell):
        """Whether a cell [... 2] has no wall; leading axes broadcast."""
        x, y = cell.unbind(-1)
        inside = (cell >= 1).all(-1) & (cell <= self.size - 2).all(-1)
        if self.walls == "empty":
            return inside.expand(torch.broadcast_shapes(inside.shape, tasks["goal"].shape[:-1]))
        upper, lower, left, right = tasks["openings"].unbind(-1)
        vertical = (x != self.middle) | (y == upper) | (y == lower)
        horizontal = (y != self.middle) | (x == left) | (x == right)
        return inside & vertical & horizontal

    def possible(self, tasks, observation):
        return self.free(tasks, observation[..., :2])

    def move(self, tasks, observation, action):
        """The pose after an action, [... 4]; action: int [...] or one for all."""
        (x, y), (dx, dy) = observation[..., :2].unbind(-1), observation[..., 2:].unbind(-1)
        ahead = observation[..., :2] + observation[..., 2:]
        action = torch.as_tensor(action, device=observation.device)
        go = (action == FORWARD) & self.free(tasks, ahead)
        turned_x = torch.where(action == LEFT, dy, torch.where(action == RIGHT, -dy, dx))
        turned_y = torch.where(action == LEFT, -dx, torch.where(action == RIGHT, dx, dy))
        parts = torch.broadcast_tensors(torch.where(go, x + dx, x), torch.where(go, y + dy, y), turned_x, turned_y)
        return torch.stack(parts, -1)

    def index(self, observation):
        """The row of `states` that an observation [... 4] is, int64 [...]."""
        x, y, dx, dy = observation.unbind(-1)
        heading = torch.where(dx == 0, 2 - dy, 1 - dx)  # right 0, down 1, left 2, up 3
        return (((x - 1) * (self.size - 2) + y - 1) * len(HEADINGS) + heading).long()

    def start(self, tasks):
        return self.states[0].to(tasks["goal"].device).repeat(count(tasks), 1)

    def step(self, tasks, observation, action, generator=None):
        following = self.move(tasks, observation, action)
        return (following[..., :2] == tasks["goal"]).all(-1).float(), following

    def optimal(self, tasks, observation):
        """The first action on a shortest way to the goal; at the goal, turning left for ever."""
        rows = per_row(tasks)
        following = [self.index(self.move(rows, observation, action)) for action in range(self.n_actions)]
        return torch.stack([pick(tasks["distance"], index) for index in following], -1).argmin(-1)

    def queries(self, tasks, k, generator):
        """Uniform poses in cells without a wall."""
        states = self.states.to(generator.device)
        free = self.free(per_row(tasks), states[None, :, :2]).float()
        return states[torch.multinomial(free, k, replacement=True, generator=generator)]
