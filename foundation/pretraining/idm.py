"""Inverse dynamics model (VPT, arXiv:2206.11795, section 3): -sum over keys and axes of log p(a_t | o_1..o_T)."""

import json

import numpy as np
from tqdm import tqdm

from foundation import overlay
from foundation.losses.behaviour_cloning import inverse_dynamics_nll, weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema
from pipelines.scoring import Truth, label_report
from pipelines.windows import Labels, label_run

FILMED = 350  # frames of held-out video in the film: 20 seconds


class InverseDynamicsTask(PretrainTask):
    """Trains an IDM on windows of recorded actions."""

    def losses(self, batch):
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
