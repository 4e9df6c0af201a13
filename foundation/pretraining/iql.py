"""Implicit Q-learning (IQL, arXiv:2110.06169) on steps of vectors: towards goals (GC-IQL), or for one reward.

    V(s, g)     expectile regression on min_k Qt_k(s, a, g)
    Q(s, a, g)  mean (Q_k - (r + gamma m V(s', g)))^2, two members; r = -1 and m = 1, or both 0 where s is g
    pi(a | s, g), of goals drawn in a way of their own, by
        awr      advantage-weighted regression with A = min_k Q_k(s, a, g) - V(s, g), as in IQL's paper
        ddpg_bc  -min_k Q_k(s, pi(s, g), g) / mean |min_k Q_k| - alpha log pi(a | s, g), as in OGBench's GC-IQL;
                 the mean is that of the batch of a rank

Of a reward instead of goals, r is that and m = 0 at terminal states. The values are those of both sources: m is used,
and the V of the bootstrap is no slow copy. Where they differ there are options: OGBench (2410.20092), which is the
default, takes Q of the actor from the network that learns (advantage=online) and lets slow copies follow the parameters
from before the update (ema=before); IQL's release takes it from the slow copy (advantage=slow), which follows those
from after (ema=after). It also updates V, pi and Q in turn, each with what came before; we sum their losses.
"""

import torch

from foundation.losses.awr import awr_loss, awr_weight
from foundation.losses.expectile import expectile_loss
from foundation.losses.td import td_loss
from foundation.pretraining.task import PretrainTask
from foundation.target_networks import EMA, Followed, fixed, follow, slow
from pipelines import schema
from pipelines.schema import DataError

EXTRACTIONS, ADVANTAGES = ("ddpg_bc", "awr"), ("online", "slow")


class IqlTask(Followed, PretrainTask):
    """Trains a network with `q`, `v` and `act`, such as models.goal_policy.GoalPolicy, on the sum of the three losses.

    One without a critic is an actor alone: extraction=awr with temperature=0, imitation of every action alike.
    """

    def __init__(self, net, optimizer, gamma=0.99, expectile=0.9, extraction="ddpg_bc", alpha=0.003, temperature=3.0,
                 clip=100.0, advantage="online", tau=0.005, ema="before"):  # fmt: skip
        super().__init__(net, optimizer)
        choices = ("extraction", extraction, EXTRACTIONS), ("advantage", advantage, ADVANTAGES), ("ema", ema, EMA)
        for name, value, options in choices:
            if value not in options:
                raise DataError(f"method.{name}={value!r}: expected one of {list(options)}")
        if not (0 <= gamma < 1 and 0 < expectile < 1 and 0 < tau <= 1 and min(alpha, temperature) >= 0 and clip > 0):
            given = f"{gamma=}, {expectile=}, {tau=}, {alpha=}, {temperature=}, {clip=}"
            raise DataError(f"method: {given}: expected [0, 1), (0, 1), (0, 1], at least 0, at least 0, above 0")
        if extraction == "ddpg_bc" and net.n_actions is not None:
            raise DataError("method.extraction=ddpg_bc follows Q along actions that are numbers, here they are choices;"
                            " set method.extraction=awr")  # fmt: skip
        if net.critic is None and (extraction, temperature) != ("awr", 0):
            raise DataError("an actor without critics learns by imitation alone: set method.extraction=awr"
                            " method.temperature=0, or method.net.critics=2")  # fmt: skip
        self.gamma, self.expectile, self.extraction, self.alpha = gamma, expectile, extraction, alpha
        self.temperature, self.clip, self.advantage, self.tau, self.ema = temperature, clip, advantage, tau, ema
        self.target_critic = slow(net.critic)

    def losses(self, batch):
        now, metrics, advantage = told(batch), {}, None
        if self.net.critic is not None:
            following = {**now, schema.OBSERVATION: batch[schema.NEXT_OBSERVATION]}
            reward, goes_on = paid(batch)
            advantage, metrics = value_terms(self.net, self.target_critic, now, following, batch[schema.ACTION], reward,
                                             goes_on, self.gamma, self.expectile)  # fmt: skip
        metrics |= self.actor_terms(batch, now, advantage)
        return sum(value for name, value in metrics.items() if name.endswith("_loss")), metrics

    def actor_terms(self, batch, now, advantage):
        """advantage [b]: min_k Qt_k - V of the batch, to be used again if it is what the actor goes by."""
        if schema.ACTOR_CONDITION in batch:
            now, advantage = {**now, schema.CONDITION: batch[schema.ACTOR_CONDITION]}, None
        distribution = self.net.act(now)
        log_prob = distribution.log_prob(batch[schema.ACTION])
        if self.extraction == "ddpg_bc":
            losses = self.ddpg_bc(now, distribution, log_prob)
        else:
            losses = self.awr(now, batch[schema.ACTION], log_prob, advantage)
        return {**losses, "log_prob": log_prob.detach().mean()}

    def awr(self, now, action, log_prob, advantage):
        if not self.temperature:
            return {"actor_loss": -log_prob.mean()}
        if advantage is None or self.advantage == "online":
            with torch.no_grad():
                advantage = self.net.q(now, action, self.judge).amin(0) - self.net.v(now)
        loss = awr_loss(log_prob, advantage, self.temperature, self.clip)
        weight = awr_weight(advantage, self.temperature, self.clip)
        return {"actor_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def ddpg_bc(self, now, distribution, log_prob):
        q = self.net.q(now, distribution.mode().clamp(-1, 1), fixed(self.judge)).amin(0)  # b
        loss = -q.mean() / (q.detach().abs().mean() + 1e-6) - self.alpha * log_prob.mean()
        return {"actor_loss": loss, "q_actor": q.detach().mean()}

    @property
    def judge(self):
        """The critic that the actor goes by."""
        return self.target_critic if self.advantage == "slow" else self.net.critic

    def follow(self):
        if self.target_critic is not None:
            follow(self.target_critic, self.net.critic, self.tau)


def told(batch):
    """What the network takes of a batch."""
    return {name: batch[name] for name in (schema.OBSERVATION, schema.CONDITION) if name in batch}


def paid(batch):
    """(Rewards [b], whether the episode goes on, bool [b]): of reaching goals, or as they are in the batch."""
    if schema.REACHED in batch:
        reached = batch[schema.REACHED]
        return reached.float() - 1, ~reached
    return batch[schema.REWARD], ~batch[schema.TERMINATED]


def value_terms(net, target_critic, now, following, action, reward, goes_on, gamma, expectile):
    """(Advantage [b] without gradient, {losses of V and Q, mean q}). now, following: what `net` takes of s and s'."""
    with torch.no_grad():
        q_target = net.q(now, action, target_critic).amin(0)  # b
        target = reward + gamma * torch.where(goes_on, net.v(following), 0.0)  # b
    value, q = net.v(now), net.q(now, action)
    return (q_target - value).detach(), {
        "value_loss": expectile_loss(q_target - value, expectile),
        "critic_loss": td_loss(q, target, torch.ones_like(goes_on)),
        "q": q.detach().mean(),
    }  # fmt: skip
