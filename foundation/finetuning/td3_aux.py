"""Return-conditioned imitation plus the gradient of a critic, on replayed windows (TD3+ODT, arXiv:2410.24108).

    critic  sum_i (Q_i(s_t, a_t) - r_t - gamma (1 - terminated_t) min_i Q'_i(s_t+1, clip(a' + noise)))^2
    actor   w E[(a_t - a)^2]  (or -log pi(a_t), less tau H(pi))     hindsight return as the condition
            - alpha E[Q_1(s_t, a)] / E|Q_1|                         a = pi(R_1, s_1, a_1 ... R_t, s_t)

Q' and the policy behind a' are slow copies; a' comes from the window shifted by one step. Every position of a window
trains critic and actor; the published code divides by E|Q| only as an option. With alpha 0 there is no critic: that is
imitation (algo=bc) or, with deviation and temperature learned, the online decision transformer (algo=odt,
arXiv:2202.05607). One optimizer with groups: a step that leaves the actor out leaves its gradients None, and so its
weights and moments as they are.
"""

import torch
from lightning import LightningModule
from torch.nn import functional as F

from foundation.finetuning.replay import UPDATE
from foundation.losses.behaviour_cloning import weighted_mean
from foundation.losses.masked import masked_mean
from foundation.losses.td import smoothed, td_loss, td_target
from foundation.target_networks import fixed, follow, slow
from models.critic import EnsembleCritic
from pipelines.schema import (
    ACTION,
    CONDITION,
    MASK,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    SCALED_REWARD,
    TERMINATED,
    TIMESTEP,
    WEIGHT,
    DataError,
)


class TD3Aux(LightningModule):
    """`policy` learns. condition: what it is told, as `EpisodeWindows` has it (return | delayed | none)."""

    def __init__(self, policy, condition="return", loss="mse", imitation=1.0, imitation_decay=1.0,
                 alpha=0.1, normalise_q=True, positions="all", temperature=0.0, temperature_lr=1e-4,
                 target_entropy=None, lr=1e-4, weight_decay=1e-4, critic_lr=3e-4, critic=None, gamma=0.99, tau=0.005,
                 smoothing=0.2, smoothing_clip=0.5, actor_every=2, critic_updates=0, reward_scale=1.0):  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["policy", "critic"])
        check(policy, self.hparams)
        self.policy, self.rollout_metrics = policy, {}
        self.loss = loss if policy.n_actions is None else "nll"
        if policy.log_std is not None:
            policy.log_std.requires_grad_(self.loss == "nll")
        self.critic = EnsembleCritic(policy.state_dim, policy.action_dim, **(critic or {})) if alpha else None
        self.slow_critic = slow(self.critic)
        self.slow_policy = slow(policy) if alpha else None
        log = torch.tensor(float(temperature)).log() if temperature else None
        self.log_temperature = None if log is None else torch.nn.Parameter(log)

    def train(self, mode=True):
        super().train(mode)
        for module in (self.slow_policy, self.slow_critic):
            if module is not None:
                module.eval()
        return self

    # losses

    def losses(self, batch):
        """-> (loss, metrics) of a batch of windows. The actor's terms come every `actor_every`-th time, and not in the
        first `critic_updates` batches."""
        parts, metrics = {}, {}
        if self.critic is not None:
            parts["critic"], more = self.critic_loss(batch)
            metrics |= more
        if self.actor_is_due(int(batch[UPDATE])):
            terms, more = self.actor_terms(batch)
            parts |= terms
            metrics |= more
        loss = sum(parts.values())
        return loss, {"loss/total": loss, **{f"loss/{name}": value for name, value in parts.items()}, **metrics}

    def actor_is_due(self, update):
        after = update - self.hparams.critic_updates
        return self.critic is None or (after >= 0 and after % self.hparams.actor_every == 0)

    def critic_loss(self, batch):
        h, mask = self.hparams, batch[MASK]
        with torch.no_grad():
            action = self.slow_policy(self.following(batch))[0].mode()  # b t a
            action = smoothed(action, h.smoothing * torch.randn_like(action), h.smoothing_clip)
            q_tp1 = self.slow_critic(batch[NEXT_OBSERVATION], action)  # e b t
            target_t = td_target(batch[REWARD] / h.reward_scale, batch[TERMINATED], q_tp1, h.gamma)
        q_t = self.critic(batch[OBSERVATION], batch[ACTION].clamp(-1, 1))
        loss = td_loss(q_t, target_t, mask)
        return loss, {"critic/q": masked_mean(q_t.detach().mean(0), mask), "critic/target": masked_mean(target_t, mask)}

    def following(self, batch):
        """The window one step later: its states are the next ones, what came is taken off what is asked for."""
        condition = batch[CONDITION] - (batch[SCALED_REWARD][..., None] if self.hparams.condition == "return" else 0.0)
        action = batch[ACTION]
        action = torch.cat([action[:, 1:], torch.zeros_like(action[:, :1])], 1)  # the last one is not looked at
        timestep = (batch[TIMESTEP] + 1).clamp(max=self.policy.max_timestep - 1)
        return {OBSERVATION: batch[NEXT_OBSERVATION], CONDITION: condition, ACTION: action, TIMESTEP: timestep}

    def actor_terms(self, batch):
        """({name: term of the loss}, metrics)."""
        h, mask, action = self.hparams, batch[MASK], batch[ACTION]
        policy, _ = self.policy(batch)
        metrics = {"policy/nll": weighted_mean(-policy.log_prob(action), batch[WEIGHT])}
        if self.policy.n_actions is None:
            metrics["policy/mse"] = weighted_mean(((policy.mode() - action) ** 2).mean(-1), batch[WEIGHT])
        weight = h.imitation * h.imitation_decay ** max(0, int(batch[UPDATE]) - h.critic_updates)
        terms = {"imitation": weight * metrics[f"policy/{self.loss}"]}
        if self.log_temperature is not None:
            more, entropy = self.entropy_terms(masked_mean(policy.entropy(), mask))
            terms, metrics = terms | more, metrics | {"policy/entropy": entropy}
        if self.critic is not None:
            q_t = fixed(self.critic)(batch[OBSERVATION], policy.mode())[0]  # b t
            scale = masked_mean(q_t.detach().abs(), mask) if h.normalise_q else 1.0
            terms["q"] = -h.alpha * masked_mean(q_t, mask if h.positions == "all" else last_of(mask)) / (scale + 1e-8)
        return terms, {name: value.detach() for name, value in metrics.items()}

    def entropy_terms(self, entropy):
        """-tau H trains the policy; tau (H - target), the dual, trains tau, which rises while H is below its target."""
        temperature, target = self.log_temperature.exp(), self.hparams.target_entropy
        target = -float(self.policy.action_dim) if target is None else target
        terms = {"entropy": -temperature.detach() * entropy, "temperature": temperature * (entropy.detach() - target)}
        return terms, entropy

    # what the trainer asks for

    def training_step(self, batch, _):
        loss, metrics = self.losses(batch)
        return {"loss": loss, "metrics": {name: value.detach() for name, value in metrics.items()}}

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        """Here, before any callback sees the step, the slow copies follow."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.critic is not None:
            follow(self.slow_critic, self.critic, self.hparams.tau)
            if any(p.grad is not None for p in self.policy.parameters()):  # the actor's turn
                follow(self.slow_policy, self.policy, self.hparams.tau)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Each group by itself: a critic's large gradient must not shrink the policy's."""
        for group in optimizer.param_groups if gradient_clip_val else ():
            torch.nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def configure_optimizers(self):
        h = self.hparams
        learning = [p for p in self.policy.parameters() if p.requires_grad]
        groups = [{"params": learning, "lr": h.lr, "weight_decay": h.weight_decay}]
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "lr": h.critic_lr, "weight_decay": 0.0})
        if self.log_temperature is not None:
            groups.append({"params": [self.log_temperature], "lr": h.temperature_lr, "weight_decay": 0.0})
        return torch.optim.AdamW(groups)


def check(policy, h):
    """DataError for a policy or for options that the losses cannot use."""
    for name, options in {"loss": ("mse", "nll"), "positions": ("all", "last")}.items():
        if h[name] not in options:
            raise DataError(f"algo.agent.{name}={h[name]!r}: expected one of {list(options)}")
    if getattr(policy, "layout", None) == "tokenised":
        raise DataError("a policy with layout=tokenised cannot be fine-tuned yet; give one with interleaved or merged")
    if h.alpha and hasattr(policy, "query"):
        raise DataError("algo=td3_aux knows no contexts; fine-tune a policy of method=dpt with algo=ppo, bc or odt")
    if h.alpha and policy.n_actions is not None:
        raise DataError("algo=td3_aux needs numbers as actions, here they are choices; use algo=odt, bc or ppo")


def last_of(mask):
    """True at the last real step of every window: bool [b t]."""
    return mask & ~F.pad(mask[:, 1:], (0, 1), value=False)
