"""Slow copies of networks that learn: what temporal differences are taken to."""

import copy

import torch
from torch.func import functional_call

EMA = ("before", "after")


class Followed:
    """Part of a LightningModule that has slow copies and moves them in `follow()`, at every update of the others.

    ema: they follow the parameters from `before` the update, as in the releases of HILP and OGBench, or `after` it, as
    in IQL's.
    """

    ema = "before"

    def on_before_optimizer_step(self, optimizer):
        if self.ema == "before":
            self.follow()

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        if self.ema == "after":
            self.follow()


def slow(module):
    """A copy that does not learn; None of None."""
    return None if module is None else copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(copied, module, tau):
    """copy <- (1 - tau) copy + tau module, of the parameters that learn."""
    pairs = zip(copied.parameters(), module.parameters(), strict=True)
    targets, sources = zip(*((target, source) for target, source in pairs if source.requires_grad), strict=True)
    torch._foreach_lerp_(targets, sources, tau)


def fixed(module):
    """The module as a function: gradients pass through it and do not reach its weights."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, weights, inputs)
