"""Training data: windows of frames with their actions, read map-style, in an order that depends on (seed, step) alone.

    shards (+ label shards) --load_tracks--> tracks --WindowDataset--> samples --StepSampler | LaneSampler--> batches

A *track* is the timeline of one source video with the actions of every frame. A batch is a pure function of
(seed, step, data), so no loader state is saved: after a stop the sampler starts at the restored step.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pipelines import schema
from pipelines.schema import DataError
from pipelines.video import open_clip


@dataclass(frozen=True)
class Track:
    """One source video on its timeline of n frames; frame i is row `row[i]` of clip `clip[i]`."""

    source: str
    clip: np.ndarray  # [n] clip keys; objects, as a key takes more bytes than the rest of its frame
    row: np.ndarray  # int32 [n]
    keys: np.ndarray  # uint8 [n k]
    mouse: np.ndarray  # float32 [n 2] degrees
    first: np.ndarray  # bool [n] starts of episodes, where known
    loss: np.ndarray  # bool [n] False = no loss on this frame
    key_probabilities: np.ndarray | None = None  # float32 [n k] of the labeller
    camera_probabilities: np.ndarray | None = None  # float32 [n 2 bins]
    effective: np.ndarray | None = None  # bool [n k+2] for scoring, never an input

    def __len__(self):
        return len(self.row)

    def select(self, index):
        """The track with only the frames in `index` (bool or int [m])."""
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)


def load_tracks(shards, labels=None, limit_frames=None, soft=True):
    """Tracks of trajectory shards, or of clip shards with the label shards made from them.

    shards, labels: `pipelines.shards.Shards`. limit_frames keeps whole clips, in order, up to that many frames.
    soft=False leaves out the labeller's probabilities, which take most of the memory of labelled tracks.
    Raises DataError when clips have no actions and no labels were given.
    """
    return list(each_track(shards, labels, limit_frames, soft))


def each_track(shards, labels=None, limit_frames=None, soft=True):
    """Yields what `load_tracks` returns, one video after another."""
    labelled = {entry.key for entry in labels.entries} if labels else None
    by_source = OrderedDict()
    total, unlabelled = 0, 0
    for entry in sorted(shards.entries, key=lambda e: (e.meta["source_sha256"], e.meta["frames"][0])):
        if labelled is not None and entry.key not in labelled:
            unlabelled += 1
            continue
        if limit_frames is not None and total >= limit_frames:
            break
        by_source.setdefault(entry.meta["source_sha256"], []).append(entry)
        total += entry.meta["frames"][1] - entry.meta["frames"][0]
    if labels and not by_source:
        raise DataError(f"none of the {unlabelled} clips has a label in the label shards; were they made from others?")
    for source, entries in by_source.items():
        yield _track(source, shards, entries, labels, soft)


def _track(source, shards, entries, labels, soft):
    parts = []
    for entry in entries:
        arrays = (labels or shards).arrays(entry.key)
        if schema.KEYS not in arrays:
            raise DataError(
                f"clip {entry.key} of {entry.meta['source']!r} has no actions; label it first:"
                " python -m pipelines.label clips=<shards> idm=<model>, then pass data.labels=<label shards>"
            )
        parts.append((entry.key, arrays))
    length = [len(a[schema.KEYS]) for _, a in parts]

    def joined(name, default=None):
        if any(name not in a for _, a in parts):
            return default
        return np.concatenate([a[name] for _, a in parts])

    first = joined(schema.FIRST, np.zeros(sum(length), bool)).astype(bool)
    first[np.cumsum([0, *length[:-1]])[gaps(entries)]] = True  # a clip left out, by a filter say: memory starts anew
    n = sum(length)
    names = (schema.KEY_PROBABILITIES, schema.CAMERA_PROBABILITIES) if soft else ()
    probabilities = {name: p.astype(np.float32) for name in names if (p := joined(name)) is not None}
    return Track(
        source=source,
        clip=np.repeat(np.array([key for key, _ in parts], object), length),
        row=np.concatenate([np.arange(m, dtype=np.int32) for m in length]),
        keys=joined(schema.KEYS),
        mouse=joined(schema.MOUSE),
        first=first,
        loss=joined(schema.COVERAGE, np.ones(n, bool)).astype(bool),
        key_probabilities=probabilities.get(schema.KEY_PROBABILITIES),
        camera_probabilities=probabilities.get(schema.CAMERA_PROBABILITIES),
        effective=joined(schema.EFFECTIVE),
    )


def gaps(entries):
    """bool [clips]: the clip does not start where the one before it in the list stopped."""
    spans = [entry.meta["frames"] for entry in entries]
    return np.array([i > 0 and spans[i][0] != spans[i - 1][1] for i in range(len(spans))])


def handle_nulls(track, codec, nulls):
    """What to do with frames in which nothing is pressed or moved (35 % of human play; VPT drops them).

    "drop" removes the frame, so that memory never sees it; "mask" keeps it without loss; "keep" changes nothing.
    """
    if nulls not in ("drop", "mask", "keep"):
        raise DataError(f"nulls={nulls!r}: expected drop, mask or keep")
    if nulls == "keep" or not len(track):
        return track
    null = codec.is_null(track.keys, codec.to_bins(track.mouse))
    if nulls == "mask":
        return replace(track, loss=track.loss & ~null)
    episode = np.cumsum(track.first)  # an episode whose first frame is dropped still begins somewhere
    kept = track.select(~null)
    episode = episode[~null]
    starts = np.diff(episode, prepend=episode[:1]) > 0
    return replace(kept, first=kept.first | starts)


class FrameStore:
    """Decoded frames of clips, kept in memory up to `cache_gb`; past that, only the asked rows are decoded."""

    def __init__(self, shards, cache_gb=8.0):
        self.shards = shards
        self.budget = int(cache_gb * 2**30)
        self.cache = {}

    def rows(self, clip, rows):
        """uint8 [m h w c]: the frames `rows` of clip key `clip`."""
        if clip in self.cache:
            return self.cache[clip][rows]
        entry = self.shards.entry(clip)
        n = entry.meta["frames"][1] - entry.meta["frames"][0]
        size = n * entry.meta["height"] * entry.meta["width"] * 3
        reader = open_clip(self.shards.read(clip, schema.VIDEO), entry.meta)
        if size > self.budget:
            return reader.frames(rows)
        self.budget -= size
        self.cache[clip] = reader.frames(np.arange(n))
        return self.cache[clip][rows]

    def get(self, clips, rows):
        """Frames of a window that may span clips: keys [t], int [t] -> uint8 [t h w c]."""
        return np.concatenate([self.rows(clip, part) for clip, part in pieces(clips, rows)])


def pieces(clips, rows):
    """Splits a timeline, keys [t] and int [t], where the clip changes -> (clip key, rows) in order."""
    edges = np.flatnonzero(clips[1:] != clips[:-1]) + 1
    parts = zip(np.split(clips, edges), np.split(rows, edges), strict=True)
    return [(str(c[0]), r) for c, r in parts if len(c)]


class WindowDataset(Dataset):
    """Windows of `length` frames every `stride`, the last of a track padded and masked.

    Item (i, step, reset) -> dict of tensors, see `pipelines.schema`; `reset` marks the window's first frame as the
    start of an episode (its memory is not the predecessor's). `labels`: "hard" classes, "soft" distributions of the
    labeller, or "confidence" = hard classes weighted by their probability. `augment(frames, generator)` is drawn once
    per window, keyed by (seed, window, step). `input_key`: what `store` holds, frames or features; `frames` always is
    the store of frames.
    """

    def __init__(self, tracks, store, codec, length, stride=None, labels="hard", augment=None, seed=0,
                 input_key=schema.OBSERVATION):  # fmt: skip
        if labels not in ("hard", "soft", "confidence"):
            raise DataError(f"data.targets={labels!r}: expected hard, soft or confidence")
        if labels != "hard" and any(t.key_probabilities is None for t in tracks):
            raise DataError(f"data.targets={labels} needs pseudo-labels with probabilities; recorded actions are hard")
        if augment is not None and input_key != schema.OBSERVATION:
            raise DataError(
                "data.augment changes frames, but data.features keeps what was computed of them before; set"
                " data.augment=null or data.features=frames"
            )
        self.tracks, self.store, self.codec, self.input_key = tracks, store, codec, input_key
        self.frames = store
        self.length, self.labels, self.augment, self.seed = length, labels, augment, seed
        stride = stride or length
        self.windows = [
            (i, s) for i, track in enumerate(tracks) for s in range(0, max(1, len(track) - length + stride), stride)
            if s < len(track)
        ]  # fmt: skip
        if not self.windows:
            raise DataError("no frames to train on: the shards are empty, or every frame was dropped as null")

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, item):
        index, step, reset = item
        track_index, start = self.windows[index]
        track = self.tracks[track_index]
        span = np.arange(start, min(start + self.length, len(track)))
        window = track.select(span)
        inputs = self.store.get(window.clip, window.row)
        if self.augment is not None:
            inputs = self.augment(inputs, np.random.default_rng((self.seed, index, step)))
        sample = self._actions(window)
        sample[self.input_key] = inputs
        sample[schema.FIRST] = window.first.copy()
        sample[schema.MASK] = np.ones(len(span), bool)
        sample[schema.FIRST][0] |= reset
        return {name: torch.from_numpy(pad(np.ascontiguousarray(v), self.length)) for name, v in sample.items()}

    def _actions(self, window):
        bins = self.codec.to_bins(window.mouse)
        joint = self.codec.to_joint(window.keys, bins)
        weight = window.loss.astype(np.float32)
        sample = {schema.KEYS: window.keys.astype(np.int64), schema.BINS: bins, schema.ACTION: joint}
        if self.labels == "soft":
            targets = self.codec.joint_targets(window.key_probabilities, window.camera_probabilities)
            sample[schema.BUTTONS_TARGET], sample[schema.CAMERA_TARGET] = targets
        if self.labels == "confidence":
            weight = weight * confidence(window, bins)
        sample[schema.WEIGHT] = weight
        return sample


def confidence(window, bins):
    """Labeller's probability of the joint label, as the geometric mean over its parts: float32 [t] in (0, 1]."""
    held = window.keys.astype(bool)
    keys = np.where(held, window.key_probabilities, 1 - window.key_probabilities)
    camera = np.take_along_axis(window.camera_probabilities, bins[..., None], -1)[..., 0]
    parts = np.concatenate([keys, camera], -1).clip(1e-6, 1)
    return np.exp(np.log(parts).mean(-1)).astype(np.float32)


def pad(array, length):
    """Zeros appended along the first axis up to `length`."""
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


class StepIndexed(Sampler):
    """Batches `batch(step)` from `start_step` to `total_steps`; `len` is the total, as Lightning counts from 0."""

    def __len__(self):
        return self.total_steps

    def __iter__(self):
        for step in range(self.start_step, self.total_steps):
            yield self.batch(step)


class StepSampler(StepIndexed):
    """Batch t of a run is the same whenever and wherever it is asked for: shuffled epochs as a function of the step.

    Yields lists of (index, step, reset) for `WindowDataset`. With several ranks each takes its slice of the same
    global batch.
    """

    def __init__(self, n_items, batch_size, total_steps, seed=0, start_step=0, rank=0, world_size=1):
        if n_items < 1:
            raise DataError("no windows to sample from")
        self.n_items, self.batch_size, self.total_steps = n_items, batch_size, total_steps
        self.seed, self.start_step, self.rank, self.world_size = seed, start_step, rank, world_size
        self._epoch, self._order = None, None

    def batch(self, step):
        """Items of this rank at `step`. Consecutive global batches walk through consecutive permutations."""
        position = (step * self.world_size + self.rank) * self.batch_size
        return [(self.item(position + i), step, True) for i in range(self.batch_size)]

    def item(self, position):
        epoch, place = divmod(position, self.n_items)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.n_items)
        return int(self._order[place])


class LaneSampler(StepIndexed):
    """Batches whose rows continue: row b at step t+1 is the window after row b's window at step t (carried memory).

    Every epoch the tracks are shuffled, laid end to end and cut into `batch_size` lanes of equal length; a row is
    marked `reset` where its window does not continue the one before.
    """

    def __init__(self, windows, batch_size, total_steps, seed=0, start_step=0, rank=0, world_size=1):
        self.windows, self.batch_size, self.total_steps = windows, batch_size, total_steps
        self.seed, self.start_step, self.rank, self.world_size = seed, start_step, rank, world_size
        self.lanes = batch_size * world_size
        self.by_track = {}
        for index, (track, _) in enumerate(windows):
            self.by_track.setdefault(track, []).append(index)
        self.steps_per_epoch = -(-len(windows) // self.lanes)
        self._epoch, self._order = None, None

    def batch(self, step):
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        rows = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [self._item(row, place, step) for row in rows]

    def _item(self, row, place, step):
        position = row * self.steps_per_epoch + place
        index = self._order[position % len(self._order)]
        previous = self._order[(position - 1) % len(self._order)]
        continues = place > 0 and index == previous + 1 and self.windows[index][0] == self.windows[previous][0]
        return index, step, not continues

    def _epoch_order(self, epoch):
        tracks = np.random.default_rng((self.seed, epoch)).permutation(sorted(self.by_track))
        return [index for track in tracks for index in self.by_track[int(track)]]
