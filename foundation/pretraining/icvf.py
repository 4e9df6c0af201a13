"""Intention-conditioned value functions (ICVF, arXiv:2304.04782): a representation from states without actions.

    A = r_z + gamma m_z min_k Vt_k(s', z, z) - mean_k Vt_k(s, z, z)         does this step help someone bound for z?
    L = sum_k mean |tau - 1(A < 0)| (r + gamma m Vt_k(s', s+, z) - V_k(s, s+, z))^2

Vt follows V by an exponential moving average of the parameters from before each step, as released.
"""

import torch
from scipy.stats import spearmanr

from foundation.losses.intent_value import REDUCTIONS, intent_advantage, intent_value_loss
from foundation.losses.masked import masked_mean
from foundation.pretraining.task import PretrainTask
from foundation.target_networks import follow, slow
from pipelines import schema
from pipelines.schema import DataError

MEASURED = 1024  # pairs of held-out states


class IntentValueTask(PretrainTask):
    """gamma, expectile: of the equations; tau: of the moving average; advantage: "min" or "mean" over the members, of
    the value of s'; no_intent: the ablation of the paper, in which every intent is the state of ones and A = 0.
    """

    def __init__(self, net, optimizer, gamma, expectile, tau, advantage="min", no_intent=False):
        super().__init__(net, optimizer)
        if not (0 <= gamma < 1 and 0 < expectile < 1 and 0 < tau <= 1) or advantage not in REDUCTIONS:
            raise DataError(
                f"method: gamma={gamma}, expectile={expectile}, tau={tau}, advantage={advantage!r}: expected [0, 1),"
                f" (0, 1), (0, 1], one of {sorted(REDUCTIONS)}"
            )
        self.gamma, self.expectile, self.tau = gamma, expectile, tau
        self.advantage, self.no_intent = advantage, no_intent
        self.target = slow(net)

    def losses(self, batch):
        s, after, goal, z = (batch[name] for name in
                             (schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL, schema.INTENT))  # fmt: skip
        z = torch.ones_like(z) if self.no_intent else z
        value_t = self.net.values([s], [goal, z])[:, 0, 0]  # k b
        with torch.no_grad():
            target = self.target.values([s, after], [goal, z])  # k 2 2 b: of s and s', under s+ and z
        arrived = batch[schema.INTENT_REACHED]
        advantage = intent_advantage(target[:, 0, 1], target[:, 1, 1], arrived, self.gamma, self.advantage)
        advantage = torch.zeros_like(advantage) if self.no_intent else advantage
        reached = batch[schema.REACHED]
        loss = intent_value_loss(value_t, target[:, 1, 0], reached, advantage, self.gamma, self.expectile)
        metrics = {
            "value": value_t.mean(), "value_reached": masked_mean(value_t, reached.expand_as(value_t)),
            "advantage": advantage.mean(), "helpful": (advantage >= 0).float().mean(),
        }  # fmt: skip
        return loss, {name: value.detach() for name, value in metrics.items()}

    def on_before_optimizer_step(self, optimizer):
        """The target's step: the network still has the parameters that the loss was computed with."""
        follow(self.target, self.net, self.tau)

    def report(self, dataset, folder, fps):
        """How well, within held-out trajectories, values put states in the order of their distance to a later one."""
        states, later, steps = dataset.ordered(MEASURED)
        found = towards(self.net.eval(), states, later).mean(0)
        return {"validation/order": float(spearmanr(-found, steps).statistic)}, {}


@torch.no_grad()
def towards(net, states, goals, at_once=256):
    """V(s, g, g) [k b]: how far s is from g for someone on the way there."""
    pairs = zip(states.split(at_once), goals.split(at_once), strict=True)
    return torch.cat([net.values([s], [g])[:, 0, 0] for s, g in pairs], 1)
