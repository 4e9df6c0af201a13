"""Inverse dynamics model (VPT, arXiv:2206.11795, section 3): -sum over keys and axes of log p(a_t | o_1..o_T)."""

import numpy as np
from tqdm import tqdm

from foundation.losses.behaviour_cloning import inverse_dynamics_nll, weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema
from pipelines.scoring import Truth, label_report
from pipelines.windows import Labels, label_run


class InverseDynamicsTask(PretrainTask):
    """Trains an IDM on windows of recorded actions."""

    def losses(self, batch):
        mask = batch[schema.MASK]
        distribution = self.net(batch[schema.OBSERVATION], mask)
        keys, bins = batch[schema.KEYS], batch[schema.BINS]
        weight = batch[schema.WEIGHT] * mask
        loss = inverse_dynamics_nll(distribution, keys, bins, weight)
        predicted_keys, predicted_bins = distribution.mode()
        metrics = {
            "keys_exact": weighted_mean((predicted_keys == keys).all(-1).float(), weight),
            "bins_exact": weighted_mean((predicted_bins == bins).all(-1).float(), weight),
        }
        return loss, metrics

    def report(self, dataset):
        """Labels the held-out tracks of a WindowDataset as `pipelines.label` would -> LabelReport."""
        parts = []
        for track in tqdm(dataset.tracks, desc="labelling held-out video", unit="video", disable=None):
            parts.append(label_run(self.net.eval(), dataset.store.get(track.clip, track.row)))
        labels = Labels(*(np.concatenate(part) for part in zip(*(vars(p).values() for p in parts), strict=True)))
        return label_report(
            truth(dataset.tracks), labels.key_probabilities, labels.camera_probabilities, dataset.codec.spec
        )


def truth(tracks):
    """Recorded actions of tracks, one segment per track."""
    effective = [t.effective for t in tracks]
    return Truth(
        keys=np.concatenate([t.keys for t in tracks]),
        mouse=np.concatenate([t.mouse for t in tracks]),
        segment=np.repeat(np.arange(len(tracks)), [len(t) for t in tracks]),
        effective=None if any(e is None for e in effective) else np.concatenate(effective),
    )
