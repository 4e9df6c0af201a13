"""Learners with a closed form, in the definitions of DPT's evaluation (arXiv:2306.14892), to compare a network with.

A learner has `start(b)`: its state, a dict of tensors with leading axis b, of an empty context; `observe(state,
transitions [b n ...])`: the state after more of it; and `act(state, observation [b s], generator, greedy) -> int [b]`.
`greedy=False` is online play; `greedy=True` the one decision that is taken on an offline context. Ties go to the first.
"""

import torch
import torch.nn.functional as F
from einops import einsum

from pipelines.schema import ACTION, REWARD, DataError


class Learner:
    """Base: remembers nothing."""

    def start(self, b):
        return {"rounds": torch.zeros(b, dtype=torch.int64)}

    def observe(self, state, transitions):
        """state: of b tasks; transitions: {OBSERVATION [b n s], ACTION [b n], REWARD [b n], ...} -> a new state."""
        return {"rounds": state["rounds"] + transitions[ACTION].shape[1]}

    def act(self, state, observation, generator, greedy=False):
        raise NotImplementedError


class Uniform(Learner):
    """Any action."""

    def __init__(self, n_actions):
        self.n_actions = n_actions

    def act(self, state, observation, generator, greedy=False):
        return anything(self.n_actions, len(observation), generator)


class Optimal(Learner):
    """Knows the tasks: takes the label."""

    def __init__(self, world, tasks):
        self.world, self.tasks = world, tasks

    def act(self, state, observation, generator, greedy=False):
        return self.world.optimal(self.tasks, observation[:, None])[:, 0]


class Periodic(Learner):
    """Plays the first `lengths[b]` actions of its row of `sequences` [b l] over and over."""

    def __init__(self, sequences, lengths):
        if len(sequences) != len(lengths) or not (lengths > 0).all():
            raise DataError(f"expected a length above 0 for each of {len(sequences)} sequences, got {lengths}")
        self.sequences, self.lengths = sequences, lengths

    def act(self, state, observation, generator, greedy=False):
        return self.sequences.gather(1, (state["rounds"] % self.lengths)[:, None])[:, 0]


# arms of a bandit, one by one


class Arms(Learner):
    """Base of learners that keep, of each arm, its number of pulls and the sum of its rewards, [b a]."""

    def __init__(self, arms):
        self.arms = arms

    def start(self, b):
        return {"counts": torch.zeros(b, self.arms), "sums": torch.zeros(b, self.arms)}

    def observe(self, state, transitions):
        action, reward = transitions[ACTION], transitions[REWARD].to(state["sums"].dtype)
        return {
            "counts": state["counts"].scatter_add(1, action, torch.ones_like(reward)),
            "sums": state["sums"].scatter_add(1, action, reward),
        }


class EmpiricalMean(Arms):
    """Pulls each arm once, then the best mean so far. Greedy: the best mean, of an unseen arm 0."""

    def act(self, state, observation, generator, greedy=False):
        return (means(state) if greedy else unpulled_first(state, means(state))).argmax(-1)


class UCB(Arms):
    """mean + c / sqrt(n), unpulled arms first."""

    def __init__(self, arms, c=1.0):
        super().__init__(arms)
        self.c = c

    def act(self, state, observation, generator, greedy=False):
        bonus = self.c / state["counts"].clamp(min=1).sqrt()
        return unpulled_first(state, means(state) + bonus).argmax(-1)


class LCB(Arms):
    """mean - c / sqrt(max(1, n)), of an unseen arm -c: pessimism, for offline contexts."""

    def __init__(self, arms, c=0.8):
        super().__init__(arms)
        self.c = c

    def act(self, state, observation, generator, greedy=False):
        return (means(state) - self.c / state["counts"].clamp(min=1).sqrt()).argmax(-1)


class ThompsonSampling(Arms):
    """Best arm of a sample of the posterior: prior N(mean, variance), rewards N(mean of the arm, noise^2).

    Greedy: the arm that is best in most of `samples` samples.
    """

    def __init__(self, arms, noise=0.3, mean=0.5, variance=1 / 12, samples=100):
        super().__init__(arms)
        self.noise, self.mean, self.variance, self.samples = noise, mean, variance, samples

    def posterior(self, state):
        """-> (means, standard deviations) [b a]."""
        precision = 1 / self.variance + state["counts"] / self.noise**2
        return (self.mean / self.variance + state["sums"] / self.noise**2) / precision, precision.rsqrt()

    def act(self, state, observation, generator, greedy=False):
        centre, std = self.posterior(state)
        n = self.samples if greedy else 1
        draws = torch.randn(n, *centre.shape, generator=generator, device=centre.device)
        best = (centre + std * draws).argmax(-1)  # n b
        return F.one_hot(best, self.arms).sum(0).argmax(-1)


class GaussianMean(ThompsonSampling):
    """Best posterior mean under the Gaussian prior: maximises value where Thompson sampling explores."""

    def act(self, state, observation, generator, greedy=False):
        return self.posterior(state)[0].argmax(-1)


# arms with features


class LinUCB(Learner):
    """x . theta + c |x|_{A^-1} with ridge regression's theta and A = ridge I + sum x x^T; the first action is random.

    features: [a d]. c=0: ridge-greedy.
    """

    def __init__(self, features, c=1.0, ridge=1.0):
        self.features, self.c, self.ridge = features, c, ridge

    def start(self, b):
        d = self.features.shape[1]
        return {"gram": torch.zeros(b, d, d), "sums": torch.zeros(b, d), "rounds": torch.zeros(b, dtype=torch.int64)}

    def observe(self, state, transitions):
        x, reward = self.features[transitions[ACTION]], transitions[REWARD]  # b n d, b n
        return {
            "gram": state["gram"] + einsum(x, x, "b n d, b n e -> b d e"),
            "sums": state["sums"] + einsum(x, reward, "b n d, b n -> b d"),
            **super().observe(state, transitions),
        }

    def act(self, state, observation, generator, greedy=False):
        inverse = torch.linalg.inv(state["gram"] + self.ridge * torch.eye(self.features.shape[1]))  # b d d
        theta = einsum(inverse, state["sums"], "b d e, b e -> b d")
        width = einsum(self.features, inverse, self.features, "a d, b d e, a e -> b a").clamp(min=0).sqrt()
        best = (theta @ self.features.T + self.c * width).argmax(-1)
        return torch.where(state["rounds"] > 0, best, anything(len(self.features), len(best), generator))


def means(state):
    """Empirical means [b a], 0 where there is none."""
    return state["sums"] / state["counts"].clamp(min=1)


def unpulled_first(state, values):
    return values.masked_fill(state["counts"] == 0, torch.inf)


def anything(n_actions, b, generator):
    return torch.randint(n_actions, (b,), generator=generator)
