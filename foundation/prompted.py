"""Policies of skills that are told something by trajectory shards: midpoints of a plan, a reward, a demonstration."""

import numpy as np

from foundation.envs.state_rewards import REWARDS
from foundation.prompts import NEIGHBOURS, RIDGE, FixedPrompt, PromptedActor, Prompts, own_skill
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories

EXEMPLARS = 50_000  # states that a plan looks at: HILP's
SAMPLES = 10_000  # steps that a reward is fitted on: HILP's
WANTED = {"plan": "looks for midpoints", "reward": "looks for steps to fit", "demonstration": "looks for an episode"}


def prompted(bundle, world, cfg):
    """The actor of a policy of skills in environments like `world`, told what configs/evaluate.yaml calls `prompt`."""
    return PromptedActor(bundle, told(bundle, world, cfg), cfg.run.seed, cfg.greedy is not False, cfg.device)


def told(bundle, world, cfg):
    """The prompt; None = the environments' goals."""
    if cfg.target is not None:
        raise DataError(f"target={cfg.target}: this {type(bundle.net).__name__} is told skills or goals, not returns;"
                        " leave it out")  # fmt: skip
    if cfg.exemplars is not None and cfg.prompt is None:
        raise DataError(f"exemplars={cfg.exemplars} say nothing without prompt=plan, reward or demonstration")
    own = own_skill(bundle) if cfg.prompt is None else None
    if own is not None:
        return FixedPrompt(own.to(cfg.device))
    if cfg.prompt in (None, "goal"):
        return None
    if cfg.prompt not in WANTED:
        raise DataError(f"prompt={cfg.prompt!r}: expected one of {['goal', *WANTED]}")
    if cfg.exemplars is None:
        raise DataError(f"prompt={cfg.prompt} {WANTED[cfg.prompt]} in data: give exemplars=<trajectory shards>")
    prompts = Prompts(bundle, cfg.device)
    reward = getattr(world, "state_reward", None)
    if cfg.prompt == "reward" and reward is None and hasattr(world, "state_reward"):
        raise DataError(f"prompt=reward: this task pays for goals; set task.env.reward to one of {list(REWARDS)}")
    return from_data(
        prompts, cfg.prompt, Trajectories.load(cfg.exemplars), cfg.run.seed, reward, cfg.samples, cfg.ridge
    )


def from_data(prompts, prompt, data, seed, reward=None, samples=SAMPLES, ridge=RIDGE):
    """The prompt of some of the Trajectories `data`, drawn with `seed`: a plan's exemplars, `samples` steps and what
    reward(states [n s], following [n s]) -> [n] makes of them (None: those stored), or one episode to follow."""
    if samples < 1 or ridge < 0:
        raise DataError(f"samples={samples}, ridge={ridge}: expected at least 1 and at least 0")
    generator = np.random.default_rng(seed)
    if prompt == "demonstration":
        shown = data.select([generator.integers(len(data))])
        return prompts.demonstration(np.concatenate([shown.observation, shown.final_observation]))
    rows = generator.permutation(len(data.observation))[: EXEMPLARS if prompt == "plan" else samples]
    now = data.observation[rows]
    if prompt == "plan":
        return prompts.plan(None, now, min(NEIGHBOURS, len(rows)))
    following = data.following(rows)
    return prompts.reward(now, following, data.reward[rows] if reward is None else reward(now, following), ridge)
