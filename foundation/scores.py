"""Numbers of episodes with their spread: means, 95 % intervals, and how they are said."""

import logging
import math

import numpy as np

log = logging.getLogger("foundation-policy")


def wilson(successes, n, z=1.959964):
    """95 % score interval of a proportion (Wilson 1927): sound also at 0 and n successes."""
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values, resamples=10_000, seed=0):
    """95 % percentile interval of the mean; (nan, nan) for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def summarise(episodes, prefix):
    """Episodes -> flat numbers: return and, where defined, success, each with `_low` and `_high`."""
    returns = [e.returns for e in episodes]
    low, high = bootstrap(returns)
    numbers = {"return": float(np.mean(returns)), "return_low": low, "return_high": high, "episodes": len(episodes)}
    numbers["episode_frames"] = float(np.mean([e.frames for e in episodes]))
    known = [e.success for e in episodes if e.success is not None]
    if known:
        low, high = wilson(sum(known), len(known))
        numbers |= {"success": sum(known) / len(known), "success_low": low, "success_high": high}
    return {f"{prefix}/{name}": value for name, value in numbers.items()}


def say(who, numbers, prefix):
    """One line of a result, for people."""
    parts = [f"return {_spread(numbers, f'{prefix}/return')}"]
    if f"{prefix}/success" in numbers:
        parts.append(f"success {_spread(numbers, f'{prefix}/success')}")
    log.info("%-12s %s  (%d episodes)", who, "  ".join(parts), numbers[f"{prefix}/episodes"])


def _spread(numbers, name):
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    return f"{numbers[name]:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) else f"{numbers[name]:.3f} [-]"
