"""Networks whose weights are not those of the start."""

import torch


@torch.no_grad()
def shaken(net):
    """The net, with noise on every parameter: zeros and ones of the start would hide what is left out or swapped."""
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return net
