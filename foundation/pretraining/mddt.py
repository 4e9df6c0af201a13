"""The multi-domain decision transformer of L2M (arXiv:2306.14884, section 3.1): one policy for many tasks, in bins.

Each action dimension is a token; what is predicted is the next one of its step, by cross-entropy. Here bins are decoded
at their centres, no token stands for a dimension that the robot does not have, and every task keeps its own statistics.
"""

import torch

from foundation.losses.behaviour_cloning import weighted_mean
from foundation.pretraining.task import PretrainTask
from models.bins import from_bins, to_bins
from pipelines import schema
from pipelines.schema import DataError


class MultiDomainTask(PretrainTask):
    """Imitates the binned actions of windows. only: names (or their beginnings) of what learns, [] = all of the net."""

    def __init__(self, net, optimizer, only=()):
        super().__init__(net, optimizer)
        if net.layout != "tokenised":
            raise DataError(f"method.net.layout={net.layout}: cross-entropy over bins needs layout=tokenised")
        learnable = [name for name, p in net.named_parameters() if p.requires_grad]
        kept = [name for name in learnable if not only or name.startswith(tuple(only))]
        if not kept:
            raise DataError(f"method.only={list(only)} matches no parameter; there are {learnable[:40]}")
        for name in set(learnable) - set(kept):
            net.get_parameter(name).requires_grad_(False)

    def losses(self, batch):
        distribution, _ = self.net(self.window(batch))
        return self.imitation(distribution, batch)

    def imitation(self, distribution, batch):
        """Cross-entropy over the real steps and their action dimensions, metrics."""
        action, weight = to_bins(batch[schema.ACTION], self.net.n_actions), batch[schema.WEIGHT]
        nll = weighted_mean(-distribution.log_prob(action).mean(-1), weight)  # every dimension counts alike
        said = distribution.mode()
        metrics = {
            "nll": nll,
            "accuracy": weighted_mean((said == action).float().mean(-1), weight),
            "error": weighted_mean(self.distance(said, batch[schema.ACTION]), weight),
        }
        return nll, metrics

    def window(self, batch):
        """The batch as the network takes it: actions in bins [b t a], rewards in the unit of the condition [b t 1]."""
        if batch[schema.ACTION].ndim != 3:
            raise DataError("method=mddt puts actions in [-1, 1] into bins; these data have discrete ones: method=dt")
        bins = to_bins(batch[schema.ACTION], self.net.n_actions)
        return {**batch, schema.ACTION: bins, schema.REWARD: batch[schema.SCALED_REWARD][..., None]}

    @torch.no_grad()
    def distance(self, bins, action):
        """Mean absolute error of decoded bins, [b t]."""
        return (from_bins(bins, self.net.n_actions) - action).abs().mean(-1)
