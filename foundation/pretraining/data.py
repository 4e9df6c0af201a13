"""Shards -> batches for the pretraining methods, as one LightningDataModule."""

from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from foundation.training import derive
from pipelines import schema
from pipelines.actions import ActionCodec, spec_from
from pipelines.features import FeatureStore
from pipelines.filter import Kept
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.stream import FrameStore, LaneSampler, StepSampler, WindowDataset, each_track, handle_nulls, load_tracks
from pipelines.transforms import ClipAugment

SOURCES_SHOWN = 8
FEATURES = {  # what batches hold instead of frames: arguments of FeatureStore
    "frames": None,
    "stem": {"method": "stem", "ahead": 1},
    "cached": {"method": "encode", "ahead": 0},
}


class ShardData(L.LightningDataModule):
    """Windows of trajectory shards in an order that depends on (seed, step) alone.

    train, validation: folders of shards, here or at an fsspec address; keep: list of clip keys by `pipelines.filter`;
    labels: label shards joined to `train` by key; on_damage: "stop", or "set_aside" = leave out damaged shards;
    carry: lanes whose windows continue (for policies with memory) instead of shuffled windows;
    features: "frames", or what is computed of them once, in `setup`, with the trainer's network: "cached" = outputs of
    the frozen encoder, "stem" = what the network computes without parameters.
    """

    def __init__(self, train, keep, validation, labels, length, stride, carry, nulls, targets, augment, features,
                 batch_size, workers, cache_gb, hours, on_damage, steps, seed):  # fmt: skip
        super().__init__()
        if features not in FEATURES:
            raise DataError(f"data.features={features!r}: expected one of {list(FEATURES)}")
        self.features, self.cache_gb = FEATURES[features], cache_gb
        self.batch_size, self.workers, self.steps, self.seed, self.carry = batch_size, workers, steps, seed, carry
        self.on_damage, self.set_aside = on_damage, Counter()
        self.named = {"training shards": train, "labels": labels, "validation shards": validation}
        self.shards = self._open(train, "data.train", keep)
        self.labels = labels = self._open(labels, "data.labels") if labels else None
        self.spec, self.size, self.fps = facts(self.shards, labels)
        self.codec = ActionCodec(self.spec)
        self.window = {"codec": self.codec, "length": length, "seed": seed}
        self.window["input_key"] = schema.FEATURES if self.features else schema.OBSERVATION
        limit = None if hours is None else round(hours * 3600 * self.fps)
        self.frames, self.tracks = 0, []
        for track in each_track(self.shards, labels, limit, soft=targets != "hard"):
            self.frames += len(track)
            self.tracks.append(handle_nulls(track, self.codec, nulls))
        self.dataset = WindowDataset(
            self.tracks, self._frames(self.shards, cache_gb), stride=stride, labels=targets,
            augment=ClipAugment(**augment) if augment else None, **self.window,
        )  # fmt: skip
        self.validation = self._validation(validation, nulls) if validation else None

    def _open(self, root, what, keep=None):
        """Shards; what is damaged is counted in `set_aside`, {"data/set_aside_shards": n, ...}."""
        if not root:
            raise DataError(f"{what} is not set; give a folder of shards (python -m pipelines.ingest makes them)")
        options = {"on_damage": self.on_damage}
        shards = Kept(root, keep, **options) if keep else Shards(root, **options)
        shards.check_frames()
        self.set_aside.update({f"data/set_aside_{name}": n for name, n in shards.set_aside.items() if n})
        return shards

    def _validation(self, root, nulls):
        shards = self._open(root, "data.validation")
        spec, size, _ = facts(shards, None)
        if (spec, size) != (self.spec, self.size):
            raise DataError(
                f"data.validation has frames {size} of {spec.name}, data.train {self.size} of {self.spec.name};"
                " ingest them alike"
            )
        tracks = [handle_nulls(t, self.codec, nulls) for t in load_tracks(shards)]
        return WindowDataset(tracks, self._frames(shards, 2.0), **self.window)

    def _frames(self, shards, cache_gb):
        return FrameStore(shards, 0.0 if self.features else cache_gb)  # frames to be encoded are read once

    def setup(self, stage):
        """Encodes every frame once, on the device of the trainer, if features are kept."""
        if not self.features:
            return
        net, device = self.trainer.lightning_module.net, self.trainer.strategy.root_device
        if not hasattr(net, self.features["method"]):
            raise DataError(f"data.features: {type(net).__name__} has no `{self.features['method']}`; use frames")
        net.to(device)
        for name, dataset in (("train", self.dataset), ("validation", self.validation)):
            if dataset is not None and not isinstance(dataset.store, FeatureStore):
                spill = Path(self.trainer.default_root_dir) / f"features-{name}-{self.trainer.global_rank}.npy"
                options = self.features | {"cache_gb": self.cache_gb, "spill": spill}
                dataset.store = FeatureStore(net, dataset.tracks, dataset.frames, device=device, **options)

    def derive(self, net):
        """The network's config with what follows from frames and actions filled in."""
        return derive(net, self.size, self.codec)

    def contract(self):
        """What whoever uses the network has to know: entries of the hub folder's config.yaml."""
        return {"actions": self.spec, "size": self.size, "fps": self.fps}

    def statistics(self):
        return {}

    def words(self):
        return f"{self.spec.name} actions, frames {self.size[0]}x{self.size[1]} RGB at {self.fps:g} Hz"

    def provenance(self):
        """Where the data came from: {fact: value}."""
        metas = [entry.meta for entry in self.shards.entries]
        sources = sorted({meta["source_sha256"] for meta in metas})
        labellers = {entry.meta.get("labeller") for entry in (self.labels.entries if self.labels else ())}
        return {
            "training shards": f"{self.named['training shards']}, fingerprint {self.shards.fingerprint()}",
            "frames": self.frames,
            "hours": self.frames / self.fps / 3600,
            "source videos": len(sources),
            "sha256 of source videos": [digest[:12] for digest in sources[:SOURCES_SHOWN]]
            + (["..."] if len(sources) > SOURCES_SHOWN else []),
            "actions": "pseudo-labels" if self.labels else sorted({meta["provenance"] for meta in metas}),
            "labels": f"{self.named['labels']}, by {sorted(map(str, labellers))}" if self.labels else None,
            "validation shards": self.named["validation shards"],
        }

    def train_dataloader(self):
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        items = self.dataset.windows if self.carry else len(self.dataset)
        sampler = (LaneSampler if self.carry else StepSampler)(
            items, self.batch_size, self.steps * self.trainer.accumulate_grad_batches, self.seed, start, **ranks
        )
        return DataLoader(self.dataset, batch_sampler=sampler, num_workers=self.workers)

    def val_dataloader(self):
        if self.validation is None:
            return []
        order = [(i, 0, True) for i in spread(len(self.validation), 128)]
        return DataLoader(self.validation, batch_size=self.batch_size, sampler=order, num_workers=0)


def spread(n, at_most):
    """At most `at_most` indices, evenly spread over range(n)."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(int)).tolist()


def facts(shards, labels, option="data.labels"):
    """(action spec, (h, w), fps) of shards; DataError if they differ from sample to sample or actions are missing."""
    metas = [entry.meta for entry in shards.entries]
    if not metas:
        raise DataError(f"{shards.root} holds no samples")
    specs = [m["actions"] for m in ([e.meta for e in labels.entries] if labels else metas)]
    without = [entry.key for entry in shards.entries if not entry.meta["actions"]] if labels is None else []
    if 0 < len(without) < len(metas):
        raise DataError(
            f"{shards.root}: {len(without)} of {len(metas)} clips have no actions, e.g. {without[0]}; ingest the videos"
            " that have a log into a folder of their own"
        )
    if not specs or specs[0] is None:
        raise DataError(
            f"{shards.root} holds video without actions; label it first: python -m pipelines.label clips={shards.root}"
            f" idm=<model> out=<labels>, then pass {option}=<labels>"
        )
    distinct = {(m["height"], m["width"], m["fps"]) for m in metas}
    if len(distinct) != 1 or any(s != specs[0] for s in specs):
        raise DataError(f"{shards.root} mixes sizes, rates or action specs {sorted(distinct)}; ingest them alike")
    (height, width, fps) = distinct.pop()
    return spec_from(specs[0]), (height, width), fps
