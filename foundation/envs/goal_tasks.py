"""Environments of vectors with several tasks, pairs of a start and a goal; the seed of an episode takes one."""

from foundation.envs.states import StateEnv
from pipelines.schema import DataError


class GoalTasks(StateEnv):
    """Subclasses have `tasks`, a list, and `goal` [s] of the episode at hand, which `reset` says as `info["goal"]`.

    reset's options: {"task_id": 1..n} = that task instead of the one of number seed mod n; {"style": ...} as of
    StateEnv, kept as `style`.
    """

    tasks, goal = (), None

    def reset(self, *, seed=None, options=None):
        options = options or {}
        self.style, task = options.get("style"), options.get("task_id")
        if self.style not in (None, *self.styles) or task not in (None, *range(1, len(self.tasks) + 1)):
            raise DataError(f"options {options}: expected style in {self.styles}, task_id in 1..{len(self.tasks)}")
        self._task = seed if task is None else task - 1
        observation, info = super().reset(seed=seed)
        return observation, {**info, "goal": self.goal}

    def task_number(self, seed):
        """Of the episode that `_begin` is given the seed of: its place in `tasks`."""
        return (seed if self._task is None else self._task) % len(self.tasks)
