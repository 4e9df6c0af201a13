"""A labeller: an inverse-dynamics model from a hub folder, what it fits, and how it labels one shard of clips.

Consecutive clips of one video inside a shard are one run of frames, so windows cross the borders of clips. Video is not
copied: a label sample has the key of its clip, arrays (see `pipelines.schema`) and metadata with provenance `pseudo`.
"""

import hashlib
import json
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from pipelines import checkpoint, schema
from pipelines.actions import ActionCodec, spec_from
from pipelines.schema import DataError, SampleMeta
from pipelines.storage import ShardError
from pipelines.video import open_clip
from pipelines.windows import PRECISIONS, label_run, prepare

log = logging.getLogger(__name__)
PROCEDURE = 1  # raise it when equal models and settings would give other labels
CONTRACT = ("window", "reach", "encode", "decode")
RATE_RATIO = (0.5, 2.0)  # predicted positives over prevalence outside of this are worth a warning
FPS_TOLERANCE = 0.02  # relative


class ClipError(DataError):
    """One clip cannot be read; the others can."""

    def __init__(self, key, reason):
        super().__init__(f"clip {key}: {reason}")
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Settings:
    """What, besides the model, decides the labels."""

    precision: str = "fp32"  # fp32 | bf16
    average: bool = False  # mean over overlapping windows instead of the centre crop
    mouse: str = "argmax"  # degrees stored as `mouse`: argmax = centre of the best bin | expected = mean

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise DataError(f"precision={self.precision!r}: expected one of {list(PRECISIONS)}")
        if self.mouse not in ("argmax", "expected"):
            raise DataError(f"mouse={self.mouse!r}: expected argmax or expected")


class Labeller:
    """Loads a model (hub folder, run directory or name on the hub) and labels shards with it."""

    def __init__(self, where, settings, device="auto", frames_per_call=256):
        self.bundle = checkpoint.load(where)
        self._check_contract(where)
        self.settings, self.frames_per_call = settings, int(frames_per_call)
        self.codec = ActionCodec(self.bundle.spec)
        self.device = checkpoint.device(device)
        self.net = prepare(self.bundle.net, self.device)

    def _check_contract(self, where):
        missing = [name for name in CONTRACT if not hasattr(self.bundle.net, name)]
        missing += [name for name in ("spec", "size", "fps") if getattr(self.bundle, name) is None]
        if missing:
            raise DataError(
                f"{where} is no labeller: its {type(self.bundle.net).__name__} lacks {missing};"
                " give a model trained with `python -m foundation.pretrain method=idm`"
            )

    def facts(self):
        """What the labels depend on, readable; its hash is the fingerprint of the labels."""
        return {
            "model": self.bundle.sha256, "spec": self.bundle.spec.fingerprint(), "procedure": PROCEDURE,
            **vars(self.settings),
        }  # fmt: skip

    def fingerprint(self):
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()

    def check_fits(self, shards):
        """DataError unless every clip has the model's frame size, rate and, where it has actions, its action spec."""
        bundle, seen = self.bundle, set()
        height, width = bundle.size
        for entry in shards.entries:
            meta = entry.meta
            kind = (meta["height"], meta["width"], meta["fps"], json.dumps(meta.get("actions"), sort_keys=True))
            if kind in seen:
                continue
            seen.add(kind)
            if kind[:2] != bundle.size:
                raise DataError(
                    f"clip {entry.key} is {kind[0]} high and {kind[1]} wide, the labeller takes {height}x{width};"
                    f" ingest the video again with size=[{height},{width}]"
                )
            if abs(meta["fps"] - bundle.fps) > FPS_TOLERANCE * bundle.fps:
                raise DataError(
                    f"clip {entry.key} has {meta['fps']:g} frames/s, the labeller was trained at {bundle.fps:g};"
                    f" ingest the video again with fps={bundle.fps:g}"
                )
            if meta.get("actions") and spec_from(meta["actions"]) != bundle.spec:
                raise DataError(
                    f"clip {entry.key} was recorded with {describe(spec_from(meta['actions']))}, the labeller was"
                    f" trained on {describe(bundle.spec)}; use a labeller trained on the action spec of the clips"
                )

    def gate(self, allow_unlabelled_keys=False):
        """DataError if the model was measured never to emit a key that people press: no policy could learn it."""
        report = self.bundle.statistics.get("label_report")
        if not report:
            log.warning("the labeller carries no held-out label report: nobody knows how good its labels are")
            return
        table = report.get("effective_keys") or report.get("keys") or {}
        if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
            raise DataError("the labeller's label report is damaged; score it again with `python -m pipelines.score`")
        supported = {key: row for key, row in table.items() if row.get("support", 1)}
        silent = [key for key, row in supported.items() if row.get("recall") == 0]
        if silent and not allow_unlabelled_keys:
            raise DataError(
                f"this labeller never emitted {silent} on held-out video although people pressed them: a policy trained"
                " on its labels cannot learn them. Train it on more labelled video, or pass allow_unlabelled_keys=true"
            )
        for key, row in supported.items():
            ratio = row.get("positive_rate_ratio")
            if isinstance(ratio, int | float) and not RATE_RATIO[0] <= ratio <= RATE_RATIO[1]:
                log.warning("the labeller emits %r %.2f times as often as people press it", key, ratio)

    def label_shard(self, shards, entries, progress=None):
        """Yields (key, members) for the clips of one shard, and ClipError objects for those that cannot be read."""
        for run in runs(entries):
            yield from self._label_run(shards, run, progress)

    def _label_run(self, shards, run, progress):
        frames = RunFrames(shards, run, self.bundle.size, keep=self.frames_per_call + 2 * self.net.window)
        try:
            labels = label_run(self.net, frames, self.settings.precision, self.settings.average,
                               self.frames_per_call, progress)  # fmt: skip
        except ClipError as error:  # the rest of the video is two shorter runs
            yield error
            bad = [entry.key for entry in run].index(error.key)
            for part in (run[:bad], run[bad + 1 :]):
                if part:
                    yield from self._label_run(shards, part, progress)
            return
        for entry, start, stop in zip(run, frames.edges[:-1], frames.edges[1:], strict=True):
            yield entry.key, self._members(entry, labels, slice(start, stop))

    def _members(self, entry, labels, part):
        keys, camera = labels.key_probabilities[part], labels.camera_probabilities[part]
        if keys.shape[1:] != (self.codec.n_keys,) or camera.shape[1:] != (2, self.codec.n_bins):
            raise DataError(
                f"the model gives {keys.shape[1]} keys and {camera.shape[-1]} mouse bins, its action spec"
                f" has {self.codec.n_keys} and {self.codec.n_bins}; the hub folder is inconsistent, save it again"
            )
        if not (np.isfinite(keys).all() and np.isfinite(camera).all()):
            raise DataError(f"the labels of clip {entry.key} hold NaN or infinity; try precision=fp32, or train again")
        meta = replace(
            SampleMeta.from_dict(entry.meta),
            provenance=schema.PSEUDO,
            actions=self.bundle.spec.to_dict(),
            labeller=self.bundle.sha256,
        )
        arrays = {
            schema.KEYS: (keys > 0.5).astype(np.uint8),
            schema.MOUSE: self._degrees(camera),
            schema.KEY_PROBABILITIES: keys.astype(np.float16),
            schema.CAMERA_PROBABILITIES: camera.astype(np.float16),
            schema.COVERAGE: labels.coverage[part],
        }
        return {schema.ARRAYS: arrays, schema.META: meta.to_dict()}

    def _degrees(self, camera):
        """float [t 2 bins] -> float32 [t 2]"""
        if self.settings.mouse == "argmax":
            return self.codec.from_bins(camera.argmax(-1))
        return (camera @ self.codec.from_bins(np.arange(self.codec.n_bins))).astype(np.float32)


def describe(spec):
    size = f"{len(spec.keys)} keys, {spec.camera_bins} mouse bins up to {spec.camera_max:g} degrees"
    return f"the action spec {spec.name!r} ({size})"


def runs(entries):
    """Groups clips into runs: consecutive frame ranges of one source, in order."""
    ordered = sorted(entries, key=lambda e: (e.meta["source_sha256"], e.meta["source"], e.meta["frames"][0]))
    groups = []
    for entry in ordered:
        last = groups[-1][-1] if groups else None
        follows = last is not None and (
            (last.meta["source_sha256"], last.meta["source"], last.meta["frames"][1])
            == (entry.meta["source_sha256"], entry.meta["source"], entry.meta["frames"][0])
        )
        groups[-1].append(entry) if follows else groups.append([entry])
    return groups


class RunFrames:
    """The frames of consecutive clips as one sliceable uint8 [n h w c]; decodes clip by clip.

    The last clips decoded, `keep` frames or one clip, stay in memory: neighbouring slices overlap.
    """

    def __init__(self, shards, run, size, keep):
        self.shards, self.run, self.size, self.keep = shards, run, size, keep
        lengths = [e.meta["frames"][1] - e.meta["frames"][0] for e in run]
        self.edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        self.decoded = OrderedDict()

    def __len__(self):
        return self.edges[-1]

    def __getitem__(self, part):
        pieces = []
        for i, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            if low < part.stop and part.start < high:
                pieces.append(self._clip(i)[max(0, part.start - low) : part.stop - low])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _clip(self, i):
        if i not in self.decoded:
            while sum(map(len, self.decoded.values())) > self.keep:
                self.decoded.popitem(last=False)
            self.decoded[i] = self._decode(self.run[i], self.edges[i + 1] - self.edges[i])
        self.decoded.move_to_end(i)
        return self.decoded[i]

    def _decode(self, entry, length):
        try:
            with open_clip(self.shards.read(entry.key, schema.VIDEO), entry.meta) as reader:
                return reader.frames(np.arange(length))
        except ShardError:  # not the clip's fault: if the shard is repaired, the clip is labelled after all
            raise
        except DataError as error:
            raise ClipError(entry.key, str(error)) from error
