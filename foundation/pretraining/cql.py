"""Conservative Q-learning on frames (CQL, arXiv:2006.04779), calibrated (Cal-QL, arXiv:2303.05479), from an encoder of
video: stages 2 and 3 of V-PTR (arXiv:2309.13041), with keys in place of a robot's continuous actions.

    Q     sum_k mean (Q_k(s, a) - (r + gamma m max_a' min_k Qt_k(s', a')))^2
          + alpha sum_k mean( log sum_a exp max(Q_k(s, a), R) - Q_k(s, a_data) )
    pi    the actor of SAC with discrete actions, of a fixed temperature: towards softmax(min_k Q_k / temperature)

With actions that can be counted nothing is sampled: the maximum over next actions is one over all (V-PTR: over 4), as
is the sum in the penalty. CQL on Atari acts by the Q's themselves; the actor, with an encoder of its own, is V-PTR's.
"""

import torch

from foundation.losses.cql import chosen, cql_penalty, soft_policy_loss
from foundation.losses.td import td_loss, td_target
from foundation.pretraining.encoders import EncoderRate, check_encoder, start_from
from foundation.pretraining.task import PretrainTask
from foundation.target_networks import Followed, follow, slow
from pipelines import schema
from pipelines.schema import DataError


class CqlTask(EncoderRate, Followed, PretrainTask):
    """Trains a models.visual_actor_critic.VisualActorCritic, or another net with `all_q` and `act`.

    encoder: run or hub folder of method=icvf whose image encoder actor and critics begin with; None: random weights.
    train_encoder: whether it goes on learning; encoder_lr: its rate, None = the optimizer's.
    floor: no Q is pushed below the Monte-Carlo return R.
    """

    @classmethod
    def configured(cls, net, method, init):
        return check_encoder(net, method["encoder"], init)

    def __init__(self, net, optimizer, gamma, alpha, floor, temperature, tau, encoder=None,
                 train_encoder=True, encoder_lr=None):  # fmt: skip
        super().__init__(net, optimizer)
        if not (0 <= gamma < 1 and alpha >= 0 and temperature > 0 and 0 < tau <= 1):
            given = f"gamma={gamma}, alpha={alpha}, temperature={temperature}, tau={tau}"
            raise DataError(f"method: {given}: expected [0, 1), at least 0, above 0, (0, 1]")
        self.gamma, self.alpha, self.floor, self.temperature, self.tau = gamma, alpha, floor, temperature, tau
        self.encoder_lr = encoder_lr
        self.started = start_from(net, encoder, train_encoder)
        self.target_critic = slow(net.critic)

    def losses(self, batch):
        now, after = seen(batch, schema.OBSERVATION), seen(batch, schema.NEXT_OBSERVATION)
        action, returns = batch[schema.ACTION], batch[schema.RETURN]
        with torch.no_grad():
            best = self.net.all_q(after, self.target_critic).amin(0).amax(-1)  # b
            target = td_target(batch[schema.REWARD], batch[schema.TERMINATED], best[None], self.gamma)
        q, policy = self.net.all_q(now), self.net.act(now)  # e b n
        taken = chosen(q, action)
        metrics = {
            "td_loss": td_loss(taken, target, torch.ones_like(target, dtype=torch.bool)),
            "penalty": cql_penalty(q, action, returns if self.floor else None),
            "actor_loss": soft_policy_loss(policy.log_probs, q, self.temperature),
            "q": taken.mean(), "q_best": q.amin(0).amax(-1).mean(),
            "below_return": (q < returns[:, None]).float().mean(),
            "agreement": (policy.mode() == action).float().mean(),
        }  # fmt: skip
        loss = metrics["td_loss"] + self.alpha * metrics["penalty"] + metrics["actor_loss"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def follow(self):
        follow(self.target_critic, self.net.critic, self.tau)


def seen(batch, name):
    """What the net sees of a batch now, or after the step."""
    more = {schema.CONDITION: batch[schema.CONDITION]} if schema.CONDITION in batch else {}
    return {schema.OBSERVATION: batch[name], **more}
