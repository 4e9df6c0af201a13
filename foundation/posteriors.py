"""Exact posteriors: what a perfect in-context learner does, and the least loss that any can reach.

The minimiser of DPT's loss (arXiv:2306.14892) is the posterior over the optimal action. Of bandits with U(low, high)
means it is integrated on a grid; where the tasks are a finite list and steps are deterministic, as in Dark Room, it is
the vote of the tasks that explain every transition, and that have the state which is asked about. Axes: b tasks,
l context lengths, a arms or actions, m hypotheses, g points of a grid.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from foundation.envs.worlds import TRANSITION, count
from foundation.learners import Arms, Learner, anything
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError

POINTS = 256  # of the grid over a mean: at 500 pulls with noise 0.3 the posterior's std spans 3.4 of them
ROWS = 2048  # posteriors at once: bounds memory to some tens of MB
CELLS = 1 << 22  # hypotheses x transitions at once
VOTES = "b m, m b k a -> b k a"
LEAST = 1e-30  # probability below which float32 products are 0


# bandits


def statistics(context, arms, lengths):
    """Pulls and sums of rewards in the first n transitions, n of `lengths` -> (counts, sums) [b l a]."""
    pulled = F.one_hot(context[ACTION], arms).float()  # b n a
    rows = torch.tensor(list(lengths), device=pulled.device)
    add = [F.pad(x.cumsum(1), (0, 0, 1, 0))[:, rows] for x in (pulled, pulled * context[REWARD][..., None])]
    return add[0], add[1]


def arm_posteriors(world, counts, sums, points=POINTS):
    """(probabilities [... a g], means of arms they belong to [g]): each arm on its own, prior U(low, high)."""
    means = world.low + (world.high - world.low) * (torch.arange(points, device=counts.device) + 0.5) / points
    return world.log_likelihood(means, counts[..., None], sums[..., None]).softmax(-1), means


def best_arm(world, counts, sums, points=POINTS):
    """P(arm is the best | context) = sum over its mean x of p(x) times P(every other mean is below x). [... a]"""
    check_prior(world)
    shape, counts, sums = counts.shape, counts.reshape(-1, world.n_actions), sums.reshape(-1, world.n_actions)
    rows = [_best_arm(world, *part, points) for part in zip(counts.split(ROWS), sums.split(ROWS), strict=True)]
    return torch.cat(rows).reshape(shape)


def _best_arm(world, counts, sums, points):
    mass, _ = arm_posteriors(world, counts, sums, points)  # b a g
    below = mass.cumsum(-1) - mass / 2
    one = torch.ones_like(below[:, :1])
    before = torch.cat([one, below[:, :-1]], 1).cumprod(1)  # of the arms before each
    after = torch.cat([below[:, 1:], one], 1).flip(1).cumprod(1).flip(1)
    p = (mass * before * after).sum(-1)
    return p / p.sum(-1, keepdim=True)


def posterior_means(world, counts, sums, points=POINTS):
    """E[mean of an arm | context], [... a]."""
    check_prior(world)
    shape, counts, sums = counts.shape, counts.reshape(-1, world.n_actions), sums.reshape(-1, world.n_actions)
    rows = []
    for part in zip(counts.split(ROWS), sums.split(ROWS), strict=True):
        mass, means = arm_posteriors(world, *part, points)
        rows.append(mass @ means)
    return torch.cat(rows).reshape(shape)


def check_prior(world):
    if not hasattr(world, "log_likelihood"):
        raise DataError(f"{type(world).__name__}: exact posteriors are known of bandits with independent arms only")


class PosteriorSampling(Arms):
    """A sample of P(best arm | context): exact Thompson sampling, the perfect DPT. Greedy: its mode."""

    def __init__(self, world, points=POINTS):
        super().__init__(world.n_actions)
        self.world, self.points = world, points

    def act(self, state, observation, generator, greedy=False):
        p = best_arm(self.world, state["counts"], state["sums"], self.points)
        return p.argmax(-1) if greedy else torch.multinomial(p, 1, generator=generator)[:, 0]


class PosteriorMean(PosteriorSampling):
    """The arm of the largest posterior mean: offline nothing is better on average."""

    def act(self, state, observation, generator, greedy=False):
        return posterior_means(self.world, state["counts"], state["sums"], self.points).argmax(-1)


# finite lists of tasks


class HypothesisPosterior(Learner):
    """Uniform over the tasks of `world.hypotheses(split)` that explain all that was seen; over all, if none does.

    Acts by a sample of the label that these tasks give; greedy: by the commonest. Needs deterministic steps.
    """

    def __init__(self, world, split=None):
        self.world, self.tasks = world, world.hypotheses(split)
        if self.tasks is None:
            raise DataError(f"{type(world).__name__} has no finite list of tasks to compare a context with")
        self.m = count(self.tasks)

    def start(self, b):
        return {"possible": torch.ones(b, self.m, dtype=torch.bool)}

    def observe(self, state, transitions):
        return {"possible": state["possible"] & self.explains(transitions).all(1)}

    def explains(self, transitions):
        """Whether a task would have done what a transition shows, bool [b n m]."""
        b, n = transitions[ACTION].shape
        flat = {name: rearrange(transitions[name], "b n ... -> 1 (b n) ...") for name in TRANSITION}
        rows = max(1, CELLS // max(1, b * n))
        found = [self._explained(slice(i, i + rows), flat) for i in range(0, self.m, rows)]
        return rearrange(torch.cat(found), "m (b n) -> b n m", b=b)

    def _explained(self, rows, flat):
        tasks = {name: value[rows, None] for name, value in self.tasks.items()}
        reward, following = self.world.step(tasks, flat[OBSERVATION], flat[ACTION], None)
        same = (reward == flat[REWARD]) & (following == flat[NEXT_OBSERVATION]).all(-1)
        return same & self.world.possible(tasks, flat[OBSERVATION])

    def probabilities(self, state, observation):
        """P(optimal action | context) at observations [b k s] -> [b k a]; uniform where no remaining task has one."""
        b, possible = len(observation), state["possible"].float()  # b m
        possible = torch.where(possible.any(-1, keepdim=True), possible, torch.ones_like(possible))
        asked, votes = rearrange(observation, "b k s -> 1 (b k) s"), 0
        rows = max(1, CELLS // asked.shape[1])
        for i in range(0, self.m, rows):
            labels = self._labels({name: value[i : i + rows] for name, value in self.tasks.items()}, asked)
            votes = votes + einsum(possible[:, i : i + rows], rearrange(labels, "m (b k) a -> m b k a", b=b), VOTES)
        n = votes.sum(-1, keepdim=True)
        return torch.where(n > 0, votes / n.clamp(min=1), torch.full_like(votes, 1 / self.world.n_actions))

    def _labels(self, tasks, observation):
        """Labels of m tasks at observations [1 n s] as [m n a]; all 0 where a task has no such observation."""
        chosen = F.one_hot(self.world.optimal(tasks, observation), self.world.n_actions)
        each = {name: value[:, None] for name, value in tasks.items()}
        return chosen.float() * self.world.possible(each, observation)[..., None]

    def act(self, state, observation, generator, greedy=False):
        if greedy:
            return self.probabilities(state, observation[:, None])[:, 0].argmax(-1)
        return self._sampled(state["possible"], observation, generator)

    def _sampled(self, possible, observation, generator):
        """The label of one of the tasks that remain: a draw from `probabilities` that asks no other."""
        possible = torch.where(possible.any(-1, keepdim=True), possible, torch.ones_like(possible))
        each = {name: value[None] for name, value in self.tasks.items()}
        weights = (possible & self.world.possible(each, observation[:, None])).float()  # b m
        some = weights.any(-1)
        weights = torch.where(some[:, None], weights, torch.ones_like(weights))
        rows = torch.multinomial(weights, 1, generator=generator)[:, 0]
        label = self.world.optimal({name: value[rows] for name, value in self.tasks.items()}, observation[:, None])
        return torch.where(some, label[:, 0], anything(self.world.n_actions, len(rows), generator))


# the least loss


def known(world):
    """Whether `floor` is: the prior is U(low, high) means of independent arms, or a finite list of tasks.

    Not of contexts whose actions themselves tell about the task, as those of a learning history do.
    """
    if "history" in getattr(world, "contexts", ()):
        return False
    return hasattr(world, "log_likelihood") or world.hypotheses() is not None


def floor(world, tasks, context, query, lengths):
    """Cross-entropy of the exact posterior for the label of one query [b 1 s], after the first n transitions.

    -> (nats [b l], bool [b l] whether the posterior's mode is the label). Their mean over many tasks is the least that
    the loss can be, and the most that accuracy can; taken on a model's own batch, the difference is nearly noise-free.
    """
    label, p = world.optimal(tasks, query), probabilities(world, context, query, lengths)  # b 1, b l a
    index = label[:, :, None].expand(*p.shape[:2], 1)
    return -p.gather(-1, index)[..., 0].clamp(min=LEAST).log(), p.argmax(-1) == label


def probabilities(world, context, query, lengths):
    """P(action is optimal for one query [b 1 s] | the first n transitions), [b l a]."""
    if world.hypotheses() is None:
        return best_arm(world, *statistics(context, world.n_actions, lengths))
    return prefix_probabilities(HypothesisPosterior(world), context, query, lengths)


def prefix_probabilities(posterior, context, query, lengths):
    """P(optimal action at query [b 1 s] | the first n transitions), [b l a]."""
    rows = max(1, CELLS // (posterior.m * (context[ACTION].shape[1] + 1)))
    found = []
    for i in range(0, len(query), rows):
        explained = posterior.explains({name: value[i : i + rows] for name, value in context.items()})  # b n m
        possible = F.pad(explained.to(torch.uint8), (0, 0, 1, 0), value=1).cummin(1).values[:, list(lengths)].bool()
        state = {"possible": rearrange(possible, "b l m -> (b l) m")}
        asked = query[i : i + rows].expand(-1, len(lengths), -1)
        p = posterior.probabilities(state, rearrange(asked, "b l s -> (b l) 1 s"))
        found.append(rearrange(p, "(b l) 1 a -> b l a", l=len(lengths)))
    return torch.cat(found)


def entropy(p):
    """Of distributions [... k], in nats [...]: of a calibrated posterior, on average its cross-entropy."""
    return torch.special.entr(p).sum(-1)
