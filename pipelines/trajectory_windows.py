"""Training data of sequence models on states: windows of episodes, drawn by weight and gathered a batch at a time.

    Trajectories --split--> (train, held out) --episode_weights--> WindowSampler --EpisodeWindows--> batches

Window i begins at step i of the flat arrays and ends after `length` steps or with its episode; what is missing is
padded on the right and masked. A batch is a pure function of (seed, step, data): nothing of a loader is ever saved.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from pipelines import schema
from pipelines.schema import DataError
from pipelines.stream import StepIndexed

KINDS = ("length", "return", "advantage", "topk")
EPSILON = 1e-6  # added to standard deviations, as the released Decision Transformers have it
BLOCK = 1024  # episodes whose deviations are in memory at once


# statistics


@dataclass(frozen=True)
class Normalizer:
    """(observation - mean) / std, one row of statistics for all data or one per value of the tag `by`."""

    mean: np.ndarray  # float32 [k s]
    std: np.ndarray  # float32 [k s]
    by: str | None = None  # name of a tag, such as task
    names: tuple = ()  # its values, one per row

    @classmethod
    def of(cls, trajectories, by=None):
        """Statistics over steps; a dimension that never varies keeps std 1, so that no later value explodes."""
        names = tuple(sorted({tag_of(tags, by) for tags in trajectories.tags})) if by else ()
        group = np.array([names.index(tag_of(tags, by)) if by else 0 for tags in trajectories.tags])
        mean, std = moments(trajectories, group, max(1, len(names)))
        std = np.where(std < EPSILON, 1.0, std + EPSILON)
        return cls(mean.astype(np.float32), std.astype(np.float32), by, names)

    def __call__(self, observation, rows=0):
        """float32 [... s]. rows: of `rows()`, one for all or an array that broadcasts to observation's leading axes."""
        return (np.asarray(observation, np.float32) - self.mean[rows]) / self.std[rows]

    def invert(self, observation, rows=0):
        return np.asarray(observation, np.float32) * self.std[rows] + self.mean[rows]

    def joined(self, other):
        """These statistics, and of `other` those of the names that are new here."""
        if self.by != other.by:
            raise DataError(f"statistics per {self.by or 'all'} and per {other.by or 'all'} do not go together")
        if self.by is None:
            return self
        new = [row for row, name in enumerate(other.names) if name not in self.names]
        mean, std = (np.concatenate([getattr(self, n), getattr(other, n)[new]]) for n in ("mean", "std"))
        return Normalizer(mean, std, self.by, (*self.names, *(other.names[row] for row in new)))

    def rows(self, tags):
        """int [n]: which statistics belong to the n episodes or environments with these tags (dicts)."""
        if self.by is None:
            return np.zeros(len(tags), np.int64)
        known = {name: row for row, name in enumerate(self.names)}
        wanted = [tag_of(one, self.by) for one in tags]
        if unknown := sorted({name for name in wanted if name not in known}):
            raise DataError(f"no statistics for {self.by} {unknown[:5]}; there are some for {list(self.names)[:60]}")
        return np.array([known[name] for name in wanted])

    def to_dict(self):
        """Plain values for the hub's statistics.json; without `by` the names of Hugging Face's exports."""
        if self.by is None:
            return {"state_mean": self.mean[0].tolist(), "state_std": self.std[0].tolist()}
        values = {"state_mean": self.mean.tolist(), "state_std": self.std.tolist()}
        return {**values, "by": self.by, "names": list(self.names)}

    @classmethod
    def from_dict(cls, values):
        """DataError unless the values, from a file, are statistics."""
        try:
            mean, std = (np.atleast_2d(np.array(values[f"state_{name}"], np.float32)) for name in ("mean", "std"))
            by, names = values.get("by"), tuple(values.get("names", ()))
            if mean.ndim != 2 or mean.shape != std.shape or len(mean) != (len(names) if by else 1):
                raise ValueError(f"mean {mean.shape}, std {std.shape}, {len(names)} names")
            if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
                raise ValueError("mean and std must be finite, std above 0")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the state statistics of the model are missing or damaged ({error}); expected state_mean and state_std"
                " of its training data in statistics.json"
            ) from error
        return cls(mean, std, by, names)


def tag_of(tags, name):
    try:
        return str(tags[name])
    except KeyError:
        raise DataError(f"an episode has no tag {name!r}, only {sorted(tags)}") from None


def returns_of(tags, statistics):
    """What a policy's statistics say about the returns of episodes with these tags: `returns_scale`, `returns`, ...

    A policy of several tasks has an entry per value of the tag `returns_by` in `tasks`.
    """
    if statistics.get("returns_by") is None:
        return statistics
    try:
        name, tasks = tag_of(tags, statistics["returns_by"]), dict(statistics["tasks"])
        found = tasks.get(name)
        if found is not None:
            return {**found, "returns_scale": float(found["returns_scale"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the model's statistics of returns per task are damaged ({error})") from error
    raise DataError(f"the model knows no returns of {name!r}; it knows those of {sorted(tasks)[:60]}")


def moments(trajectories, group, k):
    """(mean, std) float64 [k s] over the steps of each group of episodes; group: int [E]."""
    offsets, lengths, observation = trajectories.offsets, trajectories.lengths, trajectories.observation
    count = np.bincount(group, lengths, k)[:, None]
    total, square = np.zeros((2, k, observation.shape[1]))
    np.add.at(total, group, np.add.reduceat(observation, offsets[:-1], axis=0, dtype=np.float64))
    mean = total / count
    for first in range(0, len(trajectories), BLOCK):
        part = slice(first, first + BLOCK)
        start, stop = offsets[first], offsets[min(first + BLOCK, len(trajectories))]
        deviation = observation[start:stop] - np.repeat(mean[group[part]], lengths[part], axis=0)
        np.add.at(square, group[part], np.add.reduceat(deviation**2, offsets[:-1][part] - start, axis=0))
    return mean, np.sqrt(square / count)


# which episodes


def episode_weights(trajectories, kind="length", alpha=0.1, top=0.1, gamma=1.0):
    """Probability of each episode, float64 [E]; a window's start is uniform within its episode.

    length: every step alike. return, advantage: a step of episode tau has p ~ exp(w_tau / alpha), w the min-max
    normalised return, or return minus a linear regression of the return on the first state (RW and AW of Hong et al.
    2023, arXiv:2306.13085). topk: every step alike of the best share `top` of the episodes, ties at the cut included.
    """
    if kind not in KINDS:
        raise DataError(f"sampling {kind!r}: expected one of {', '.join(KINDS)}")
    if alpha <= 0 or not 0 < top <= 1:
        raise DataError(f"sampling: alpha={alpha} must be above 0 and top={top} in (0, 1]")
    lengths = trajectories.lengths.astype(np.float64)
    returns = trajectories.returns if gamma == 1 else trajectories.returns_to_go(gamma)[trajectories.offsets[:-1]]
    weights = lengths
    if kind == "topk":
        best = int(np.ceil(top * len(returns) - 1e-9))
        weights = lengths * (returns >= np.sort(returns)[-best])
    elif kind != "length":
        values = returns if kind == "return" else returns - expected_returns(trajectories, returns)
        weights = lengths * np.exp((unit_range(values) - 1) / alpha)  # the best has w = 1: no overflow
    return weights / weights.sum()


def expected_returns(trajectories, returns):
    """Least-squares prediction of the return from the first state, float64 [E]."""
    first = trajectories.observation[trajectories.offsets[:-1]].astype(np.float64)
    spread = first.std(0)
    moving = first[:, spread > EPSILON]
    inputs = np.column_stack([(moving - moving.mean(0)) / spread[spread > EPSILON], np.ones(len(first))])
    solution, _, rank, _ = np.linalg.lstsq(inputs, returns, rcond=None)
    if rank >= len(returns) > 1:
        raise DataError(
            f"sampling=advantage: {len(returns)} episodes determine the {rank} coefficients of the regression on the"
            " first state exactly, so no advantage is left; use more episodes or sampling=return"
        )
    return inputs @ solution


def unit_range(values):
    """Min-max normalised to [0, 1]; equal values (up to rounding) give ones."""
    spread = np.ptp(values)
    if spread <= 1e-9 * max(1.0, np.abs(values).max()):
        return np.ones(len(values))
    return (values - values.min()) / spread


def split(trajectories, share, seed=0, by=None):
    """(train, held out) Trajectories, whole episodes; by: name of a tag of whose every value `share` is held out."""
    group = np.array([tag_of(tags, by) if by else "" for tags in trajectories.tags])
    chosen, generator = np.zeros(len(trajectories), bool), np.random.default_rng(seed)
    for name in np.unique(group):
        members = generator.permutation(np.flatnonzero(group == name))
        chosen[members[: int(np.ceil(share * len(members) - 1e-9))]] = True
    if not 0 < share < 1 or chosen.all():
        raise DataError(f"a held-out share of {share} of {len(trajectories)} episodes leaves one part empty")
    return trajectories.select(~chosen), trajectories.select(chosen)


# which windows


class WindowSampler(StepIndexed):
    """Batch t = int64 [b] indices of windows, a pure function of (seed, t): an episode by weight, a start in it.

    With several ranks each takes its slice of the same global batch of batch_size * world_size windows.
    """

    def __init__(self, weights, offsets, batch_size, total_steps, seed=0, start_step=0, rank=0, world_size=1):
        """weights: probabilities of episodes [E]; offsets: of Trajectories [E+1]."""
        if len(weights) != len(offsets) - 1:
            raise DataError(f"{len(weights)} weights for {len(offsets) - 1} episodes")
        self.cumulative = np.cumsum(weights, dtype=np.float64)
        self.cumulative /= self.cumulative[-1]
        self.starts, self.lengths = np.asarray(offsets[:-1]), np.diff(offsets)
        self.batch_size, self.total_steps, self.seed, self.start_step = batch_size, total_steps, seed, start_step
        self.rank, self.world_size = rank, world_size

    def batch(self, step):
        places = np.random.default_rng((self.seed, step)).random((2, self.world_size * self.batch_size))
        episode, within = places[:, self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        episode = np.searchsorted(self.cumulative, episode, side="right")  # one without weight is never found
        return self.starts[episode] + (within * self.lengths[episode]).astype(np.int64)


class EpisodeWindows(Dataset):
    """Window i: up to `length` steps from step i of the flat arrays. `windows.__getitems__(indices)` is a batch.

    Batch, tensors, zero where padded: OBSERVATION, NEXT_OBSERVATION float32 [b t s], normalised (at the end of an
    episode, final_observation); ACTION [b t a] or [b t]; REWARD, SCALED_REWARD = REWARD / scale [b t]; CONDITION
    float32 [b t c]; TIMESTEP int64 [b t] since the episode's start, not clipped; TERMINATED, MASK bool [b t]; WEIGHT
    float32 [b t] = MASK.

    condition: "return" = return-to-go / scale; "delayed" = the same if all reward came at the end, that is the whole
    return / scale (REWARD stays as recorded); "none" = 0, imitation without a command; an array [N c]; or a callable:
    int64 [b t] steps -> [b t c].
    Use with `DataLoader(windows, batch_sampler=WindowSampler(...), collate_fn=as_is)`.
    """

    def __init__(self, trajectories, length, normalizer=None, condition="return", scale=1.0, gamma=1.0, following=True):
        """normalizer: None = raw states. scale: a number, or one per episode. following: give NEXT_OBSERVATION."""
        if length is None:
            raise DataError("data.length is not set; method=dpt learns from episodes with data=contexts")
        if length < 1 or not np.all(scale):
            raise DataError(f"windows: length={length} must be at least 1 and the return scale {scale} not 0")
        self.data, self.length, self.normalizer, self.following = trajectories, length, normalizer, following
        self.statistics = None if normalizer is None else normalizer.rows(trajectories.tags)  # row of each episode
        self.scale = np.broadcast_to(np.float32(scale), len(trajectories))
        self.condition = self._condition(condition, gamma)

    def _condition(self, condition, gamma):
        """Array [N c], or callable."""
        n = len(self.data.reward)
        if callable(condition):
            return condition
        if isinstance(condition, str):
            if condition not in ("return", "delayed", "none"):
                raise DataError(f"condition={condition!r}: expected return, delayed, none, an array or a callable")
            if condition == "none":
                return np.zeros((n, 1), np.float32)
            delayed = condition == "delayed"
            to_go = np.repeat(self.data.returns, self.data.lengths) if delayed else self.data.returns_to_go(gamma)
            return (to_go / np.repeat(self.scale, self.data.lengths)).astype(np.float32)[:, None]
        if np.ndim(condition) != 2 or len(condition) != n:
            raise DataError(f"condition: expected an array [{n} c], one row per step, got {np.shape(condition)}")
        return np.asarray(condition, np.float32)

    def __len__(self):
        """As many windows as steps."""
        return len(self.data.reward)

    def cover(self):
        """int64 [m]: windows that hold every step exactly once, for a loss over all of the data."""
        starts = [np.arange(a, b, self.length) for a, b in zip(self.data.offsets, self.data.offsets[1:], strict=False)]
        return np.concatenate(starts)

    def __getitem__(self, index):
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices):
        data, starts = self.data, np.asarray(indices, np.int64)
        episode = np.searchsorted(data.offsets, starts, side="right") - 1  # b
        end = data.offsets[episode + 1, None]  # b 1
        rows = starts[:, None] + np.arange(self.length)  # b t
        mask = rows < end
        rows = np.minimum(rows, end - 1)
        sample = {
            schema.OBSERVATION: self._states(data.observation.take(rows, 0), episode),
            schema.ACTION: data.action.take(rows, 0), schema.REWARD: data.reward.take(rows),
            schema.SCALED_REWARD: data.reward.take(rows) / self.scale[episode, None],
            schema.CONDITION: self._conditions(rows), schema.TERMINATED: data.terminated.take(rows),
            schema.TIMESTEP: rows - data.offsets[episode, None],
        }  # fmt: skip
        if self.following or data.next_observation is not None:
            sample[schema.NEXT_OBSERVATION] = self._states(data.following(rows), episode)
        if not mask.all():
            for value in sample.values():
                value[~mask] = 0
        sample |= {schema.MASK: mask, schema.WEIGHT: mask.astype(np.float32)}
        return {name: torch.from_numpy(value) for name, value in sample.items()}

    def _states(self, observation, episode):
        """Normalised [b t s]."""
        if self.normalizer is None:
            return observation
        return self.normalizer(observation, self.statistics[episode][:, None])

    def _conditions(self, rows):
        if not callable(self.condition):
            return self.condition.take(rows, 0)
        return np.array(self.condition(rows), np.float32)  # a copy: padding is written into it


def as_is(batch):
    """collate_fn of a DataLoader over EpisodeWindows, whose samples come as batches."""
    return batch
