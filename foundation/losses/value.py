"""Regression of a value head."""

from foundation.losses.masked import masked_mean


def value_loss(value_t, target_t, mask):
    """Mean squared error of V(o_t) [b t] to its target [b t], both in normalised units (VPT's value head)."""
    return masked_mean((value_t - target_t.detach()).square(), mask)


def explained_variance(value_t, target_t, mask):
    """1 - Var[target - V] / Var[target]: 1 is perfect, 0 is a constant, below 0 is worse than one. NaN if undefined."""
    value, target = value_t[mask], target_t[mask]
    variance = target.var(unbiased=False)
    residual = (target - value).var(unbiased=False)
    return float(1 - residual / variance) if variance > 1e-12 else float("nan")
