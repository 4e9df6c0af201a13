"""Bandits whose arms recover (arXiv:2106.14813): a pull empties an arm, and what it brings grows back while it rests.

To know the arms is not enough here, one has to plan: the best arm now may be better later. The paper's answer are
purely periodic policies, where each arm that is played at all has a period of its own; `best_periodic` searches them.
"""

from functools import cache
from itertools import permutations, product

import torch
import torch.nn.functional as F

from foundation.envs import worlds
from foundation.envs.bandits import GaussianBandit, pull_probabilities
from foundation.envs.worlds import World, at_least, count, integers, per_row, pick, uniform
from pipelines.schema import DataError

STATES = 1 << 12  # cap ** arms, of which values are computed for every task
SWEEPS, TOLERANCE = 2000, 1e-5  # of value iteration


class RecoveringBandit(World):
    """Observation [a]: rounds since each arm's last pull, at most `cap`, all of them at the start; one arm per round.

    The mean of an arm after d rounds is R(d), concave and non-decreasing with R(0) = 0 up to its top R(cap) ~ U(low,
    high), where it stays; increments are a sorted Dirichlet(1). Rewards are N(R(d), noise^2).
    tasks: {"recovery": [b a cap], "policy": int64 [b S], "gain": [b]}: R, the action of the best policy in the long run
    in each of `states`, and what that policy brings per round.
    """

    defining = ("recovery",)

    def __init__(self, arms=3, cap=6, noise=0.3, horizon=200, low=0.0, high=1.0):
        at_least(2, arms=arms)
        at_least(1, cap=cap, horizon=horizon)
        if not (noise > 0 and 0 <= low < high):
            raise DataError(f"noise={noise}, low={low}, high={high}: expected noise above 0 and 0 <= low < high")
        if cap**arms > STATES:
            raise DataError(f"cap={cap} with arms={arms} has {cap**arms} states; expected at most {STATES}")
        self.n_actions = self.state_dim = int(arms)
        self.cap, self.noise, self.horizon = int(cap), float(noise), int(horizon)
        self.low, self.high = float(low), float(high)
        self.states = torch.tensor(list(product(range(1, self.cap + 1), repeat=arms)), dtype=torch.float32)

    def draw(self, b, generator, split="train"):
        shape = (b, self.n_actions, self.cap)
        shares = torch.empty(shape, device=generator.device).exponential_(generator=generator)
        shares = (shares / shares.sum(-1, keepdim=True)).sort(-1, descending=True).values
        top = self.low + (self.high - self.low) * uniform(shape[:2], generator)
        return self.tasks(top[..., None] * shares.cumsum(-1))

    def tasks(self, recovery):
        """The tasks of means [b a cap] after 1, 2, ... rounds of rest, with their best policy."""
        policy, gain = self._plan({"recovery": recovery})
        return {"recovery": recovery, "policy": policy, "gain": gain}

    def _plan(self, tasks):
        """Relative value iteration -> (best action in each state [b S], mean reward per round in the long run [b]).

        Each sweep goes half of the way: the best policy is a cycle, and full sweeps would circle with it.
        """
        states = self.states.to(tasks["recovery"].device)
        actions = torch.arange(self.n_actions, device=states.device).expand(len(states), -1)  # S a
        following = self.index(self._rest(states[:, None], actions))
        rows = per_row(per_row(tasks))
        reward = self.mean_reward(rows, actions[None], states[None, :, None])  # b S a
        value = torch.zeros_like(reward[..., 0])
        for _ in range(SWEEPS):
            values = reward + value[:, following]  # b S a
            change = values.amax(-1) - value
            if (change.amax(-1) - change.amin(-1)).max() < TOLERANCE:
                break
            value = value + 0.5 * change
            value = value - value[:, :1]
        return values.argmax(-1), (change.amax(-1) + change.amin(-1)) / 2

    def index(self, observation):
        """The row of `states` that an observation [... a] is, int64 [...]."""
        place = self.cap ** torch.arange(self.n_actions - 1, -1, -1, device=observation.device)
        return ((observation.long() - 1) * place).sum(-1)

    def _rest(self, observation, action):
        """Observation [... a] and action [...] -> the next observation [... a]."""
        pulled = F.one_hot(action, self.n_actions).bool()
        return torch.where(pulled, 1.0, (observation + 1).clamp(max=self.cap))

    def start(self, tasks):
        return torch.full((count(tasks), self.n_actions), float(self.cap), device=tasks["recovery"].device)

    def mean_reward(self, tasks, action, observation=None):
        if observation is None:
            raise DataError("the mean of a recovering arm depends on the observation; give it")
        return pick(tasks["recovery"].flatten(-2), action * self.cap + pick(observation, action).long() - 1)

    reward = GaussianBandit.reward

    def step(self, tasks, observation, action, generator):
        mean = self.mean_reward(tasks, action, observation)
        return self.reward(mean, generator), self._rest(observation, action)

    def optimal(self, tasks, observation):
        return pick(tasks["policy"], self.index(observation))

    def context(self, tasks, n, generator):
        """One trajectory of independent pulls by one distribution per task, as of a GaussianBandit."""
        action = worlds.categorical(pull_probabilities(count(tasks), self.n_actions, generator), n, generator)
        observation = self.idle(action)
        reward, following = self.step(per_row(tasks), observation, action, generator)
        return worlds.transitions(observation, action, reward, following)

    def idle(self, action):
        """The observations [b n a] that a sequence of pulls [b n] from the start comes by."""
        now = torch.arange(action.shape[1], device=action.device)[:, None]
        pulled = torch.where(F.one_hot(action, self.n_actions).bool(), now, -self.cap)
        last = F.pad(pulled.cummax(1).values, (0, 0, 1, 0), value=-self.cap)[:, :-1]  # before this round
        return (now - last).clamp(max=self.cap).float()

    def queries(self, tasks, k, generator):
        """Where uniform play comes by, once the start is forgotten."""
        action = integers(self.n_actions, (count(tasks), self.n_actions * self.cap + k), generator)
        return self.idle(action)[:, -k:]


@cache
def schedules(arms):
    """Purely periodic sequences that leave no round out, one for each set of periods: [(periods, arm of each round)].

    Rounds that an arm takes are equally far apart. Sequences of up to 2^(arms - 1) rounds, which has all for 4 arms.
    """
    found = {}
    for length in range(1, max(arms, 2 ** (arms - 1)) + 1):
        for periods, sequence in _filled(length, arms, (None,) * length, ()):
            found.setdefault(tuple(sorted(periods)), (periods, sequence))
    return list(found.values())


def _filled(length, arms, sequence, periods):
    """All ways to fill what is None in a sequence with at most `arms` periodic arms."""
    if None not in sequence:
        yield periods, sequence
    elif len(periods) < arms:
        first = sequence.index(None)
        for period in range(first + 1, length + 1):
            rounds = range(first, length, period)
            if length % period == 0 and all(sequence[i] is None for i in rounds):
                filled = tuple(len(periods) if i in rounds else arm for i, arm in enumerate(sequence))
                yield from _filled(length, arms, filled, (*periods, period))


def best_periodic(world, tasks):
    """The best purely periodic policy of each task -> (sequences int64 [b l], their lengths [b], mean reward [b]).

    For learners.Periodic. Searches all schedules with all ways to give them arms; knows the tasks.
    """
    rows = []
    for periods, sequence in schedules(world.n_actions):
        for arms in permutations(range(world.n_actions), len(periods)):
            rows.append((arms, periods, [arms[i] for i in sequence]))
    device = tasks["recovery"].device
    gains = torch.stack([_gain(world, tasks, arms, periods) for arms, periods, _ in rows])  # schedules b
    longest = max(len(sequence) for *_, sequence in rows)
    table = torch.tensor([sequence + [0] * (longest - len(sequence)) for *_, sequence in rows], device=device)
    lengths = torch.tensor([len(sequence) for *_, sequence in rows], device=device)
    gain, best = gains.max(0)
    return table[best], lengths[best], gain


def _gain(world, tasks, arms, periods):
    means = [tasks["recovery"][:, arm, min(period, world.cap) - 1] for arm, period in zip(arms, periods, strict=True)]
    return sum(mean / period for mean, period in zip(means, periods, strict=True))
