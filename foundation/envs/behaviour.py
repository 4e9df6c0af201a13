"""Who plays when episodes of vectors are collected: scripted, random or trained, made worse on request."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np

from foundation.actors import SequenceActor
from foundation.evaluate import check_spaces, load_policy
from foundation.rollout import Frame
from pipelines import schema
from pipelines.schema import DataError

KINDS = ("scripted", "random", "policy")
CONTEXT = "context"  # no play: what the context policy of a world did, see WorldEnv.context


@dataclass(frozen=True)
class Variant:
    """A way to play: `scale` times the behaviour's action, with 1 = half the bounds' width, plus `noise` * N(0, 1)."""

    behaviour: str = "scripted"
    noise: float = 0.0
    scale: float = 1.0

    @property
    def name(self):
        """scripted, scripted*0.5, scripted+0.3, ..."""
        scale = f"*{self.scale:g}" if self.scale != 1 else ""
        return self.behaviour + scale + (f"+{self.noise:g}" if self.noise else "")


def variants(settings, styles=()):
    """[(Variant, its share of the episodes)] of the `states` block of the collect config; styles: of the task's own."""
    if settings["behaviour"] == CONTEXT and not settings["mix"]:
        return [(Variant(CONTEXT), 1.0)]
    behaviour = "scripted" if settings["behaviour"] == "expert" else settings["behaviour"]
    scale = 1.0 if settings["scale"] is None else settings["scale"]
    scales = scale if isinstance(scale, list | tuple) else [scale]
    base, mix = Variant(behaviour), settings["mix"]
    if isinstance(mix, dict) and mix:
        named = {"scripted" if name == "expert" else name: share for name, share in mix.items()}
        found = [(replace(base, behaviour=name), share) for name, share in named.items()]
    elif mix:
        found = [(replace(base, noise=float(noise)), 1.0) for noise in dict.fromkeys(mix)]
    else:
        noisy = settings["noisy"] if settings["noise"] else 0.0
        found = [(base, 1 - noisy), (replace(base, noise=float(settings["noise"])), noisy)]
    found = [(replace(one, scale=float(scale)), share / len(scales)) for one, share in found for scale in scales]
    bad = [share for _, share in found if not 0 <= share <= 1]
    bad += [variant.noise for variant, _ in found if not variant.noise >= 0]
    kinds = {variant.behaviour for variant, _ in found}
    if bad or not kinds <= {*KINDS, *styles} or not sum(share for _, share in found):
        raise DataError(
            f"behaviour={settings['behaviour']}, mix={mix}, noise={settings['noise']}, noisy={settings['noisy']}:"
            f" expected behaviours among {[*KINDS, *styles]} (expert means scripted; of worlds also {CONTEXT}), shares"
            " in 0..1 and noise of at least 0"
        )
    return [(variant, share) for variant, share in found if share]


def assign(found, n):
    """Variants of episodes 0..n-1: at every length each has its share to within one episode. list[Variant]"""
    shares = np.array([share for _, share in found]) / sum(share for _, share in found)
    counts, chosen = np.zeros(len(found)), []
    for i in range(n):
        pick = int(np.argmax(shares * (i + 1) - counts))  # the one that lags most
        counts[pick] += 1
        chosen.append(found[pick][0])
    return chosen


class Behaviour:
    """observation [s] -> (clean action, executed action), both as the environment takes them, for one episode.

    address, target: of a trained policy, and the return that it is asked for. `told(reward)` follows every step.
    """

    def __init__(self, env, variant, rng, address=None, target=None):
        self.spaces, self.variant, self.rng = env.spaces, variant, rng
        self.best = env.scripted()  # kept through the episode, and asked once a step: it may remember
        makers = {"scripted": lambda: self.best, "random": lambda: self._random}
        makers["policy"] = lambda: trained(env, address, target)
        makers |= {style: partial(env.player, style, rng) for style in env.styles}
        self.options = {"style": variant.behaviour} if variant.behaviour in env.styles else None  # of `reset`
        self.policy = makers[variant.behaviour]()
        if self.policy is None:
            raise DataError("this task has no scripted policy; collect with states.behaviour=random")
        self.told = getattr(self.policy, "told", lambda reward, following: None)
        self.optimal = None  # what the scripted player would have done on the last observation; None without one

    def __call__(self, observation):
        spaces, noise = self.spaces, self.variant.noise
        self.optimal = self.best and self.best(observation)
        clean = self.optimal if self.variant.behaviour == "scripted" else self.policy(observation)
        if spaces.n_actions is not None:  # noise is then the chance of any other action
            return clean, self._random() if noise and self.rng.random() < noise else clean
        if self.variant.behaviour != "random" and self.variant.scale != 1:
            clean = spaces.from_unit(self.variant.scale * spaces.to_unit(clean))
        if not noise:
            return clean, clean
        return clean, spaces.from_unit(spaces.to_unit(clean) + noise * self.rng.standard_normal(len(clean)))

    def _random(self, observation=None):
        if self.spaces.n_actions is not None:
            return int(self.rng.integers(self.spaces.n_actions))
        return self.rng.uniform(self.spaces.low, self.spaces.high).astype(np.float32)


def trained(env, address, target=None):
    """The policy of a run folder or hub name for one episode; DataError if there is none, or it was made for others."""
    if address is None:
        raise DataError("states.behaviour=policy needs states.policy=<run folder or hub name>")
    bundle, task = loaded(address), getattr(env, "tags", {}).get("task", type(env).__name__)
    check_spaces(bundle, env, f"states.policy={address}", task)
    if target is None:  # what fine-tuning asked for last, as in evaluations
        target = bundle.statistics.get("targets", {}).get(task)
    return Trained(env, SequenceActor(bundle, target))


loaded = lru_cache(1)(load_policy)  # it plays thousands of episodes


class Trained:
    """observation [s] -> action, greedily, of a sequence policy that hears of the rewards in between."""

    def __init__(self, env, actor):
        self.spaces, self.actor, self.reward, self.following = env.spaces, actor, None, None
        actor.start([SimpleNamespace(environment=env)])

    def told(self, reward, following=None):
        self.reward, self.following = reward, following

    def __call__(self, observation):
        reward = np.float32([self.reward or 0.0])
        led = None if self.following is None else self.following[None]
        frame = Frame(np.float32(observation)[None], np.array([self.reward is None]), np.array([True]), reward, led)
        (action,) = self.actor.act(frame)
        if self.spaces.n_actions is not None:
            return int(action)
        return np.clip(action, self.spaces.low, self.spaces.high).astype(np.float32)


def play(env, behaviour, seed, label, stop_after=None):
    """One episode -> (arrays as pipelines.trajectories.write_episode takes them, success or None).

    label: the action that is stored, clean | executed. stop_after: steps from the first success to a cut, or None.
    Where the environment has a scripted player, `optimal_action` is what that would have done, whoever played.
    """
    rows, optimal, led, success, left = [], [], [], None, None
    observation, _ = env.reset(seed=seed, options=behaviour.options)
    while True:
        clean, executed = behaviour(observation)
        optimal.append(behaviour.optimal)
        following, reward, terminated, truncated, info = env.step(executed)
        led.append(info.get(schema.NEXT_OBSERVATION))
        behaviour.told(reward, led[-1])
        if "success" in info:
            success = bool(success) or info["success"]
        if stop_after is not None and success and not terminated:
            left = stop_after if left is None else left - 1
            truncated = truncated or left <= 0
        rows.append((observation, clean if label == "clean" else executed, reward, terminated, truncated))
        observation = following
        if terminated or truncated:
            break
    names = schema.OBSERVATION, schema.ACTION, schema.REWARD, schema.TERMINATED, schema.TRUNCATED
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    if optimal[0] is not None:
        arrays[schema.OPTIMAL_ACTION] = np.array(optimal)
    if led[0] is not None:
        arrays[schema.NEXT_OBSERVATION] = np.array(led)
    return {**arrays, schema.FINAL_OBSERVATION: observation}, success
