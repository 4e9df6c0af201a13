"""Bandits as worlds: tasks of arms whose mean rewards are unknown; the observation is the constant 1.

The families and their context policies are those of DPT (arXiv:2306.14892), as its release generates them.
"""

import math

import numpy as np
import torch

from foundation.envs import worlds
from foundation.envs.worlds import World, at_least, count, integers, normal, per_row, pick, uniform
from foundation.learners import ThompsonSampling
from pipelines.schema import DataError


class Bandit(World):
    """Base of bandits whose tasks hold {"means": [b a]}. A subclass says how they are drawn and what a pull brings."""

    state_dim = 1

    def __init__(self, arms, horizon):
        at_least(2, arms=arms)
        at_least(1, horizon=horizon)
        self.n_actions, self.horizon = int(arms), int(horizon)
        self.states = torch.ones(1, 1)

    def start(self, tasks):
        return torch.ones(count(tasks), 1, device=tasks["means"].device)

    def step(self, tasks, observation, action, generator):
        return self.reward(self.mean_reward(tasks, action), generator), observation

    def reward(self, mean, generator):
        """A reward drawn for each mean [...] -> [...]."""
        raise NotImplementedError

    def mean_reward(self, tasks, action, observation=None):
        return pick(tasks["means"], action)

    def optimal(self, tasks, observation):
        return tasks["means"].argmax(-1)[:, None].expand(observation.shape[:2])

    def queries(self, tasks, k, generator):
        return torch.ones(count(tasks), k, 1, device=generator.device)

    def context(self, tasks, n, generator):
        """Independent pulls by one distribution per task, see `pull_probabilities`. They may be shuffled."""
        action = worlds.categorical(pull_probabilities(count(tasks), self.n_actions, generator), n, generator)
        reward, following = self.step(per_row(tasks), self.queries(tasks, n, generator), action, generator)
        return worlds.transitions(following, action, reward, following)


def pull_probabilities(b, arms, generator):
    """(1 - c) Dirichlet(1) + c onehot(any arm), c uniform in 0, 0.1, ..., 1 -> [b a]."""
    weights = torch.empty(b, arms, device=generator.device).exponential_(generator=generator)
    c = integers(11, (b, 1), generator) / 10
    favourite = torch.nn.functional.one_hot(integers(arms, (b,), generator), arms)
    return (1 - c) * weights / weights.sum(-1, keepdim=True) + c * favourite


class GaussianBandit(Bandit):
    """Means U(low, high), rewards N(mean, noise^2). Another `noise` or range at evaluation is a shift of the family.

    contexts: pulls = independent ones, as `Bandit.context` has them (the paper); thompson = play of Thompson sampling,
    in order, in which the worse arms are as rare as in a good learner's own play; of both, each call takes one.
    """

    def __init__(self, arms=5, noise=0.3, horizon=500, low=0.0, high=1.0, contexts="pulls"):
        super().__init__(arms, horizon)
        self.contexts = worlds.kinds_of(contexts, ("pulls", "thompson"))
        if not (noise > 0 and low < high):
            raise DataError(f"noise={noise}, low={low}, high={high}: expected noise above 0 and low < high")
        self.noise, self.low, self.high = float(noise), float(low), float(high)

    def draw(self, b, generator, split="train"):
        return {"means": self.low + (self.high - self.low) * uniform((b, self.n_actions), generator)}

    def context(self, tasks, n, generator):
        if worlds.one_of(self.contexts, generator) == "pulls":
            return super().context(tasks, n, generator)
        return worlds.interact(self, ThompsonSampling(self.n_actions, self.noise), tasks, n, generator)

    def reward(self, mean, generator):
        return mean + self.noise * normal(mean.shape, generator)

    def log_likelihood(self, mean, counts, sums):
        """Of rewards that add up to `sums` in `counts` pulls, if `mean` is the arm's; up to a constant. Broadcasts."""
        return -counts * (mean - sums / counts.clamp(min=1)) ** 2 / (2 * self.noise**2)


class BernoulliBandit(Bandit):
    """Means U(low, high) within [0, 1], rewards 0 or 1."""

    def __init__(self, arms=5, horizon=500, low=0.0, high=1.0):
        super().__init__(arms, horizon)
        if not 0 <= low < high <= 1:
            raise DataError(f"low={low}, high={high}: expected 0 <= low < high <= 1, they are probabilities")
        self.low, self.high = float(low), float(high)

    draw = GaussianBandit.draw

    def reward(self, mean, generator):
        return torch.bernoulli(mean, generator=generator)

    def log_likelihood(self, mean, counts, sums):
        return sums * torch.log(mean) + (counts - sums) * torch.log1p(-mean)


class LinearBandit(Bandit):
    """Mean of an arm = its features . theta; features [a d] fixed by `features_seed`, theta [b d] ~ N(0, 1/d) per task.

    Contexts are Thompson sampling with independent Gaussian arms, prior N(0, 1), which ignores the features. What it
    pulls depends on what came before: never shuffle such a context, and cut it as a prefix only (`ordered`).
    """

    ordered = True

    def __init__(self, arms=10, dimension=2, noise=0.3, horizon=200, features_seed=1234):
        super().__init__(arms, horizon)
        at_least(1, dimension=dimension)
        if not noise > 0:
            raise DataError(f"noise={noise}: expected a standard deviation above 0")
        self.noise, self.dimension = float(noise), int(dimension)
        features = np.random.RandomState(features_seed).normal(size=(arms, dimension)) / math.sqrt(dimension)
        self.features = torch.tensor(features, dtype=torch.float32)

    def draw(self, b, generator, split="train"):
        theta = normal((b, self.dimension), generator) / math.sqrt(self.dimension)
        return {"theta": theta, "means": theta @ self.features.to(theta.device).T}

    reward = GaussianBandit.reward

    def context(self, tasks, n, generator):
        learner = ThompsonSampling(self.n_actions, self.noise, mean=0.0, variance=1.0)
        return worlds.interact(self, learner, tasks, n, generator)
