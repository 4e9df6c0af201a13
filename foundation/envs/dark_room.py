"""Dark Room: find an unseen goal in a grid, where only standing on it is rewarded (as in DPT, arXiv:2306.14892).

Every goal needs its own policy, so an agent can only succeed by finding out during play. With `permuted` the goal is
the far corner, and what has to be found out is what the five actions do.
"""

from itertools import permutations, product

import torch

from foundation.envs.worlds import CONTEXTS, World, at_least, count, integers, kinds_of, pick, shuffled_split
from foundation.posteriors import HypothesisPosterior

MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))  # x+, x-, y+, y-, stay


class DarkRoom(World):
    """Observation: the cell (x, y), raw, from (0, 0); reward 1 whenever the next cell is the goal; never terminates.

    tasks: {"goal": int64 [b 2], "permutation": int64 [b 5], the move of each action}. Of the goals (or of the 120
    permutations) 80 % are train, 20 % held out, in the order of the release. contexts: see World.context.
    """

    state_dim, n_actions = 2, len(MOVES)

    def __init__(self, size=10, horizon=100, permuted=False, contexts="iid"):
        at_least(2, size=size)
        at_least(1, horizon=horizon)
        self.size, self.horizon, self.permuted = int(size), int(horizon), bool(permuted)
        self.contexts = kinds_of(contexts, (*CONTEXTS, "posterior"))
        cells = list(product(range(self.size), repeat=2))  # row-major
        self.states = torch.tensor(cells, dtype=torch.float32)
        self.unknown = shuffled_split(list(permutations(range(5))) if permuted else cells)
        self.moves = torch.tensor(MOVES)

    def hypotheses(self, split=None):
        found = torch.cat([self.unknown[name] for name in ([split] if split else self.unknown)])
        corner, identity = torch.full((1, 2), self.size - 1), torch.arange(5)[None]
        if self.permuted:
            return {"goal": corner.repeat(len(found), 1), "permutation": found}
        return {"goal": found, "permutation": identity.repeat(len(found), 1)}

    def start(self, tasks):
        return torch.zeros(count(tasks), 2, device=tasks["goal"].device)

    def step(self, tasks, observation, action, generator=None):
        move = self.moves.to(observation.device)[pick(tasks["permutation"], action)]
        following = (observation + move).clamp(0, self.size - 1)
        reward = (following == tasks["goal"]).all(-1).float()
        return reward, following.expand(*reward.shape, 2)

    def optimal(self, tasks, observation):
        """The shortest way, x first, then y, then stay."""
        x, y = (tasks["goal"][:, None] - observation).unbind(-1)  # b k
        move = torch.where(x > 0, 0, torch.where(x < 0, 1, torch.where(y > 0, 2, torch.where(y < 0, 3, 4))))
        return pick(tasks["permutation"].argsort(-1), move)

    def player(self):
        """As if any goal, or permutation, were possible: nobody who plays knows the split."""
        return HypothesisPosterior(self)

    def queries(self, tasks, k, generator):
        """Uniform cells."""
        return integers(self.size, (count(tasks), k, 2), generator).float()
