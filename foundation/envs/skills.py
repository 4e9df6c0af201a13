"""Around environments of vectors: actions that are skills, and rewards shaped by a distance.

    SkillEnv   an action is a skill z of a policy of skills (HILP, arXiv:2402.15567), which plays it for some steps
    ShapedEnv  r + scale (gamma V(s') - V(s)), V(s) minus the number of steps to the goal (potentials: Ng et al. 1999; a
               value learned from states without rewards: ViVa, arXiv:2503.18210)

Both say in `info` what a step was to the environment within: BASE_FRAMES of its steps, BASE_REWARD of its own unit.
"""

from collections.abc import Mapping
from functools import lru_cache

import gymnasium
import numpy as np
import torch

from foundation import hub
from foundation.prompts import Prompts, unit
from foundation.rollout import BASE_FRAMES, BASE_REWARD
from pipelines.schema import CONDITION, OBSERVATION, DataError
from pipelines.trajectories import Spaces

KNOWN = {"init", "steps", "sha256"}
SAME = ("state_dim", "action_dim", "n_actions")


class Around(gymnasium.Wrapper):
    """What it does not have itself, it has from the environment within: spaces, fps, goal, distances, ..."""

    def __getattr__(self, name):
        if name == "env" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.env, name)


class SkillEnv(Around):
    """An action [z], of which only the direction counts, is played for `steps` steps or to the episode's end, by the
    frozen policy at `init` with the most probable actions; its reward is the sum of theirs."""

    def __init__(self, env, init, steps=10, sha256=None):
        super().__init__(env)
        if steps < 1:
            raise DataError(f"skills.steps={steps}: expected at least 1")
        self.prompts, self.within, self.steps = loaded(init, sha256), env.spaces, int(steps)
        check(self.prompts, env, init)
        z = self.prompts.net.latent_dim
        self.spaces, self.fps = Spaces(env.spaces.state_dim, z, low=(-1.0,) * z, high=(1.0,) * z), env.fps / steps
        self.action_space = gymnasium.spaces.Box(-1, 1, (z,), np.float32)

    def reset(self, **options):
        self.observation, info = self.env.reset(**options)
        return self.observation, info

    def step(self, action):
        skill, total, frames, done = self._skill(action), 0.0, 0, False
        while frames < self.steps and not done:
            self.observation, reward, terminated, truncated, info = self.env.step(self._act(skill))
            total, frames, done = total + reward, frames + 1, terminated or truncated
        return self.observation, total, terminated, truncated, {**info, BASE_FRAMES: frames}

    def _skill(self, action):
        action = torch.as_tensor(np.asarray(action, np.float32))
        if action.shape != (self.spaces.action_dim,) or not torch.isfinite(action).all():
            raise DataError(f"expected a skill of {self.spaces.action_dim} finite numbers, got {action.tolist()}")
        return unit(action)[None]  # 1 z

    @torch.no_grad()
    def _act(self, skill):
        net = self.prompts.net
        now = {OBSERVATION: self.prompts.seen(self.observation), CONDITION: skill}
        action = net.unit(net.step(now, None, {})[0].mode())
        return self.within.from_unit(action[0].numpy())

    def scripted(self):
        """Where the task has goals: the skill that a goal prompt asks for. [s] -> [z]"""
        if getattr(self.env, "goal", None) is None:
            return None
        return lambda observation: self.prompts.goal(self.env.goal)(observation[None])[0].numpy()


class ShapedEnv(Around):
    """Rewards with the difference of potentials added, V the value of the representation at `init` to the episode's
    goal. An episode that came to its own end has no future, so V = 0 there: returns discounted by gamma then differ by
    -V(s_0), whatever is done, and the best policy stays the best."""

    def __init__(self, env, init, gamma, scale=1.0):
        super().__init__(env)
        if not 0 <= gamma <= 1:
            raise DataError(f"shaping.gamma={gamma}: expected 0 to 1")
        self.prompts, self.gamma, self.scale = loaded(init), float(gamma), float(scale)
        check(self.prompts, env, init, SAME[:1])

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        if getattr(self.env, "goal", None) is None:
            raise DataError("shaping takes the distance to a goal, and this task has none; leave out shaping.init")
        self._potential = self.potential(observation)
        return observation, info

    @torch.no_grad()
    def potential(self, observation):
        """V(s, g) of a state [s], of the first member; a float."""
        representation = self.prompts.representation
        phi = representation.phi(self.prompts.seen(np.stack([observation, self.env.goal])))  # e 2 z
        return float(representation.value(phi[:, 0], phi[:, 1])[0])

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self._potential = self._potential, 0.0 if terminated else self.potential(observation)
        shaped = reward + self.scale * (self.gamma * self._potential - before)
        return observation, shaped, terminated, truncated, {BASE_REWARD: reward, **info}


@lru_cache(4)
def loaded(init, sha256=None):
    """Prompts of a run of method=hilp, one for all environments of a process; DataError if it has changed."""
    bundle = hub.load(init)
    if sha256 is not None and bundle.sha256 != sha256:
        raise DataError(f"{init} is not the policy of skills that this one learned to use: its content has sha256"
                        f" {bundle.sha256[:12]}, not {sha256[:12]}")  # fmt: skip
    return Prompts(bundle)


def check(prompts, env, init, sizes=SAME):
    """DataError unless a model fits an environment."""
    for size in sizes:
        ours, theirs = getattr(prompts.net, size), getattr(env.spaces, size)
        if ours != theirs:
            raise DataError(f"{init} was trained with {size}={ours}, the task has {theirs}; give a run on data of it")


# by the entries of a task


def with_skills(tasks, skills):
    """Tasks whose actions are skills: {init, steps, sha256}; without skills they are as they were. DataError for what
    can be none, from the config of a model."""
    if skills is None or (isinstance(skills, Mapping) and skills.get("init") is None):
        return tasks
    if not isinstance(skills, Mapping) or not set(skills) <= KNOWN or not isinstance(skills.get("steps", 1), int):
        raise DataError(f"skills {skills!r:.80}: expected the names {sorted(KNOWN)}; copy the model again")
    return [{**task, "skills": {**skills, "sha256": skills.get("sha256") or hub.load(skills["init"]).sha256}}
            for task in tasks]  # fmt: skip


def wrapped(env, task):
    """An environment with what its task (a mapping) has around it."""
    if task.get("skills"):
        env = SkillEnv(env, **task["skills"])
    return ShapedEnv(env, **task["shaping"]) if task.get("shaping") else env
