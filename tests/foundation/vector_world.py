"""A tiny world of vectors: pushing right pays. Episodes of mixed quality, and the environment they come from."""

import gymnasium
import numpy as np

from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode

LENGTH = 8
SPACES = Spaces(3, 2, low=(-2.0, -1.0), high=(2.0, 1.0))
LEVERS = Spaces(3, 1, n_actions=3)


class Push(gymnasium.Env):
    """State: (side, position, elapsed). Reward of a step: its first action, in units of [-1, 1], times the side."""

    spaces, fps = SPACES, 10.0
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-2, -1]), np.float32([2, 1]))

    def __init__(self, length=LENGTH, seed=None):
        self.length = length

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
        info = {"episode": {"success": bool(push * self.side > 0)}} if done else {}
        return self.state(), push * self.side, False, done, info


def write_pushes(root, episodes=60, seed=0, discrete=False, skills=(-1, 1)):
    """Trajectory shards in which each episode has a skill within `skills`; its pushes scatter around it."""
    generator, world = np.random.default_rng(seed), Push()
    with ShardWriter(root, "episodes", samples_per_shard=25) as writer:
        for i in range(episodes):
            skill = generator.uniform(*skills)
            states, actions, rewards = [world.reset(seed=1000 * seed + i)[0]], [], []
            while len(rewards) < LENGTH:
                push = np.clip(skill * world.side + 0.1 * generator.normal(), -1, 1)
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
            tags = {"task": "push" if i % 2 else "shove", "behaviour": "mixed"}
            write_episode(writer, f"e{i:04d}", arrays, LEVERS if discrete else SPACES, 10.0, "Push", tags)
    return root
