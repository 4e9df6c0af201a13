"""Trajectories of states without their actions: frames of clips, or vectors, stored once and found by row.

    clip shards ------------> Clips ---+
                                       +---> offsets of trajectories, load() -> all states [N ...]
    shards of vectors ------> Vectors -+

A trajectory of clips is what one video shows without a gap: its clips one after another, cut where one is missing and
where an episode begins. Of vectors it is an episode with its final observation. Neither needs actions.
"""

import numpy as np
from tqdm import tqdm

from pipelines import schema
from pipelines.features import allocate
from pipelines.goals import state_offsets
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.stream import FrameStore, gaps, pieces
from pipelines.trajectories import Trajectories


def open_states(root, what, on_damage="stop"):
    """(Clips or Vectors, whichever the shards in `root` hold; the Shards). what: the option that names `root`."""
    if not root:
        raise DataError(
            f"{what} is not set; give a folder of clip shards (python -m pipelines.ingest) or of vectors (python -m"
            " foundation.collect)"
        )
    shards = Shards(root, on_damage=on_damage)
    if not shards.entries:
        raise DataError(f"{root} holds no samples")
    if shards.entries[0].meta.get("spaces"):
        return Vectors(Trajectories.load(root, on_damage=on_damage)), shards
    shards.check_frames()
    return Clips.of(shards), shards


class Clips:
    """Frames of clip shards; trajectory e is rows offsets[e]:offsets[e + 1] of what `load` returns.

    runs: [(source, clip keys [n], rows of the clips int [n])]; size: (h, w).
    """

    spaces = None

    def __init__(self, shards, runs, size, fps):
        self.shards, self.runs, self.size, self.fps = shards, runs, size, fps
        self.offsets = np.cumsum([0, *(len(rows) for _, _, rows in runs)])
        self.groups = [source for source, _, _ in runs]

    @classmethod
    def of(cls, shards):
        found = {(e.meta["height"], e.meta["width"], e.meta["fps"]) for e in shards.entries}
        if len(found) > 1:
            raise DataError(f"{shards.root} mixes sizes or rates {sorted(found)}; ingest the videos alike")
        ((height, width, fps),) = found
        return cls(shards, list(runs_of(shards)), (height, width), fps)

    @property
    def kind(self):
        return f"frames {self.size[0]}x{self.size[1]} at {self.fps:g} Hz"

    def select(self, trajectories):
        return Clips(self.shards, [self.runs[i] for i in trajectories], self.size, self.fps)

    def load(self, cache_gb, spill):
        """uint8 [N h w 3], in memory or, if they exceed `cache_gb`, in the file `spill`."""
        store, filled = FrameStore(self.shards, 0.0), 0
        frames = allocate((self.offsets[-1], *self.size, 3), np.dtype(np.uint8), cache_gb, spill)
        with tqdm(total=len(frames), desc="decode", unit="frame", unit_scale=True, disable=None) as bar:
            for clip, rows in (piece for _, clips, at in self.runs for piece in pieces(clips, at)):
                frames[filled : filled + len(rows)] = store.rows(clip, rows)
                filled += len(rows)
                bar.update(len(rows))
        return frames


class Vectors:
    """States of episodes of vectors; as `Clips`."""

    size = None

    def __init__(self, episodes):
        self.episodes, self.spaces, self.fps = episodes, episodes.spaces, episodes.fps
        self.offsets = state_offsets(episodes.offsets)
        self.groups = list(range(len(episodes)))

    @property
    def kind(self):
        return f"{self.spaces.state_dim}-dimensional states at {self.fps:g} Hz"

    def select(self, trajectories):
        return Vectors(self.episodes.select(np.asarray(trajectories, int)))

    def load(self, cache_gb=None, spill=None):
        """float32 [N s], the final observation of every episode after its steps."""
        data = self.episodes
        return np.insert(data.observation, data.offsets[1:], data.final_observation, axis=0)


def runs_of(shards):
    """Yields (source, clip keys [n], rows [n]) of the trajectories in clip shards, in the order of (source, time)."""
    by_source = {}
    for entry in sorted(shards.entries, key=lambda e: (e.meta["source_sha256"], e.meta["frames"][0])):
        by_source.setdefault(entry.meta["source_sha256"], []).append(entry)
    for source, entries in by_source.items():
        lengths = [e.meta["frames"][1] - e.meta["frames"][0] for e in entries]
        clips = np.repeat(np.array([e.key for e in entries], object), lengths)
        rows = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        first = np.concatenate([shards.arrays(e.key).get(schema.FIRST, np.zeros(n, bool))
                                for e, n in zip(entries, lengths, strict=True)]).astype(bool)  # fmt: skip
        first[np.cumsum([0, *lengths[:-1]])[gaps(entries)]] = True
        cuts = np.flatnonzero(first[1:]) + 1
        yield from ((source, *run) for run in zip(np.split(clips, cuts), np.split(rows, cuts), strict=True))


def divided(states, share, seed):
    """(training states, held-out ones): whole videos or episodes, about `share` of them, at least one."""
    groups = sorted(set(states.groups))
    if not 0 < share < 1 or len(groups) < 2:
        raise DataError(f"data.validation={share}: expected a share in (0, 1) of at least two videos or episodes, or a"
                        " folder of shards")  # fmt: skip
    count = min(len(groups) - 1, max(1, round(share * len(groups))))
    drawn = np.random.default_rng((seed, 2)).permutation(len(groups))[:count]
    held = {groups[i] for i in drawn}
    parts = [[i for i, group in enumerate(states.groups) if (group in held) == kept] for kept in (False, True)]
    return tuple(states.select(part) for part in parts)


def every(offsets, skip):
    """Trajectories of every `skip`-th state: (rows of the states int [M], offsets [E'+1], how many are set aside).

    One of n states becomes up to `skip` of them, which start at its first `skip` states, so that one step later always
    means `skip` states later. Set aside is what has no two states that far apart.
    """
    if skip < 1:
        raise DataError(f"data.frame_skip={skip}: expected at least 1")
    spans = [(a, b) for a, b in zip(offsets, offsets[1:], strict=False) if b - a > skip]
    parts = [np.arange(start, b, skip) for a, b in spans for start in range(a, min(a + skip, b - skip))]
    if not parts:
        raise DataError(
            f"none of the {len(offsets) - 1} trajectories has more than {skip} states, as a step of"
            f" data.frame_skip={skip} needs; lower it, or cut longer clips"
        )
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)]), len(offsets) - 1 - len(spans)
