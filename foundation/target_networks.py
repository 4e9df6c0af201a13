"""Slow copies of networks that learn: what temporal differences are taken to."""

import copy

import torch


def slow(module):
    """A copy that does not learn; None of None."""
    return None if module is None else copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(copied, module, tau):
    """copy <- (1 - tau) copy + tau module, of the parameters that learn."""
    pairs = zip(copied.parameters(), module.parameters(), strict=True)
    targets, sources = zip(*((target, source) for target, source in pairs if source.requires_grad), strict=True)
    torch._foreach_lerp_(targets, sources, tau)
