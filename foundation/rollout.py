"""Acting: several environments stepped together, a policy that carries its memory through them, and the on-policy
stream that `Trainer.fit` trains on.

An episode ends in two frames: the one whose action ended it, and its *final observation*, kept as a frame of its own
with `mask` False (its action is ignored, the environment resets instead). So the value of a cut episode's end comes
out of the ordinary forward pass, and memory sees exactly what it would see when acting.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch.utils._pytree import tree_map
from torch.utils.data import IterableDataset

from models.heads import Joint
from pipelines.schema import (
    ACTION,
    FIRST,
    MASK,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    TERMINATED,
    TRUNCATED,
    DataError,
)

FEATURES = "features"  # [b t d] what `policy.encode` made of the frames, in their place in a window
BASE_FRAMES, BASE_REWARD = "base_frames", "base_reward"  # entries of `info` where an action is several frames, or where
# its reward is another than the task's: episodes count and sum these
SEEDS = 1 << 30  # training episodes use seeds below, evaluation episodes seeds from here on


def training_seed(seed, slot, episode):
    """Seed of a training episode: a function of (run seed, slot, episode number) only, in [0, SEEDS)."""
    return int(np.random.SeedSequence([seed, slot, episode]).generate_state(1)[0]) % SEEDS


def evaluation_seed(seed, episode, tasks=1):
    """Seed of an evaluation episode, in [SEEDS, 2 SEEDS): never one of training; modulo `tasks` it is the episode."""
    found = SEEDS + int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) % (SEEDS - tasks + 1)
    return found + (episode - found) % tasks


@dataclass
class Episode:
    """A finished episode. `success` is None where the task does not define it."""

    seed: int
    returns: float
    frames: int
    success: bool | None


class Slot:
    """One environment and where it stands; `seed` and `actions` suffice to bring another one to the same place."""

    def __init__(self, index, environment, seed_of):
        self.index, self.environment, self.seed_of = index, environment, seed_of
        self.episode = -1
        self.done = True  # the next step resets
        self.reward = 0.0  # of the latest action

    def step(self, action):
        """-> (observation, reward, first, terminated, truncated, Episode or None); resets after an end."""
        if self.done:
            return self.reset(), 0.0, True, False, False, None
        observation, reward, terminated, truncated, info = self.environment.step(action)
        self.actions.append(action)
        self.reward, self.following = float(reward), info.get(NEXT_OBSERVATION)
        self.returns += float(info.get(BASE_REWARD, reward))
        self.frames += info.get(BASE_FRAMES, 1)
        self.done = bool(terminated or truncated)
        finished = None
        if self.done:
            success = info.get("episode", {}).get("success")
            finished = Episode(self.seed, self.returns, self.frames, None if success is None else bool(success))
        return observation, self.reward, False, bool(terminated), bool(truncated), finished

    def reset(self):
        self.episode += 1
        self.seed, self.actions, self.returns, self.done = self.seed_of(self.index, self.episode), [], 0.0, False
        self.reward, self.frames, self.following = 0.0, 0, None
        observation, _ = self.environment.reset(seed=self.seed)
        return observation

    def state_dict(self):
        actions = [tree_map(torch.as_tensor, action) for action in self.actions]
        return {"episode": self.episode, "actions": actions, "done": self.done}

    def load_state_dict(self, state):
        """Replays the running episode: its seed and actions decide where it stands. Returns the observation there."""
        self.episode = state["episode"] - 1
        observation = self.reset()
        for action in state["actions"]:
            observation, *_ = self.step(tree_map(lambda x: x.numpy(), action))
        if self.done != state["done"]:
            raise DataError(
                f"replaying {len(state['actions'])} actions of episode {self.episode} ended elsewhere than before:"
                " the environment is not deterministic given its seed, so this run cannot be resumed exactly"
            )
        return observation


@dataclass
class Frame:
    """What the environments show before the next action, one row per environment."""

    observation: np.ndarray  # uint8 [b h w c], or float32 [b s]
    first: np.ndarray  # bool [b]
    mask: np.ndarray  # bool [b] False = a final observation, its action will be ignored
    reward: np.ndarray  # float32 [b] of the action that led here; 0 where first
    following: np.ndarray | None = None  # float32 [b s] what that action led to, of environments that say so

    def keep(self, rows):
        return Frame(*(None if value is None else value[rows] for value in vars(self).values()))


@dataclass
class Outcome:
    """What the last action brought, one row per environment; zero where the environment reset instead."""

    reward: np.ndarray  # float32 [b]
    terminated: np.ndarray  # bool [b]
    truncated: np.ndarray  # bool [b]
    episodes: list  # Episodes that ended just now


class Environments:
    """Environments stepped together, by threads: an engine that runs outside Python's lock runs in parallel.

    `seed_of(slot, episode)` gives every episode its seed.
    """

    def __init__(self, environments, seed_of, threads=None):
        self.slots = [Slot(i, environment, seed_of) for i, environment in enumerate(environments)]
        threads = len(self.slots) if threads is None else threads
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __len__(self):
        return len(self.slots)

    def map(self, function, *columns):
        return list((self.pool.map if self.pool else map)(function, *columns))

    def reset(self):
        """Starts an episode in every environment -> Frame."""
        observation = np.stack(self.map(Slot.reset, self.slots))
        return Frame(observation, np.ones(len(self), bool), np.ones(len(self), bool), np.zeros(len(self), np.float32))

    def step(self, actions, slots=None):
        """actions: one per environment (or per given slot) -> (Outcome, Frame)."""
        results = self.map(Slot.step, self.slots if slots is None else slots, actions)
        observation, reward, first, terminated, truncated, finished = zip(*results, strict=True)
        done = np.logical_or(terminated, truncated)
        outcome = Outcome(
            np.array(reward, np.float32), np.array(terminated), np.array(truncated), [e for e in finished if e]
        )
        led = following(self.slots if slots is None else slots, observation)
        return outcome, Frame(np.stack(observation), np.array(first), ~done, outcome.reward, led)

    def state_dict(self):
        return {"slots": [slot.state_dict() for slot in self.slots]}

    def load_state_dict(self, state):
        """-> Frame at which the environments stood."""
        observation = np.stack(self.map(Slot.load_state_dict, self.slots, state["slots"]))
        first = np.array([not slot.actions for slot in self.slots])
        reward = np.array([slot.reward for slot in self.slots], np.float32)
        mask = np.array([not slot.done for slot in self.slots])
        return Frame(observation, first, mask, reward, following(self.slots, observation))

    def close(self):
        """Ends the threads; the environments belong to whoever made them."""
        if self.pool:
            self.pool.shutdown()


def following(slots, observation):
    """What the latest actions led to, float32 [b s], where that is not all in the b observations; else None."""
    if all(slot.following is None for slot in slots):
        return None
    led = zip(slots, observation, strict=True)
    return np.stack([shown if slot.following is None else slot.following for slot, shown in led])


def to_environment(codec, joint):
    """Joint classes int64 [b 2] -> list of b actions {"keys": uint8 [k], "mouse": float32 [2] degrees}."""
    keys, bins = codec.from_joint(np.asarray(joint))
    mouse = codec.from_bins(bins)
    return [{"keys": k, "mouse": m} for k, m in zip(keys, mouse, strict=True)]


def on_cpu(joint):
    """A Joint whose samples are drawn from a CPU generator, so that a seed means the same on every device."""
    tensors = (joint.buttons_log_probs.cpu(), joint.camera_log_probs.cpu(), joint.camera_on.cpu())
    return Joint(*tensors, joint.camera_null)


def take(data, rows):
    """Rows of a nested batch of tensors whose first axis is b."""
    return tree_map(lambda x: None if x is None else x[rows], data)


class Rollout:
    """Steps a policy in environments, chunk after chunk, through episode boundaries.

    `features`: keep the outputs of the policy's encoder instead of frames, for a policy whose encoder does not train.
    """

    def __init__(self, environments, codec, seed, features=False):
        self.environments, self.codec, self.features = environments, codec, features
        self.generator = torch.Generator().manual_seed(seed)
        self.frame = self.state = None

    @torch.no_grad()
    def collect(self, policy, length, device="cpu"):
        """-> (chunk, episodes). The chunk holds [b t ...] tensors, the policy's `state` before it, and `last`, the
        observation after it. `log_prob` is that of the policy as it acted, one frame at a time."""
        if self.frame is None:
            self.frame = self.environments.reset()
            self.state = policy.initial_state(len(self.environments), device)
        start, rows, episodes = self.state, [], []
        for _ in range(length):
            row, finished = self._advance(policy, device)
            rows.append(row)
            episodes += finished
        chunk = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}  # b t ...
        chunk["last"] = self._look(policy, device)
        return {**tree_map(lambda x: x.to(device), chunk), "state": start}, episodes

    def _look(self, policy, device):
        """The window of one frame [b 1 ...] that the policy sees now."""
        observation = torch.from_numpy(self.frame.observation)[:, None].to(device)
        seen = {FEATURES: policy.encode(observation)} if self.features else {OBSERVATION: observation}
        return {**seen, FIRST: torch.from_numpy(self.frame.first)[:, None].to(device)}

    def _advance(self, policy, device):
        frame, window = self.frame, self._look(policy, device)
        joint, self.state = policy(window, self.state)
        joint = on_cpu(joint)
        action = rearrange(joint.sample(self.generator), "b 1 two -> b two")
        outcome, self.frame = self.environments.step(to_environment(self.codec, action))
        row = {
            **{name: value[:, 0] for name, value in window.items()},
            MASK: torch.from_numpy(frame.mask),
            ACTION: action,
            "log_prob": joint.log_prob(action[:, None])[:, 0],
            REWARD: torch.from_numpy(outcome.reward),
            TERMINATED: torch.from_numpy(outcome.terminated),
            TRUNCATED: torch.from_numpy(outcome.truncated),
        }
        return row, outcome.episodes

    def state_dict(self):
        return {
            "environments": self.environments.state_dict(),
            "generator": self.generator.get_state(),
            "state": self.state,
        }

    def load_state_dict(self, state):
        self.frame = self.environments.load_state_dict(state["environments"])
        self.generator.set_state(state["generator"])
        self.state = state["state"]


class Passes(IterableDataset):
    """`iterations` times `_collect`, which leaves `epochs` passes over `minibatches` parts in `left`; `batch` each.

    It has a length, so that the trainer does not fetch ahead: experience is made when its first minibatch is asked for,
    with the weights of that moment.
    """

    def __init__(self, iterations, epochs, minibatches, seed):
        super().__init__()
        self.iterations, self.epochs, self.minibatches = iterations, epochs, minibatches
        self.generator = torch.Generator().manual_seed(seed)
        self.iteration = self.frames = 0
        self.episodes, self.left = [], []  # of the latest iteration: what ended, and what is still to come

    @property
    def per_iteration(self):
        return self.epochs * self.minibatches

    def __len__(self):
        return self.iterations * self.per_iteration

    def __iter__(self):
        while self.left or self.iteration < self.iterations:
            if not self.left:
                self._collect()
            yield self.batch(self.left.pop(0))


class OnPolicy(Passes):
    """Minibatches of fresh experience: rollout, then `epochs` passes over it in `minibatches` groups of environments.

    `agent.policy` acts, `agent.annotate(chunk, groups)` adds what it trains on, both in the context
    `agent.precision()`.
    """

    def __init__(self, agent, rollout, iterations, chunk, epochs, minibatches, seed):
        super().__init__(iterations, epochs, minibatches, seed)
        b = len(rollout.environments)
        if b % minibatches:
            raise DataError(f"{b} environments do not divide into {minibatches} minibatches; change one of the two")
        self.agent, self.rollout, self.chunk = agent, rollout, chunk
        self.data = None  # the rollout at hand

    def batch(self, rows):
        return {**take(self.data, rows), "iteration": self.iteration - 1}

    def _collect(self):
        first = self._groups()
        with self.agent.precision():  # rounded as in training
            chunk, self.episodes = self.rollout.collect(self.agent.policy, self.chunk, self.agent.device)
            self.data = self.agent.annotate(chunk, first)
        self.frames += int(chunk[MASK].sum())
        self.iteration += 1
        self.left = [*first, *(rows for _ in range(self.epochs - 1) for rows in self._groups())]

    def _groups(self):
        order = torch.randperm(len(self.rollout.environments), generator=self.generator)
        return order.chunk(self.minibatches)

    def state_dict(self):
        """Where the stream stands: between two minibatches it is all there is."""
        return {
            "rollout": self.rollout.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "frames": self.frames,
            "episodes": [(e.seed, e.returns, e.frames, e.success) for e in self.episodes],
            "left": list(self.left),
            "data": self.data if self.left else None,
        }

    def load_state_dict(self, state):
        self.rollout.load_state_dict(state["rollout"])
        self.generator.set_state(state["generator"])
        self.iteration, self.frames = state["iteration"], state["frames"]
        self.episodes = [Episode(*values) for values in state["episodes"]]
        self.left, self.data = list(state["left"]), state["data"]
