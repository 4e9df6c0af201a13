"""Decision-Pretrained Transformer (Lee et al. 2023, arXiv:2306.14892): imitate the optimal action, given a context.

    min  - sum_j log pi(a* | query, first j transitions)         (their section 3.1)

over tasks, contexts and queries. Its minimiser is the posterior over the optimal action, so that sampling from it is
posterior sampling. The release leaves j = 0 out of the loss although it acts with it; here that is an option.
"""

import torch

from foundation.losses.behaviour_cloning import weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema
from pipelines.schema import DataError


class DecisionPretraining(PretrainTask):
    """Trains a models.in_context.InContext. empty_context: whether the answer to no transition at all is trained.

    loss, of actions that are numbers: nll = -log-probability of a Gaussian with a learned deviation | mse = mean
    squared error over action dimensions, whose minimiser is the posterior's mean; discrete actions always take nll.
    """

    def __init__(self, net, optimizer, empty_context=True, loss="nll"):
        super().__init__(net, optimizer)
        if loss not in ("mse", "nll"):
            raise DataError(f"method.loss={loss!r}: expected mse or nll")
        self.empty_context, self.loss = empty_context, loss if net.n_actions is None else "nll"
        if net.log_std is not None:
            net.log_std.requires_grad_(self.loss == "nll")

    def losses(self, batch):
        if schema.TARGET not in batch:
            raise DataError("method=dpt learns from contexts: use data=contexts, or a world such as data=bandit")
        distribution, _ = self.net(batch)
        target, weight = batch[schema.TARGET], self.weights(batch)
        nll = -distribution.log_prob(target)  # b p
        metrics = {"nll": weighted_mean(nll, weight)}
        if self.net.n_actions is None:
            metrics["mse"] = weighted_mean(((distribution.mean - target) ** 2).mean(-1), weight)
        else:
            metrics["accuracy"] = weighted_mean((distribution.mode() == target).float(), weight)
        if schema.FLOOR in batch:  # the exact posterior on the same tasks
            metrics["floor"] = weighted_mean(batch[schema.FLOOR], weight)
            metrics["excess"] = weighted_mean(nll - batch[schema.FLOOR], weight)
        return metrics[self.loss], metrics

    def weights(self, batch):
        """Of every answer in the loss, float32 [b p]."""
        target = batch[schema.TARGET]
        b, p = target.shape[:2]
        place = batch.get(schema.PLACE, torch.arange(p, device=target.device))  # of a trajectory: 0, 1, ...
        counted = (place >= (0 if self.empty_context else 1)).float().expand(b, p)
        return counted * batch[schema.WEIGHT] if schema.WEIGHT in batch else counted
