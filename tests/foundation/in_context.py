"""What tests of learners in context share: a seed, the gap to the best arm, curves within their errors."""

import torch

ANCHORED = 4000  # tasks behind the published curves, which have an error of their own


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaps(world, tasks, action):
    """Suboptimality of actions [b n] by true means."""
    return tasks["means"].amax(-1, keepdim=True) - world.mean_reward(tasks, action)


def check_curve(values, expected):
    """Mean of independent values [b] against an anchor from other tasks, within 4 standard errors of the difference."""
    error = float(values.std()) * (1 / len(values) + 1 / ANCHORED) ** 0.5
    assert abs(float(values.mean()) - expected) < 4 * error, (float(values.mean()), expected, error)
