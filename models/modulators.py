"""What a slot of a pool may be: changes to a frozen trunk, one per slot, each sample of a batch with its own.

peft has one adapter at a time for all samples, and its prompts want a model of transformers around them; so these are
ours. `slots` int [b]; `on` bool [b 1 1], False = this sample has none.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """y + alpha / rank * x A B with A [i r], B [r o] of each sample's slot; B starts at 0."""

    def __init__(self, slots, inputs, outputs, rank, alpha, spread):
        super().__init__()
        bound = spread / inputs**0.5
        self.a, self.b = nn.Parameter(torch.empty(slots, inputs, rank)), nn.Parameter(torch.zeros(slots, rank, outputs))
        nn.init.uniform_(self.a, -bound, bound)
        self.scale = alpha / rank

    def forward(self, x, y, slots, on):
        b = self.b[slots] * (self.scale * on)  # b r o; scaled here, where it is small
        return torch.baddbmm(y, x @ self.a[slots], b)  # b n o

    def folded(self, slot, weight, bias, inner):
        """(weight [o i], bias [o]) of a linear layer that does the same for a slot; inner: x is its own output."""
        a, b = self.a[slot], self.b[slot] * self.scale  # i r, r o
        if not inner:
            return weight + (a @ b).T, bias
        return weight + b.T @ (a.T @ weight), bias + bias @ a @ b


class Factor(nn.Module):
    """y times a vector [o] of each sample's slot, which starts at 1."""

    def __init__(self, slots, outputs):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(slots, outputs))

    def forward(self, x, y, slots, on):
        return y * torch.where(on, self.factor[slots][:, None], 1.0)

    def folded(self, slot, weight, bias, inner):
        """As LowRank's; inner: of the layer that takes the result, whose inputs are multiplied."""
        factor = self.factor[slot]
        return (weight * factor, bias) if inner else (weight * factor[:, None], bias * factor)


class Bottleneck(nn.Module):
    """y + SiLU(y A) B, an adapter of `width` between (Houlsby et al. 2019), A [o r], B [r o]; B starts at 0.

    The release of L2M has a layer norm behind it, by which a new slot would not be the frozen policy; here is none.
    """

    def __init__(self, slots, outputs, width, spread):
        super().__init__()
        bound = spread / outputs**0.5
        self.a = nn.Parameter(torch.empty(slots, outputs, width).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(slots, width, outputs))

    def forward(self, x, y, slots, on):
        return torch.baddbmm(y, F.silu(y @ self.a[slots]), self.b[slots] * on)  # b n o


class Tokens(nn.Module):
    """Tokens before all others: of a slot, uniform within `spread`, at first noise that the policy has to look past.

    prompt (Lester et al. 2021): they enter the trunk as embeddings. prefix (Li & Liang 2021): each block has keys and
    values of its own for them.
    """

    def __init__(self, kind, slots, size, trunk, spread):
        super().__init__()
        self.size, self.heads = size, trunk.blocks[0].attention.heads
        self.prefix = kind == "prefix"
        width = 2 * len(trunk.blocks) * trunk.width if self.prefix else trunk.width
        self.learned = nn.Parameter(torch.empty(slots, size, width).uniform_(-spread, spread))

    def forward(self, slots, on, x, read=None, memory=None, visible=None):
        """Arguments of the trunk -> its arguments with these tokens; where a memory is given, they are in it."""
        before = 0 if memory is None else memory[0][0].shape[2] - self.size
        if visible is not None or not on.all():
            all_of_them = torch.ones(len(x), before + x.shape[1], dtype=torch.bool, device=x.device)
            given = all_of_them if visible is None else visible
            visible = torch.cat([on[:, 0].expand(-1, self.size), given], 1)
        if memory is None and self.prefix:
            learned = self.learned[slots].to(x.dtype)
            pairs = rearrange(learned, "b r (s c h e) -> s c b h r e", c=2, h=self.heads, e=x.shape[2] // self.heads)
            memory = [(key, value) for key, value in pairs]
        elif memory is None:
            read = torch.arange(x.shape[1], device=x.device) if read is None else read
            x, read = torch.cat([self.learned[slots].to(x.dtype), x], 1), read + self.size
        return {"x": x, "read": read, "memory": memory, "visible": visible}
