"""Episodes of vectors -> batches of single steps with goals and skills, or with rewards, as a LightningDataModule.

episodes --> a table of all states, final ones included --> steps, their goals (pipelines.goals), fresh skills
                                                        +-> steps, the reward of one task
"""

from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.envs.state_rewards import extent, reward_of
from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from foundation.pretraining.trajectory_data import TrajectoryData
from pipelines import schema
from pipelines.goals import Goals, state_rows
from pipelines.schema import DataError
from pipelines.states import Vectors

GOALS, SKILLS, ACTOR = 0, 1, 2  # random streams of a batch
STORED = "stored"  # the rewards of the shards
HELD_OUT_BATCHES = 16


class GoalData(TrajectoryData):
    """Options as in configs/data/goals.yaml. A batch is a pure function of (seed, step, data).

    A policy is told, as `condition`: a skill, where `skills` are drawn | nothing, where there is a `reward` | a goal.
    """

    def __init__(self, train, where, episodes, validation, on_damage, batch_size, workers, goals, actor_goals, skills,
                 frozen_skills, reward, normalise, steps, seed):  # fmt: skip
        if normalise not in (None, "all"):
            raise DataError(f"data.normalise={normalise!r}: expected null or all; distances have one unit")
        if skills is not None and reward is not None:
            raise DataError(f"data.reward={reward}: skills have rewards of their own; leave it out, and tell the policy"
                            " that reward once it is trained")  # fmt: skip
        self.goals, self.actor_goals, self.reward = goals, actor_goals, reward
        self.skills, self.frozen_skills = skills, frozen_skills
        condition = "skill" if skills is not None else "goal" if reward is None else "none"
        super().__init__(train, where, episodes, validation, on_damage, batch_size, workers, 1, "length", 0.1, 0.1,
                         condition, None, 1.0, normalise, steps, seed)  # fmt: skip

    def _divided(self, data, validation, seed):
        """With the reward that was asked for in place of the stored one; held-out episodes are measured by the others'
        extent."""
        parts = super()._divided(data, validation, seed)
        if self.reward in (None, STORED):
            return parts
        bounds = extent(parts[0].observation, parts[0].final_observation)
        return tuple(data and relabelled(data, reward_of(self.reward, bounds)) for data in parts)

    def _cut(self):
        if self.reward is not None and not np.ptp(self.data.reward) and not self.data.terminated.any():
            raise DataError(f"data.reward={self.reward}: all {self.frames} rewards are {self.data.reward[0]:g} and no"
                            " episode comes to an end: every policy is as good; choose another reward")  # fmt: skip
        parts = (self.data, (self.seed, TRAIN)), (self.held_out, (0, HELD_OUT))
        self.dataset, self.validation = (data and Transitions(data, key, self) for data, key in parts)

    def derive(self, net):
        goal = {"goal_dim": self.goal_dim} if net.get("goal_dim", 0) is None else {}
        return {**super().derive(net), **goal}

    @property
    def goal_dim(self):
        """Numbers of a goal that a policy is told; 0 = none."""
        return self.spaces.state_dim if self.condition == "goal" else 0

    def statistics(self):
        """Of these data, between which numbers their states lie, and which goals they had or which reward."""
        states = self.data.observation, self.data.final_observation
        low, high = np.min([s.min(0) for s in states], 0), np.max([s.max(0) for s in states], 0)
        values = {**super().statistics(), "state_low": low.tolist(), "state_high": high.tolist()}
        if self.reward is not None:
            return {**values, "reward": self.reward}
        apart = {} if self.actor_goals is None else {"actor_goals": dict(self.actor_goals)}
        return {**values, "goals": dict(self.goals), **apart}

    def provenance(self):
        if self.reward is not None:
            return {**super().provenance(), "reward": self.reward}
        named = {"goals": self.goals, "goals of the actor": self.actor_goals}
        kinds = {name: ", ".join(f"{option} {value}" for option, value in goals.items())
                 for name, goals in named.items() if goals is not None}  # fmt: skip
        return {**super().provenance(), **kinds, "goals": f"{kinds['goals']}; final observations of episodes included"}

    def setup(self, stage):
        """DataError where the network of init= does not fit these data."""
        super().setup(stage)
        net = self.trainer.lightning_module.net
        if net.n_actions != self.spaces.n_actions:
            raise DataError(f"the policy has n_actions={net.n_actions}, the data {self.spaces.n_actions}")
        skills = getattr(net, "latent_dim", None)
        if self.skills != skills:
            raise DataError(f"the policy's skills have {skills} numbers, data.skills={self.skills}; set it so")
        if skills is None and net.condition_dim != self.goal_dim:
            raise DataError(
                f"the policy is told goals of {net.condition_dim} numbers, those of the data have {self.goal_dim} (0 is"
                " none, as with data.reward); leave method.net.goal_dim=null"
            )

    def train_dataloader(self):
        return by_step(self.dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return [] if self.validation is None else DataLoader(self.validation, batch_size=None)


class Transitions(Dataset):
    """Item t = batch t of single steps, `rank`'s rows of the global batch.

    OBSERVATION, NEXT_OBSERVATION float32 [b s], normalised; ACTION [b a] or [b]; and, by what the policy is told,
    skill    CONDITION float32 [b z], directions drawn anew for every step of training, or, with frozen_skills, once for
             all; GOAL [b s]; REACHED bool [b], of the goal
    goal     CONDITION [b s], the goal, and REACHED; ACTOR_CONDITION [b s], the goal that the actor is told, where those
             are drawn apart
    nothing  REWARD float32 [b], TERMINATED bool [b]
    """

    rank, world_size = 0, 1

    def __init__(self, data, key, owner):
        if data.next_observation is not None:
            raise DataError("these are single transitions, of which none leads to the next; goals need whole episodes")
        self.key, self.owner, self.offsets = key, owner, data.offsets
        episodes = Vectors(data)
        states = episodes.load()
        self.states = torch.from_numpy(states if owner.normalizer is None else owner.normalizer(states))
        stored = data.action, data.reward, data.terminated
        self.action, self.reward, self.terminated = map(torch.from_numpy, stored)
        self.goals = Goals(episodes.offsets, **owner.goals)
        self.actor_goals = None if owner.actor_goals is None else Goals(episodes.offsets, **owner.actor_goals)

    def __len__(self):
        held_out = -(-len(self.action) // self.owner.batch_size)
        return min(HELD_OUT_BATCHES, held_out) if self.key[1] == HELD_OUT else self.owner.steps

    def __getitem__(self, step):
        n, generator = self.owner.batch_size * self.world_size, np.random.default_rng((*self.key, GOALS, step))
        steps = generator.integers(len(self.action), size=n)
        rows = state_rows(self.offsets, steps)
        mine, at = (torch.from_numpy(self._mine(index)) for index in (steps, rows))
        batch = {
            schema.OBSERVATION: self.states[at], schema.NEXT_OBSERVATION: self.states[at + 1],
            schema.ACTION: self.action[mine],
        }  # fmt: skip
        if self.owner.reward is not None:
            return batch | {schema.REWARD: self.reward[mine], schema.TERMINATED: self.terminated[mine]}
        goals = torch.from_numpy(self._mine(self.goals.draw(rows, generator)))
        batch[schema.REACHED] = at == goals
        if self.owner.skills is not None:
            skills = torch.from_numpy(self._mine(self._skills(n, step)))
            return batch | {schema.GOAL: self.states[goals], schema.CONDITION: skills}
        batch[schema.CONDITION] = self.states[goals]
        if self.actor_goals is not None:
            generator = np.random.default_rng((*self.key, ACTOR, step))
            goals = torch.from_numpy(self._mine(self.actor_goals.draw(rows, generator)))
            batch[schema.ACTOR_CONDITION] = self.states[goals]
        return batch

    def _skills(self, n, step):
        """Uniform on the unit sphere, float32 [n z]."""
        key = (*self.key, SKILLS, 0 if self.owner.frozen_skills else step)
        skills = np.random.default_rng(key).standard_normal((n, self.owner.skills))
        return (skills / np.linalg.norm(skills, axis=-1, keepdims=True)).astype(np.float32)

    def _mine(self, rows):
        return rows[self.rank * self.owner.batch_size : (self.rank + 1) * self.owner.batch_size]


def relabelled(data, reward):
    """The trajectories with reward(observation [n s], next_observation [n s]) -> [n] in place of theirs."""
    return replace(data, reward=reward(data.observation, data.following(np.arange(len(data.reward)))))
