"""PPO anchored to the pretrained policy (VPT, arXiv:2206.11795; PPO, arXiv:1707.06347) for any sequence policy.

    loss = - E[min(r A, clip(r, 1 - eps, 1 + eps) A)]                     clipped surrogate
           + c_v E[(V(o) - R)^2]                                          V and R in normalised units
           + rho_k E[KL(pi_pretrained || pi)],  rho_k = rho * decay^k     with a pretrained policy
           - c_H E[H(pi)]                                                 only where there is no KL

The policy trains on chunks, starting from the memory it had when acting, with episode boundaries inside the chunk.
VPT used PPG with a second value head; this is its policy phase. Advantages are divided by the running deviation of the
returns, which the paper does not state: so the anchor's weight means the same at any scale of reward, and a rollout
without reward moves nothing (dividing by a rollout's own deviation would blow its noise up).
"""

import copy
import dataclasses
from contextlib import nullcontext

import torch
from lightning import LightningModule
from torch.utils._pytree import tree_map

from foundation.losses.advantage import gae
from foundation.losses.clipped_surrogate import clip_fraction, clipped_surrogate
from foundation.losses.kl_to_reference import anchor_weight, kl_to_reference
from foundation.losses.masked import masked_mean
from foundation.losses.value import explained_variance, value_loss
from foundation.rollout import FEATURES, take
from models.actor_critic import ValueHead
from pipelines.schema import ACTION, FIRST, MASK, OBSERVATION, REWARD, TERMINATED, TRUNCATED, DataError


class PPO(LightningModule):
    """`policy` learns; `pretrained` (or None: from scratch) is the frozen prior the KL is taken to."""

    def __init__(self, policy, pretrained=None, lr=2e-5, value_lr=1e-3, weight_decay=0.04, gamma=0.999, lambda_=0.95,
                 clip=0.2, value_coefficient=0.5, kl=0.2, kl_decay=0.9995, entropy=0.01, value_gradient=True,
                 train_encoder=True, advantage_scale="returns"):  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["policy", "pretrained"])
        self.policy = policy
        if not train_encoder:
            policy.encoder.requires_grad_(False)
        self.value = ValueHead(policy.width)
        anchored = pretrained is not None and kl > 0
        self.prior = copy.deepcopy(pretrained).requires_grad_(False) if anchored else None
        self.prior_state = None  # the prior's own memory of the running episodes
        self.rollout_metrics = {}  # of the latest rollout
        self.entropy = 0.0 if anchored else entropy  # the KL replaces the entropy bonus

    def train(self, mode=True):
        """Dropout stays off in every pass: with it, new and old probabilities differ at equal weights."""
        super().train(mode)
        self.policy.eval()
        if self.prior is not None:
            self.prior.eval()
        return self

    # what the stream asks for

    def precision(self):
        """The context `training_step` runs in, so that acting and training round alike."""
        return nullcontext() if self._trainer is None else self._trainer.precision_plugin.forward_context()

    @torch.no_grad()
    def annotate(self, chunk, groups):
        """Adds old log-probabilities, the prior's distributions, advantages and value targets to a rollout.

        `groups` are the first pass's minibatches: the same shapes give the same rounding, so the ratio starts at 1.
        """
        if self.prior is not None and self.prior_state is None:
            self.prior_state = self.prior.initial_state(len(chunk[MASK]), self.device)
        parts = [self._look(take({**chunk, "prior_state": self.prior_state}, rows)) for rows in groups]
        back = torch.cat(list(groups)).argsort()
        seen = tree_map(lambda *x: torch.cat(x)[back], *parts)
        self.prior_state = seen.pop("prior_state", None)
        value = self.value.denormalise(seen.pop("value"))  # b t+1
        mask, done = chunk[MASK], (chunk[TERMINATED], chunk[TRUNCATED])
        advantage = gae(chunk[REWARD], value, *done, self.hparams.gamma, self.hparams.lambda_)
        target = advantage + value[:, :-1]  # b t
        self.rollout_metrics = {
            "value/explained_variance": explained_variance(value[:, :-1], target, mask),
            "policy/step_mismatch": float((seen["old_log_prob"] - chunk["log_prob"])[mask].abs().amax()),
        }
        self.value.update(target, mask)
        advantage = advantage / self._scale(advantage[mask])
        kept = {name: chunk[name] for name in (OBSERVATION, FEATURES, FIRST, MASK, ACTION, "state") if name in chunk}
        return {**kept, **seen, "advantage": advantage, "target": target}

    def _scale(self, advantage):
        """What advantages are divided by: the returns' running deviation, this rollout's own, or nothing."""
        scales = {
            "returns": lambda: self.value.normalizer.mean_and_std()[1],
            "rollout": lambda: advantage.std() + 1e-8,
            "none": lambda: 1.0,
        }
        if self.hparams.advantage_scale not in scales:
            raise DataError(f"advantage_scale={self.hparams.advantage_scale!r}: expected one of {sorted(scales)}")
        return scales[self.hparams.advantage_scale]()

    def _look(self, part):
        latent, state = self.policy.latent(part, part["state"])
        last, _ = self.policy.latent(part["last"], state)
        value = self.value(torch.cat([latent, last], 1))  # b t+1
        seen = {"old_log_prob": self.policy.head(latent).log_prob(part[ACTION]), "value": value}
        if self.prior is not None:
            prior, seen["prior_state"] = self.prior(part, part["prior_state"])
            seen["prior"] = (prior.buttons_log_probs, prior.camera_log_probs)
        return seen

    # losses

    def losses(self, batch):
        """-> (loss, metrics) of one minibatch."""
        h, mask = self.hparams, batch[MASK]
        latent, policy = self.distribution(batch)
        log_prob = policy.log_prob(batch[ACTION])
        value = self.value(latent if h.value_gradient else latent.detach())
        actor = clipped_surrogate(log_prob, batch["old_log_prob"], batch["advantage"], h.clip, mask)
        critic = value_loss(value, self.value.normalise(batch["target"]), mask)
        entropy = masked_mean(policy.entropy(), mask)
        loss = actor + h.value_coefficient * critic - self.entropy * entropy
        metrics = {"loss/actor": actor, "loss/value": critic, "policy/entropy": entropy}
        metrics["policy/clip_fraction"] = clip_fraction(log_prob, batch["old_log_prob"], h.clip, mask)
        if self.prior is not None:
            kl = kl_to_reference(self.reference(batch, policy), policy, mask)
            rho = anchor_weight(h.kl, h.kl_decay, batch["iteration"])
            loss = loss + rho * kl
            metrics |= {"policy/kl": kl, "policy/rho": torch.tensor(rho)}
        return loss, {"loss/total": loss, **metrics}

    def distribution(self, batch):
        """(latent [b t d], the policy's distribution) on a minibatch."""
        latent, _ = self.policy.latent(batch, batch["state"])
        return latent, self.policy.head(latent)

    def reference(self, batch, policy):
        """The prior's distribution on a minibatch, as `annotate` found it."""
        buttons, camera = batch["prior"]
        return dataclasses.replace(policy, buttons_log_probs=buttons, camera_log_probs=camera)

    def training_step(self, batch, _):
        loss, metrics = self.losses(batch)
        return {"loss": loss, "metrics": {name: value.detach() for name, value in metrics.items()}}

    def on_save_checkpoint(self, checkpoint):
        numbers = {name: float(value) for name, value in self.rollout_metrics.items()}
        checkpoint["agent"] = {"prior_state": self.prior_state, "rollout_metrics": numbers}

    def on_load_checkpoint(self, checkpoint):
        self.prior_state = checkpoint["agent"]["prior_state"]
        self.rollout_metrics = checkpoint["agent"]["rollout_metrics"]

    def configure_optimizers(self):
        policy = [p for p in self.policy.parameters() if p.requires_grad]
        value = list(self.value.parameters())
        groups = [{"params": policy, "lr": self.hparams.lr}, {"params": value, "lr": self.hparams.value_lr}]
        return torch.optim.AdamW(groups, weight_decay=self.hparams.weight_decay)
