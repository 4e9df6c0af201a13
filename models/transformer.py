"""One pre-norm transformer for every sequence model: rotary positions, band and segment masks, carried memory.

Keys are cached before rotation and rotated by their place in [memory, chunk], so stepping one frame at a time with
memory equals one pass over the chunk (RoPE, arXiv:2104.09864, depends on differences only). The memory of
Transformer-XL (arXiv:1901.02860) is kept per layer and masked per row where an episode began.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F


def rotary_angles(length, width, device, base=10_000.0):
    """cos and sin tables [t d/2] for positions 0..length-1 and an even head width d."""
    frequency = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency  # t d/2
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotates the two halves of the last axis of x [b n t d] by the tables [t d/2]."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, mask, memory=None):
        """x [b t d], mask bool broadcastable to [b n t m+t] (True = visible), memory (k, v) each [b n m d/n].

        Returns (y [b t d], (k, v) of memory and chunk together, keys unrotated).
        """
        q, k, v = rearrange(self.qkv(x), "b t (three n d) -> three b n t d", three=3, n=self.heads)
        if memory is not None:
            k, v = torch.cat([memory[0].to(k.dtype), k], 2), torch.cat([memory[1].to(v.dtype), v], 2)  # b n m+t d
        cos, sin = rotary_angles(k.shape[2], k.shape[3], k.device)
        past = k.shape[2] - q.shape[2]
        y = F.scaled_dot_product_attention(rotate(q, cos[past:], sin[past:]), rotate(k, cos, sin), v, attn_mask=mask)
        return self.out(rearrange(y, "b n t d -> b t (n d)")), (k, v)


class Block(nn.Module):
    def __init__(self, width, heads, ratio=4, dropout=0.0):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask, memory=None):
        y, cache = self.attention(self.norm1(x), mask, memory)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.norm2(x))), cache


class Encoder(nn.Module):
    """Bidirectional transformer over [b t d]; `mask` bool [b t], True = real."""

    def __init__(self, width, layers, heads, dropout=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x, mask=None):
        visible = None if mask is None else mask[:, None, None, :]  # b 1 1 t
        for block in self.blocks:
            x, _ = block(x, visible)
        return self.norm(x)


class CausalTransformer(nn.Module):
    """Causal transformer in which frame i sees the last `context` frames, itself included, of its own episode.

    `first` [b t] marks episode starts anywhere in the chunk: nothing before them is visible from them on.
    """

    def __init__(self, width, layers, heads, context, dropout=0.0):
        super().__init__()
        self.width, self.heads, self.layers, self.context = width, heads, layers, context
        self.blocks = nn.ModuleList(Block(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def initial_state(self, batch_size, device=None):
        """Empty memory: {"k", "v": [b layers n context-1 d/n], "valid": bool [b context-1]}."""
        shape = (batch_size, self.layers, self.heads, self.context - 1, self.width // self.heads)
        return {
            "k": torch.zeros(shape, device=device),
            "v": torch.zeros(shape, device=device),
            "valid": torch.zeros(batch_size, self.context - 1, dtype=torch.bool, device=device),
        }

    def forward(self, x, first=None, state=None):
        """x [b t d], first bool [b t] -> (y [b t d], state after the chunk)."""
        b, t, _ = x.shape
        if first is None:
            first = torch.zeros(b, t, dtype=torch.bool, device=x.device)
        if state is None:
            state = self.initial_state(b, x.device)
        mask = self._mask(first, state["valid"])  # b 1 t m+t
        caches = []
        for layer, block in enumerate(self.blocks):
            x, cache = block(x, mask, (state["k"][:, layer], state["v"][:, layer]))
            caches.append(cache)
        return self.norm(x), self._next_state(caches, first, state["valid"])

    def _mask(self, first, valid):
        t = first.shape[1]
        memory = valid.shape[1]
        episode = F.pad(first.cumsum(1), (memory, 0))  # b m+t; the memory belongs to episode 0 of the chunk
        real = F.pad(valid, (0, t), value=True)  # b m+t
        position = torch.arange(memory + t, device=first.device)
        distance = position[memory:, None] - position[None, :]  # t m+t
        band = (distance >= 0) & (distance < self.context)
        same = episode[:, memory:, None] == episode[:, None, :]  # b t m+t
        return (band & same & real[:, None, :])[:, None]

    def _next_state(self, caches, first, valid):
        keep = self.context - 1
        k = torch.stack([k for k, _ in caches], 1).float()  # b l n m+t d
        v = torch.stack([v for _, v in caches], 1).float()
        episode = first.cumsum(1)
        memory_valid = valid & (episode[:, -1:] == 0)
        chunk_valid = episode == episode[:, -1:]
        valid = torch.cat([memory_valid, chunk_valid], 1)
        start = k.shape[3] - keep
        return {"k": k[:, :, :, start:], "v": v[:, :, :, start:], "valid": valid[:, start:]}
