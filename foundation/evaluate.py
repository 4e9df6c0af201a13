"""python -m foundation.evaluate task=... policy=<hub folder>|random|null|player: final numbers, with their spread.

Plays a fixed list of seeded episodes, every one to its end (so that short episodes do not count more often than long
ones), several environments in one forward pass, and puts untrained baselines beside the result.
"""

import logging
import math
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from foundation.actors import NullActor, PolicyActor, RandomActor
from foundation.rollout import Environments, evaluation_seed
from pipelines import checkpoint
from pipelines.actions import ActionCodec
from pipelines.command import command
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")


def play(actor, environments, seeds, watch=None, label="playing"):
    """Plays one episode per seed in a list of gymnasium environments -> Episodes, in the order they ended.

    Environment i of b plays the seeds i, i + b, i + 2b, ... and leaves the batch when its share is done.
    `watch(number, observation, action)` sees every action and, with action None, the final observation.
    """
    b = min(len(environments), len(seeds))
    vector = Environments(environments[:b], lambda slot, episode: seeds[slot + b * episode])
    slots, episodes, frame = list(vector.slots), [], vector.reset()
    actor.start(slots)
    with tqdm(total=len(seeds), unit="episode", desc=label, disable=None, leave=False) as bar:
        while True:
            actions = actor.act(frame)
            if watch is not None:
                for slot, observation, action in zip(slots, frame.observation, actions, strict=True):
                    watch(slot.index + b * slot.episode, observation, None if slot.done else action)
            goes_on = [not slot.done or slot.index + b * (slot.episode + 1) < len(seeds) for slot in slots]
            if not any(goes_on):
                break
            if not all(goes_on):
                slots = [slot for slot, on in zip(slots, goes_on, strict=True) if on]
                actions = [action for action, on in zip(actions, goes_on, strict=True) if on]
                actor.keep(np.flatnonzero(goes_on))
            outcome, frame = vector.step(actions, slots)
            episodes += outcome.episodes
            bar.update(len(outcome.episodes))
    vector.close()
    return episodes


# numbers with their spread


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
    return f"{numbers[name]:.3f} [{numbers[f'{name}_low']:.3f}, {numbers[f'{name}_high']:.3f}]"


def evaluate(actor, environments, protocol, who, prefix, watch=None):
    """Plays the protocol's episodes, says the result, and returns it as flat numbers. Same seeds for every actor."""
    start = time.monotonic()
    seeds = [evaluation_seed(protocol.seed, i) for i in range(protocol.episodes)]
    episodes = play(actor, environments, seeds, watch, who)
    numbers = summarise(episodes, prefix)
    frames = sum(e.frames for e in episodes)
    numbers[f"{prefix}/frames_per_second"] = frames / (time.monotonic() - start)
    say(who, numbers, prefix)
    return numbers
