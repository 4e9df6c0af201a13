"""What offline-to-online fine-tuning trains on: windows of given and of played episodes, in an exact proportion.

offline updates (given episodes only) -> warm-up (the policy plays, nothing learns) -> rounds: play, then
`updates_per_frame` updates per step played
"""

from collections import deque

import numpy as np
import torch
from torch.utils.data import IterableDataset

from foundation.finetuning.episodes import stack_episodes
from foundation.rollout import Episode
from pipelines.schema import FINAL_OBSERVATION, REWARD, TIMESTEP, DataError
from pipelines.trajectories import OPTIONAL, STEPWISE
from pipelines.trajectory_windows import EpisodeWindows, WindowSampler, returns_of

UPDATE = "update"  # number of a batch since the start of the run
SOURCE = "source"  # int64 [b] 0 = given, 1 = played


class Replay:
    """Whole episodes, oldest first; the oldest leave when there are more than `capacity` steps."""

    def __init__(self, spaces, fps, capacity):
        self.spaces, self.fps, self.capacity = spaces, fps, capacity
        self.arrays, self.tags, self.steps = deque(), deque(), 0

    def add(self, arrays, tags):
        self.arrays.extend(arrays)
        self.tags.extend(tags)
        self.steps += sum(len(one[REWARD]) for one in arrays)
        while self.steps > self.capacity and len(self.arrays) > 1:
            self.steps -= len(self.arrays.popleft()[REWARD])
            self.tags.popleft()

    def trajectories(self):
        return stack_episodes(self.arrays, self.tags, self.spaces, self.fps)

    def state_dict(self):
        """Flat tensors."""
        if not self.arrays:
            return {}
        data = self.trajectories()
        arrays = {**data.stepwise, **{name: getattr(data, name) for name in (FINAL_OBSERVATION, "offsets")}}
        return {"tags": list(self.tags), **{name: torch.from_numpy(value) for name, value in arrays.items()}}

    def load_state_dict(self, state):
        """Comes twice: from our callback, and from Lightning, which keeps the state of its loaders."""
        self.arrays.clear()
        self.tags.clear()
        self.steps = 0
        if not state:
            return
        flat = {name: value.numpy() for name, value in state.items() if name != "tags"}
        stepwise = [name for name in (*STEPWISE, *OPTIONAL) if name in flat]
        spans = zip(flat["offsets"], flat["offsets"][1:], strict=False)
        arrays = [
            {**{name: flat[name][a:b] for name in stepwise}, FINAL_OBSERVATION: flat[FINAL_OBSERVATION][e]}
            for e, (a, b) in enumerate(spans)
        ]
        self.add(arrays, state["tags"])


class Source:
    """Windows of some episodes; batch number t is a function of (seed, t, episodes)."""

    def __init__(self, trajectories, options, statistics, batch_size, seed, weights=None):
        """weights: probabilities of episodes [E], None = every step alike. options: of EpisodeWindows.

        statistics: of the policy; they say what its returns are divided by.
        """
        weights = trajectories.lengths / trajectories.lengths.sum() if weights is None else weights
        scale = [returns_of(tags, statistics).get("returns_scale", 1.0) for tags in trajectories.tags]
        self.windows = EpisodeWindows(trajectories, scale=scale, **options)
        self.sampler = WindowSampler(weights, trajectories.offsets, batch_size, 0, seed)

    def batch(self, t, n):
        """The first `n` windows of batch t."""
        return self.windows.__getitems__(self.sampler.batch(t)[:n])


class OfflineToOnline(IterableDataset):
    """Batches of windows. It has a length, so that the trainer does not fetch ahead of the weights.

    agent: has `policy` and `rollout_metrics`. collector: plays a round (`play`) with the weights of the moment.
    offline: (Trajectories, weights) or None. frames: environment steps to play, of which the first `warmup` bring no
    updates. offline_share: of every batch once there are episodes of our own; exact over any number of batches.
    report_every: updates in a row of metrics.csv before the first round.
    """

    def __init__(self, agent, collector, offline, options, statistics, spaces, fps, seed, frames, batch_size,
                 offline_updates=0, warmup=0, updates_per_frame=0.25, offline_share=0.5, capacity=100_000,
                 report_every=500, max_timestep=None):  # fmt: skip
        super().__init__()
        if offline is None and (offline_updates or offline_share):
            raise DataError(
                "data.train is not set, and algo.stream asks for windows of it; give trajectory shards, or set"
                " algo.stream.offline_updates=0 algo.stream.offline_share=0"
            )
        if not 0 <= offline_share <= 1 or (frames and not 0 <= warmup < frames):
            raise DataError(f"offline_share={offline_share}: expected 0..1; warmup={warmup}: less than frames={frames}")
        self.agent, self.collector, self.seed = agent, collector, seed
        self.common = {"options": options, "statistics": statistics, "batch_size": batch_size}  # of all sources
        self.batch_size, self.offline_updates, self.warmup = batch_size, offline_updates, warmup
        self.updates_per_frame, self.share, self.report_every = updates_per_frame, offline_share, report_every
        self.max_timestep = max_timestep
        self.online_updates = int(updates_per_frame * (frames - warmup)) if frames else 0
        self.replay = Replay(spaces, fps, capacity)
        self.offline = None if offline is None else Source(offline[0], seed=2 * seed, weights=offline[1], **self.common)
        self.online = None
        self.update = self.frames = self.round = 0
        self.per_iteration = self.left = 0  # updates of the round, and those of it still to come
        self.episodes = []  # of the latest round

    def __len__(self):
        return self.offline_updates + self.online_updates

    def __iter__(self):
        while self.update < len(self):
            if not self.left:
                self._next_round()
            self.left -= 1
            self.update += 1
            yield self.batch(self.update - 1)

    def _next_round(self):
        self.episodes, self.agent.rollout_metrics = [], {}
        if self.update < self.offline_updates:
            due = min(self.report_every, self.offline_updates - self.update)
        else:
            due = 0
            while due < 1:
                self._play()
                earned = int(self.updates_per_frame * (self.frames - self.warmup))
                due = min(earned, self.online_updates) + self.offline_updates - self.update
            self._renew()
        self.per_iteration = self.left = due

    def _play(self):
        played = self.collector.play(self.round)
        self.replay.add(played.arrays, played.tags)
        self.frames += sum(episode.frames for episode in played.episodes)
        self.episodes += played.episodes
        self.agent.rollout_metrics = {"target": played.target, "replay_steps": self.replay.steps}
        self.round += 1

    def _renew(self):
        """Windows of all episodes that were played, their returns-to-go what really came."""
        self.online = Source(self.replay.trajectories(), seed=2 * self.seed + 1, **self.common)

    def batch(self, t):
        """Batch of update t: windows [b t ...], SOURCE [b], UPDATE."""
        n = self.batch_size if t < self.offline_updates else self.given(t)
        parts = []
        if n:
            parts.append(self.offline.batch(t, n))
        if n < self.batch_size:
            parts.append(self.online.batch(t, self.batch_size - n))
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if self.max_timestep:
            batch[TIMESTEP].clamp_(max=self.max_timestep - 1)
        source = torch.arange(self.batch_size) >= n
        return {**batch, SOURCE: source.long(), UPDATE: t}

    def given(self, t):
        """How many windows of online update t are offline ones: floor((i + 1) b share) - floor(i b share)."""
        i, per = t - self.offline_updates, self.batch_size * self.share
        return int(np.floor((i + 1) * per + 1e-9) - np.floor(i * per + 1e-9))

    def state_dict(self):
        """Where the stream stands: between two updates it is all there is."""
        return {
            "update": self.update, "frames": self.frames, "round": self.round, "left": self.left,
            "per_iteration": self.per_iteration, "metrics": dict(self.agent.rollout_metrics),
            "episodes": [(e.seed, e.returns, e.frames, e.success) for e in self.episodes],
            "replay": self.replay.state_dict(), "targets": self.collector.targets.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state):
        for name in ("update", "frames", "round", "left", "per_iteration"):
            setattr(self, name, state[name])
        self.agent.rollout_metrics = state["metrics"]
        self.episodes = [Episode(*values) for values in state["episodes"]]
        self.replay.load_state_dict(state["replay"])
        self.collector.targets.load_state_dict(state["targets"])
        if self.replay.steps:
            self._renew()
