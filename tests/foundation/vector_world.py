"""A tiny world of vectors: pushing right pays. Episodes of mixed quality, and the environment they come from."""

import gymnasium
import numpy as np

from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode

LENGTH = 8
SPACES = Spaces(3, 2, low=(-2.0, -1.0), high=(2.0, 1.0))
LEVERS = Spaces(3, 1, n_actions=3)
SIGNS = {"pull": -1}  # of the reward, by task; 1 in all others


class Push(gymnasium.Env):
    """State: (side, position, elapsed). Reward of a step: its first action in [-1, 1], times side and sign."""

    spaces, fps = SPACES, 10.0
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-2, -1]), np.float32([2, 1]))

    def __init__(self, length=LENGTH, seed=None, task="push"):
        self.length, self.sign = length, SIGNS.get(task, 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = 2 * int(self.np_random.integers(2)) - 1
        self.position, self.t = float(self.np_random.normal()), 0
        return self.state(), {}

    def state(self):
        return np.float32([self.side, self.position, 10 * self.t])  # of different sizes: they must be normalised

    def step(self, action):
        push = float(action[0]) / 2
        self.position, self.t = self.position + 0.1 * push, self.t + 1
        done = self.t >= self.length
        reward = push * self.side * self.sign
        info = {"episode": {"success": bool(reward > 0)}} if done else {}
        return self.state(), reward, False, done, info


def write_pushes(root, episodes=60, seed=0, discrete=False, skills=(-1, 1), tasks=("shove", "push")):
    """Trajectory shards in which each episode has a skill within `skills`; its pushes scatter around it.

    Its task is one of `tasks` in turn.
    """
    generator = np.random.default_rng(seed)
    with ShardWriter(root, "episodes", samples_per_shard=25) as writer:
        for i in range(episodes):
            task, skill = tasks[i % len(tasks)], generator.uniform(*skills)
            world = Push(task=task)
            states, actions, rewards = [world.reset(seed=1000 * seed + i)[0]], [], []
            while len(rewards) < LENGTH:
                push = np.clip(skill * world.side * world.sign + 0.1 * generator.normal(), -1, 1)
                lever = int(np.round(push)) + 1
                actions.append(lever if discrete else [2 * push, generator.uniform(-1, 1)])
                state, reward, *_ = world.step([2.0 * (lever - 1) if discrete else 2 * push, 0])
                states.append(state)
                rewards.append(reward)
            last = np.arange(LENGTH) == LENGTH - 1
            arrays = {
                "observation": states[:-1], "action": actions, "reward": rewards, "terminated": np.zeros(LENGTH, bool),
                "truncated": last, "final_observation": states[-1],
            }  # fmt: skip
            tags = {"task": task, "behaviour": "mixed"}
            write_episode(writer, f"e{i:04d}", arrays, LEVERS if discrete else SPACES, 10.0, "Push", tags)
    return root
