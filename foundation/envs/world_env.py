"""A world as an ordinary environment: each reset draws one task, so that collect, evaluate and finetune run on it."""

import numpy as np
import torch

from foundation.envs.states import StateEnv
from foundation.envs.worlds import SPLITS, World, at_least, checked
from pipelines.schema import (
    FINAL_OBSERVATION,
    NEXT_OBSERVATION,
    OBSERVATION,
    OPTIMAL_ACTION,
    TERMINATED,
    TRUNCATED,
    DataError,
)
from pipelines.trajectories import Spaces

FPS = 1.0  # a round is no time; data of several worlds may be mixed


class WorldEnv(StateEnv):
    """`episodes` episodes of one task of `world`, as a single one: every `world.horizon` steps it starts again.

    What is shown then is the start; info["next_observation"] has what the last action led to, as after every step.

    reset(seed) draws the task, and all rewards, from that seed. The task stays unseen; `scripted()` knows it.
    """

    def __init__(self, world, split="train", episodes=1, seed=None):
        if not isinstance(world, World):
            raise DataError(f"world={world!r}: expected a _target_ such as foundation.envs.dark_room.DarkRoom")
        if world.n_actions is None:
            raise DataError(f"{type(world).__name__} takes continuous actions; expected a world of n actions")
        at_least(1, episodes=episodes)
        self.world, self.split = world, checked("split", split, SPLITS)
        spaces = Spaces(world.state_dim, 1, n_actions=world.n_actions)
        super().__init__(spaces, FPS, world.horizon * int(episodes), seed)

    def _begin(self, seed):
        self._generator = torch.Generator().manual_seed(seed)
        self.tasks = self.world.draw(1, self._generator, self.split)
        self._shown = self.world.start(self.tasks)
        return self._shown[0].numpy()

    def _advance(self, action):
        reward, self._shown = self.world.step(self.tasks, self._shown, torch.tensor([action]), self._generator)
        self._led = self._shown[0].numpy()
        frames = self._episode["frames"] + 1
        if frames % self.world.horizon == 0 and frames < self.episode_steps:
            self._shown = self.world.start(self.tasks)
        return self._shown[0].numpy(), float(reward), False, False, None

    def step(self, action):
        *shown, info = super().step(action)
        several = self.episode_steps > self.world.horizon
        return *shown, {**info, NEXT_OBSERVATION: self._led} if several else info

    def context(self, seed, n=None):
        """One task and n transitions (None: an episode's) of it by the world's context policy of pretraining.

        -> (arrays as pipelines.trajectories.write_episode takes them, what the task is: plain values by name).
        """
        generator, n = torch.Generator().manual_seed(seed), self.world.horizon if n is None else n
        tasks = self.world.draw(1, generator, self.split)
        found = self.world.context(tasks, n, generator)
        label = self.world.optimal(tasks, found[OBSERVATION])
        arrays = {name: value[0].numpy() for name, value in {**found, OPTIMAL_ACTION: label}.items()}
        arrays |= {TERMINATED: np.zeros(n, bool), TRUNCATED: np.arange(n) == n - 1}
        arrays[FINAL_OBSERVATION] = arrays[NEXT_OBSERVATION][-1]
        return arrays, self.unknown(tasks)

    def unknown(self, tasks=None):
        """What a task is, None = the one at hand: plain values by name."""
        tasks = self.tasks if tasks is None else tasks
        return {name: tasks[name][0].tolist() for name in self.world.defining or tasks}

    def scripted(self):
        """observation -> the label of the task at hand, whichever that is when it is asked."""

        def player(observation):
            shown = torch.from_numpy(np.asarray(observation, np.float32))
            return int(self.world.optimal(self.tasks, shown[None, None]))

        return player
