"""Episodes of vectors -> batches of single steps with goals and skills, as a LightningDataModule.

    episodes --> a table of all states, final ones included --> steps, their goals (pipelines.goals), fresh skills
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from foundation.pretraining.trajectory_data import TrajectoryData
from pipelines import schema
from pipelines.goals import Goals, state_rows
from pipelines.schema import DataError
from pipelines.states import Vectors

GOALS, SKILLS = 0, 1  # random streams of a batch
HELD_OUT_BATCHES = 16


class GoalData(TrajectoryData):
    """Options as in configs/data/goals.yaml. A batch is a pure function of (seed, step, data)."""

    def __init__(self, train, where, episodes, validation, on_damage, batch_size, workers, goals, skills, frozen_skills,
                 normalise, steps, seed):  # fmt: skip
        if normalise not in (None, "all"):
            raise DataError(f"data.normalise={normalise!r}: expected null or all; distances have one unit")
        self.goals, self.skills, self.frozen_skills = goals, skills, frozen_skills
        super().__init__(train, where, episodes, validation, on_damage, batch_size, workers, 1, "length", 0.1, 0.1,
                         "skill", None, 1.0, normalise, steps, seed)  # fmt: skip

    def _cut(self):
        parts = (self.data, (self.seed, TRAIN)), (self.held_out, (0, HELD_OUT))
        self.dataset, self.validation = (data and Transitions(data, key, self) for data, key in parts)

    def statistics(self):
        return {**super().statistics(), "goals": dict(self.goals)}

    def provenance(self):
        kinds = ", ".join(f"{name} {value}" for name, value in self.goals.items())
        return {**super().provenance(), "goals": f"{kinds}; final observations of episodes included"}

    def setup(self, stage):
        """DataError where the network of init= does not fit these data."""
        super().setup(stage)
        net = self.trainer.lightning_module.net
        if net.n_actions != self.spaces.n_actions:
            raise DataError(f"the policy has n_actions={net.n_actions}, the data {self.spaces.n_actions}")
        if self.skills != net.latent_dim:
            raise DataError(f"the policy's skills have {net.latent_dim} numbers, data.skills={self.skills}; set it so")

    def train_dataloader(self):
        return by_step(self.dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return [] if self.validation is None else DataLoader(self.validation, batch_size=None)


class Transitions(Dataset):
    """Item t = batch t of single steps, `rank`'s rows of the global batch.

    OBSERVATION, NEXT_OBSERVATION, GOAL float32 [b s], normalised; ACTION [b a] or [b]; REACHED bool [b]; CONDITION
    float32 [b z], skills: directions drawn anew for every step of training, or, with frozen_skills, once for all.
    """

    rank, world_size = 0, 1

    def __init__(self, data, key, owner):
        if data.next_observation is not None:
            raise DataError("these are single transitions, of which none leads to the next; goals need whole episodes")
        self.key, self.owner, self.offsets = key, owner, data.offsets
        episodes = Vectors(data)
        states = episodes.load()
        self.states = torch.from_numpy(states if owner.normalizer is None else owner.normalizer(states))
        self.action = torch.from_numpy(data.action)
        self.goals = Goals(episodes.offsets, **owner.goals)

    def __len__(self):
        held_out = -(-len(self.action) // self.owner.batch_size)
        return min(HELD_OUT_BATCHES, held_out) if self.key[1] == HELD_OUT else self.owner.steps

    def __getitem__(self, step):
        n, generator = self.owner.batch_size * self.world_size, np.random.default_rng((*self.key, GOALS, step))
        steps = generator.integers(len(self.action), size=n)
        rows = state_rows(self.offsets, steps)
        goals = self.goals.draw(rows, generator)
        steps, rows, goals = (torch.from_numpy(self._mine(index)) for index in (steps, rows, goals))
        batch = {
            schema.OBSERVATION: self.states[rows], schema.NEXT_OBSERVATION: self.states[rows + 1],
            schema.ACTION: self.action[steps], schema.GOAL: self.states[goals], schema.REACHED: rows == goals,
        }  # fmt: skip
        if self.owner.skills is not None:
            batch[schema.CONDITION] = torch.from_numpy(self._mine(self._skills(n, step)))
        return batch

    def _skills(self, n, step):
        """Uniform on the unit sphere, float32 [n z]."""
        key = (*self.key, SKILLS, 0 if self.owner.frozen_skills else step)
        skills = np.random.default_rng(key).standard_normal((n, self.owner.skills))
        return (skills / np.linalg.norm(skills, axis=-1, keepdims=True)).astype(np.float32)

    def _mine(self, rows):
        return rows[self.rank * self.owner.batch_size : (self.rank + 1) * self.owner.batch_size]
