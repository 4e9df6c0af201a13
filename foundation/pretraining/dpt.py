"""Decision-Pretrained Transformer (Lee et al. 2023, arXiv:2306.14892): imitate the optimal action, given a context.

    min  - sum_j log pi(a* | query, first j transitions)         (their section 3.1)

over tasks, contexts and queries. Its minimiser is the posterior over the optimal action, so that sampling from it is
posterior sampling. The release leaves j = 0 out of the loss although it acts with it; here that is an option.
"""

from foundation.pretraining.task import PretrainTask
from pipelines import schema


class DecisionPretraining(PretrainTask):
    """Trains a models.in_context.InContext. empty_context: whether the answer to no transition at all is trained."""

    def __init__(self, net, optimizer, empty_context=True):
        super().__init__(net, optimizer)
        self.empty_context = empty_context

    def losses(self, batch):
        distribution, _ = self.net(batch)
        counted = batch[schema.PLACE] >= (0 if self.empty_context else 1)
        nll = -distribution.log_prob(batch[schema.TARGET])  # b p
        metrics = {}
        if self.net.n_actions is not None:
            metrics["accuracy"] = (distribution.mode() == batch[schema.TARGET])[:, counted].float().mean()
        if schema.FLOOR in batch:  # the exact posterior on the same tasks
            metrics["floor"] = batch[schema.FLOOR][:, counted].mean()
            metrics["excess"] = (nll - batch[schema.FLOOR])[:, counted].mean()
        return nll[:, counted].mean(), metrics
