"""Video policy by sequence behaviour cloning (VPT, arXiv:2206.11795, section 4).

Chunks of each lane follow one another, so the memory of a chunk's end is the memory of the next one's start, without
gradient (truncated back-propagation through time). It is part of the checkpoint.
"""

import torch

from foundation.losses.behaviour_cloning import behaviour_cloning_nll, soft_behaviour_cloning_nll, weighted_mean
from foundation.pretraining.task import PretrainTask
from pipelines import schema


class VideoPolicyTask(PretrainTask):
    """Clones the actions of trajectory shards, true or pseudo. `train_encoder=False` freezes the image encoder."""

    def __init__(self, net, optimizer, train_encoder=True):
        super().__init__(net, optimizer)
        self.memory = None
        if not train_encoder:
            self.net.encoder.requires_grad_(False)

    def losses(self, batch):
        distribution, state = self.net(batch, self._memory_for(batch))
        if self.training:
            self.memory = detach(state)
        weight = batch[schema.WEIGHT] * batch[schema.MASK]
        action = batch[schema.ACTION]
        if schema.BUTTONS_TARGET in batch:
            targets = batch[schema.BUTTONS_TARGET], batch[schema.CAMERA_TARGET]
            loss = soft_behaviour_cloning_nll(distribution, *targets, weight)
        else:
            loss = behaviour_cloning_nll(distribution, action, weight)
        chosen = distribution.mode()
        metrics = {
            "buttons_exact": weighted_mean((chosen[..., 0] == action[..., 0]).float(), weight),
            "action_exact": weighted_mean((chosen == action).all(-1).float(), weight),
        }
        return loss, metrics

    def _memory_for(self, batch):
        """The carried memory in training; none in validation, whose windows stand alone. `first` resets rows."""
        return self.memory if self.training else None

    def on_save_checkpoint(self, checkpoint):
        checkpoint["memory"] = self.memory

    def on_load_checkpoint(self, checkpoint):
        self.memory = checkpoint["memory"]


def detach(state):
    """The same nest of tensors without gradient."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {name: detach(value) for name, value in state.items()}
    return type(state)(detach(value) for value in state) if isinstance(state, list | tuple) else state
