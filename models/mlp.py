"""Several MLPs of one shape, computed together: one batched product per layer instead of one per member and layer."""

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class EnsembleLinear(nn.Module):
    """One linear layer per member, [e b i] -> [e b o], as one batched product; initialised as nn.Linear."""

    def __init__(self, members, inputs, outputs):
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x, member=None, norm=None):
        """member: compute this one only, [1 b i] -> [1 b o]. norm: an EnsembleNorm whose scale and shift x still lacks.

        They are multiplied into the weights, of which there are fewer than there are numbers in x.
        """
        weight, bias = of(self.weight, member), of(self.bias, member)
        if norm is not None:
            scale, shift = of(norm.weight, member), of(norm.bias, member)
            weight, bias = scale.mT * weight, torch.baddbmm(bias, shift, weight)
        return torch.baddbmm(bias, x, weight)  # e b o

    def scaled(self, scale=1.0):
        """Initialised by variance scaling instead: uniform, variance = scale / mean of inputs and outputs; bias 0."""
        bound = (6 * scale / sum(self.weight.shape[1:])) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
        return self


class EnsembleNorm(nn.Module):
    """One layer norm per member, [e b d] -> [e b d]; the layer after it applies its scale and shift."""

    def __init__(self, members, width, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))
        self.epsilon = epsilon

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], eps=self.epsilon)


class EnsembleMLP(nn.Module):
    """`members` MLPs, [e b i] or, all given the same, [b i] -> [e b o].

    layers: hidden ones, each linear -> activation -> layer norm, in this order, as HILP's release has it
    (arXiv:2402.15567). activation: relu | gelu | gelu_tanh. norm: with layer norm. scale: of the last layer's initial
    variance. Weights start as flax's variance_scaling(1, fan_avg, uniform), biases at 0.
    """

    def __init__(self, members, inputs, outputs, width=512, layers=3, activation="gelu_tanh", norm=True, scale=1.0):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {list(ACTIVATIONS)}")
        sizes = [inputs, *[width] * layers]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.members, self.activation = members, activation
        self.linears = nn.ModuleList(EnsembleLinear(members, *pair).scaled() for pair in pairs)
        self.norms = nn.ModuleList(EnsembleNorm(members, width) for _ in range(layers if norm else 0))
        self.out = EnsembleLinear(members, sizes[-1], outputs).scaled(scale)

    def forward(self, x, member=None):
        """member: compute this one only, -> [1 b o]. The last layer is float32 also under autocast."""
        return precise(self.out, self.hidden(x, member), member, self.norms[-1] if self.norms else None)

    def hidden(self, x, member=None):
        """Outputs of the last hidden layer, [e b d], where there are norms without the scale and shift of the last."""
        if x.ndim == 2:
            x = x.expand(self.members if member is None else 1, -1, -1)
        activate, norm = ACTIVATIONS[self.activation], None
        for i, linear in enumerate(self.linears):
            x = activate(linear(x, member, norm))
            if self.norms:
                norm = self.norms[i]
                x = norm(x)
        return x


def precise(linear, x, member=None, norm=None):
    """EnsembleLinear on [e ... i] -> [e ... o], in the type of its weights also under autocast.

    Values reach 1 / (1 - gamma) and are compared to differences of about 1, where bfloat16 has steps of a half.
    """
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.to(linear.weight.dtype).flatten(1, -2), member, norm).unflatten(1, x.shape[1:-1])


def of(parameter, member):
    """The rows of one member, or of all."""
    return parameter if member is None else parameter[member : member + 1]
