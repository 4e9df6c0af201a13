"""Inverse dynamics model (VPT, arXiv:2206.11795, section 3): -sum over keys and axes of log p(a_t | o_1..o_T)."""

from foundation.losses.behaviour_cloning import inverse_dynamics_nll, weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema


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
