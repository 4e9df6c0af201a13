"""Inverse dynamics model (VPT, arXiv:2206.11795, section 3): -sum over keys and axes of log p(a_t | o_1..o_T)."""

import json

import numpy as np
import torch
from tqdm import tqdm

from foundation import overlay
from foundation.losses.behaviour_cloning import inverse_dynamics_nll, weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema
from pipelines.schema import DataError
from pipelines.scoring import Truth, label_report
from pipelines.windows import Labels, label_run

FILMED = 350  # frames of held-out video in the film: 20 seconds


class InverseDynamicsTask(PretrainTask):
    """Trains an IDM on windows of recorded actions.

    mirror: {key: key} exchanged when left and right are, e.g. {left: right}; every other window is then shown mirrored,
    with the mouse turning the other way. None = no mirroring.
    """

    def __init__(self, net, optimizer, mirror=None):
        super().__init__(net, optimizer)
        self.mirror = mirror

    def losses(self, batch):
        if self.training and self.mirror is not None:
            data = self.trainer.datamodule
            flip = torch.rand(len(batch[schema.KEYS])) < 0.5
            images = exchange(data.spec.keys, self.mirror)
            batch = mirrored(batch, flip, images, data.codec.n_bins, getattr(self.net, "mirror_stem", None))
        mask = batch[schema.MASK]
        distribution = self.net(batch.get(schema.OBSERVATION), mask, **self.kept(batch))
        keys, bins = batch[schema.KEYS], batch[schema.BINS]
        weight = batch[schema.WEIGHT] * mask
        loss = inverse_dynamics_nll(distribution, keys, bins, weight)
        predicted_keys, predicted_bins = distribution.mode()
        metrics = {
            "keys_exact": weighted_mean((predicted_keys == keys).all(-1).float(), weight),
            "bins_exact": weighted_mean((predicted_bins == bins).all(-1).float(), weight),
        }
        return loss, metrics

    @staticmethod
    def kept(batch):
        """The network's `stem` where the data hold it instead of frames."""
        return {"stem": batch[schema.FEATURES]} if schema.FEATURES in batch else {}

    def report(self, dataset, folder, fps):
        """Labels the held-out tracks of a WindowDataset as `pipelines.label` would; says how well, and shows some.

        Leaves `label_report.json` and `heldout.mp4` (predicted and true actions drawn on the frames) in `folder`;
        returns (flat scores, statistics for the hub folder).
        """
        parts = []
        for track in tqdm(dataset.tracks, desc="labelling held-out video", unit="video", disable=None):
            parts.append(label_run(self.net.eval(), dataset.frames.get(track.clip, track.row)))
        labels = Labels(*(np.concatenate(part) for part in zip(*(vars(p).values() for p in parts), strict=True)))
        recorded, codec = truth(dataset.tracks), dataset.codec
        report = label_report(recorded, labels.key_probabilities, labels.camera_probabilities, codec.spec)
        (folder / "label_report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
        first = dataset.tracks[0].select(slice(0, FILMED))
        frames = dataset.frames.get(first.clip, first.row)
        overlay.write_video(folder / "heldout.mp4", film(frames, first, parts[0], codec), fps)
        return report.scores, {"label_report": report.to_dict()}


def mirrored(batch, flip, images, n_bins, mirror_stem):
    """The batch with left and right exchanged in the windows where flip [b] is set.

    images int [k]: place of each key's mirror image; mirror_stem: what mirroring does to the stem of frames.
    """
    keys, bins = batch[schema.KEYS].clone(), batch[schema.BINS].clone()
    keys[flip] = keys[flip][..., images]
    bins[flip, :, 1] = n_bins - 1 - bins[flip, :, 1]  # yaw; the bins are symmetric
    batch = batch | {schema.KEYS: keys, schema.BINS: bins}
    for name, mirror in ((schema.OBSERVATION, lambda frames: frames.flip(-2)), (schema.FEATURES, mirror_stem)):
        if name in batch:
            batch[name] = batch[name].clone()
            batch[name][flip] = mirror(batch[name][flip])
    return batch


def exchange(keys, pairs):
    """Place of each key's mirror image, int [k]: `pairs` {left: right} exchanged, the others where they are."""
    unknown = sorted({*pairs, *pairs.values()} - {*keys})
    if unknown:
        raise DataError(f"method.mirror names {unknown}; the keys are {list(keys)}. null = no mirroring")
    image = dict(pairs) | {b: a for a, b in pairs.items()}
    return [keys.index(image.get(key, key)) for key in keys]


def film(frames, track, labels, codec):
    """Frames [t h w c] with the labeller's and the recorded actions drawn on them."""
    mouse = labels.camera_probabilities @ codec.from_bins(np.arange(codec.n_bins))  # n 2 degrees
    for i, frame in enumerate(frames):
        predicted = {"keys": labels.key_probabilities[i], "mouse": mouse[i]}
        recorded = {"keys": track.keys[i], "mouse": track.mouse[i]}
        yield overlay.draw(frame, predicted, recorded, codec.spec, scale=4, caption=f"frame {i}")


def truth(tracks):
    """Recorded actions of tracks, one segment per track."""
    effective = [t.effective for t in tracks]
    return Truth(
        keys=np.concatenate([t.keys for t in tracks]),
        mouse=np.concatenate([t.mouse for t in tracks]),
        segment=np.repeat(np.arange(len(tracks)), [len(t) for t in tracks]),
        effective=None if any(e is None for e in effective) else np.concatenate(effective),
    )
