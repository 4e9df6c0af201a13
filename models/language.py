"""GPT-2's stack of blocks as the trunk of sequence models, and the language model around it.

Pre-norm blocks with biases (Radford et al. 2019). Queries, keys and values are separate linear layers, so adapters and
modulators attach to each by name. The last block can be computed at the positions that are read and nowhere else, which
is exact: its outputs elsewhere reach nothing.
"""

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}


class Kept:
    """Keys and values [b h m d/h] of one block, to which tokens are added in place. Room doubles when it is full.

    For acting: what concatenation would copy at every step stays where it is. Does not learn.
    """

    def __init__(self):
        self.length, self.room = 0, None

    def add(self, *new):
        """(keys, values) of all tokens, these last; views."""
        start, stop = self.length, self.length + new[0].shape[2]
        if self.room is None or stop > self.room[0].shape[2]:
            b, h, _, e = new[0].shape
            room = [one.new_empty(b, h, max(stop, 2 * start), e) for one in new]
            for larger, one in zip(room, self.room or new, strict=True):
                larger[:, :, :start] = one[:, :, :start]
            self.room = room
        for one, room in zip(new, self.room, strict=True):
            room[:, :, start:stop] = one
        self.length = stop
        return [room[:, :, :stop] for room in self.room]


def length_of(memory):
    """Tokens in what `GPT.forward` returned as memory; None = none."""
    if memory is None:
        return 0
    return memory[0].length if isinstance(memory[0], Kept) else memory[0][0].shape[2]


class CausalAttention(nn.Module):
    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout, self.dropout_out = dropout, nn.Dropout(dropout)

    def forward(self, x, read=None, memory=None, visible=None, mask=None):
        """x [b n d] -> (y [b m d], (k, v) each [b h m+n d/h]).

        read: int [m], ascending positions of x whose outputs are wanted, None = all. memory: (k, v) of what came
        before x, or a `Kept`, which is then returned. visible: bool [b m+n], which tokens of memory and x may be looked
        at, None = all. mask: bool [n m+n], what each token looks at, in place of everything before it.
        """
        queries = x if read is None else x[:, read]
        q, k, v = (self._split(layer(z)) for layer, z in ((self.query, queries), (self.key, x), (self.value, x)))
        if isinstance(memory, Kept):
            k, v = memory.add(k, v)
        elif memory is not None:
            k, v = torch.cat([memory[0].to(k.dtype), k], 2), torch.cat([memory[1].to(v.dtype), v], 2)
        past = k.shape[2] - x.shape[1]
        if mask is not None or read is not None or past or visible is not None:
            place = torch.arange(x.shape[1], device=x.device) if read is None else read  # m
            keys = torch.arange(k.shape[2], device=x.device) - past
            mask = keys <= place[:, None] if mask is None else mask[place]  # m past+n
            if visible is not None:  # a token always sees itself, so that no row is empty
                mask = mask & (visible[:, None, None] | (keys == place[:, None]))  # b 1 m past+n
        dropout = self.dropout if self.training else 0.0
        if k.shape[2] == 1 and not dropout:  # a single token can only look at itself
            y = v if read is None else v[:, :, read]
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout)
        cache = memory if isinstance(memory, Kept) else (k, v)
        return self.dropout_out(self.out(rearrange(y, "b h m d -> b m (h d)"))), cache

    def _split(self, x):
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x))."""

    def __init__(self, width, heads, activation, dropout):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, read=None, memory=None, visible=None, mask=None):
        y, cache = self.attention(self.norm1(x), read, memory, visible, mask)
        x = (x if read is None else x[:, read]) + y
        return x + self.dropout(self.down(self.activation(self.up(self.norm2(x))))), cache


class GPT(nn.Module):
    """Causal transformer over embeddings [b n d]. It knows no positions: what needs them is in the embeddings."""

    def __init__(self, width, layers, heads, activation="gelu_tanh", dropout=0.1):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}: expected one of {sorted(ACTIVATIONS)}")
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, activation, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        initialise(self, layers)

    def forward(self, x, read=None, memory=None, visible=None, mask=None):
        """x [b n d] -> (y [b m d], memory after x): `read` int [m] are the positions of x wanted, None = all.

        memory: what an earlier call returned for the tokens before x; a list with (k, v) or `Kept` per block. visible:
        bool [b m+n], which tokens before and of x may be looked at, None = all. mask: bool [n m+n], what each token of
        x looks at, None = itself and everything before it.
        """
        x, caches = self.dropout(x), []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x, cache = block(x, read if last else None, None if memory is None else memory[i], visible, mask)
            caches.append(cache)
        return self.norm(x), caches


class LanguageModel(nn.Module):
    """Tokens int [b n] -> logits [b n v]: GPT with token and learned position embeddings; the output is tied.

    trunk: a module with GPT's forward, such as a policy's; None = a GPT of width, layers, heads, activation, dropout.
    """

    def __init__(self, vocabulary, context, width, layers, heads, activation="gelu_tanh", dropout=0.1, trunk=None):
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.trunk = trunk if trunk is not None else GPT(width, layers, heads, activation, dropout)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)

    def forward(self, tokens):
        n = tokens.shape[1]
        if n > self.context:
            raise ValueError(f"{n} tokens, the model was built for {self.context}")
        x = self.tokens(tokens) + self.positions(torch.arange(n, device=tokens.device))
        y, _ = self.trunk(x)
        return y @ self.tokens.weight.T


def initialise(module, layers):
    """GPT-2's: matrices N(0, .02), those that add to the residual stream narrower by sqrt(2 layers), biases 0."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            narrow = math.sqrt(2 * layers) if name.endswith((".out", ".down")) else 1.0
            nn.init.normal_(layer.weight, std=0.02 / narrow)
            nn.init.zeros_(layer.bias)
