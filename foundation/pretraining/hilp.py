"""HILP (Park et al. 2024, arXiv:2402.15567): a space in which distance is time, and a policy that goes its directions.

phi       -||phi(s) - phi(g)|| is regressed, by an expectile, on minus the least number of steps from s to g
skills    z uniform on the sphere; r = <feature(s, s'), z>, such as <phi(s') - phi(s), z>; no gradient reaches phi
V(s, z)   expectile regression on min_k Qt_k(s, a, z)
Q(s, a, z)  mean (Q_k - (r + gamma V(s', z)))^2, two members; V as it stands, no terminal states
pi        advantage-weighted regression with A = min_k Qt_k(s, a, z) - V(s, z)
"""

import torch

from foundation.losses.awr import awr_loss, awr_weight
from foundation.losses.temporal_distance import temporal_distance_loss
from foundation.pretraining.iql import told, value_terms
from foundation.pretraining.task import PretrainTask
from foundation.target_networks import EMA, Followed, follow, slow
from pipelines import schema
from pipelines.schema import DataError

SCHEDULES = ("joint", "two_stage", "frozen")


class HilpTask(Followed, PretrainTask):
    """Trains a models.hilbert.HilbertPolicy on the sum of the four losses.

    schedule: joint | two_stage = phi alone for `representation_steps` updates (None: half of all), then the skills
    alone | frozen = the skills alone, on the phi of init=. ema: targets follow by `tau`, from the parameters `before`
    the update (as released) or `after` it. compile: the losses, by torch.compile.
    """

    @classmethod
    def configured(cls, net, method, init):
        if method["schedule"] == "frozen" and init is None:
            raise DataError("method.schedule=frozen trains skills on the phi of another run; give init=<that run>")
        return net

    def __init__(self, net, optimizer, gamma=0.99, expectile=0.95, skill_expectile=0.9, temperature=10.0, clip=100.0,
                 tau=0.005, ema="before", schedule="joint", representation_steps=None, compile=False):  # fmt: skip
        super().__init__(net, optimizer)
        for name, value, options in (("schedule", schedule, SCHEDULES), ("ema", ema, EMA)):
            if value not in options:
                raise DataError(f"method.{name}={value!r}: expected one of {list(options)}")
        shares = 0 <= gamma < 1 and 0 < expectile < 1 and 0 < skill_expectile < 1 and 0 < tau <= 1
        if not (shares and temperature >= 0 and clip > 0):
            given = f"{gamma=}, {expectile=}, {skill_expectile=}, {tau=}, {temperature=}, {clip=}"
            raise DataError(f"method: {given}: expected [0, 1), (0, 1), (0, 1), (0, 1], at least 0, above 0")
        if representation_steps is not None and schedule != "two_stage":
            raise DataError(f"method.representation_steps={representation_steps} is for method.schedule=two_stage;"
                            " leave it out")  # fmt: skip
        self.gamma, self.expectile, self.skill_expectile = gamma, expectile, skill_expectile
        self.temperature, self.clip, self.tau, self.ema = temperature, clip, tau, ema
        self.schedule, self.representation_steps = schedule, representation_steps
        self.target_representation, self.target_critic = slow(net.representation), slow(net.critic)
        net.representation.requires_grad_(schedule != "frozen")
        self.terms = torch.compile(self._terms) if compile else self._terms

    def on_fit_start(self):
        steps, total = self.representation_steps, self.trainer.max_steps
        if steps is not None and not 0 < steps < total:
            raise DataError(f"method.representation_steps={steps} of steps={total} leave nothing for phi, or for the"
                            " skills, to learn in; expected a number between")  # fmt: skip

    # losses

    def losses(self, batch):
        metrics = self.terms(batch, *self.learning())
        return sum(value for name, value in metrics.items() if name.endswith("_loss")), metrics

    def learning(self):
        """(Whether phi learns now, whether the skills do)"""
        if self.schedule != "two_stage":
            return self.schedule == "joint", True
        steps = self.representation_steps
        first = self.trainer.global_step < (self.trainer.max_steps // 2 if steps is None else steps)
        return first, not first

    def _terms(self, batch, representation, skills):
        """{name: loss or number}"""
        net, state, metrics = self.net.representation, batch[schema.OBSERVATION], {}
        if representation:
            phi = net.phi(torch.stack([state, batch[schema.GOAL]], 1))  # e b 2 z
            metrics = self.distance_terms(batch, phi)
        if skills:
            with torch.no_grad():
                phi_t = phi[0, :, 0] if representation else net.latent(state)
                phi_tp1 = net.latent(batch[schema.NEXT_OBSERVATION])
            metrics |= self.skill_terms(batch, self.reward(batch, phi_t, phi_tp1))
        return metrics

    def distance_terms(self, batch, phi):
        """phi: latents [e b 2 z] of states and goals, with gradient."""
        target = self.target_representation
        names = (schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL)
        with torch.no_grad():
            s, following, g = target.phi(torch.stack([batch[name] for name in names], 1)).unbind(2)  # e b z
            target_t, target_tp1 = target.value(s, g), target.value(following, g)
        value = self.net.representation.value(*phi.unbind(2))  # e b
        reached = batch[schema.REACHED]
        loss = temporal_distance_loss(value, target_t, target_tp1, reached, self.gamma, self.expectile)
        return {"distance_loss": loss, "distance": -value.detach().mean()}

    @torch.no_grad()
    def reward(self, batch, phi_t, phi_tp1):
        """<feature, z> [b] of steps between these latents [b z]."""
        if self.training:
            self.net.representation.observe(phi_tp1)
        return (self.net.representation.feature(phi_t, phi_tp1) * batch[schema.CONDITION]).sum(-1)

    def skill_terms(self, batch, reward):
        now, action = told(batch), batch[schema.ACTION]
        following = {**now, schema.OBSERVATION: batch[schema.NEXT_OBSERVATION]}
        goes_on = torch.ones_like(reward, dtype=torch.bool)
        advantage, metrics = value_terms(self.net, self.target_critic, now, following, action, reward, goes_on,
                                         self.gamma, self.skill_expectile)  # fmt: skip
        return metrics | {
            "actor_loss": awr_loss(self.net.act(now).log_prob(action), advantage, self.temperature, self.clip),
            "weight": awr_weight(advantage, self.temperature, self.clip).mean(), "reward": reward.mean(),
        }  # fmt: skip

    # targets

    def follow(self):
        """Targets move by tau towards the parameters as they stand; a frozen phi has none to follow."""
        if self.schedule != "frozen":
            follow(self.target_representation, self.net.representation, self.tau)
        follow(self.target_critic, self.net.critic, self.tau)
