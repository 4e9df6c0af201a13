"""Layers of the VPT release (arXiv:2206.11795), with its parameter names so that its weights load by key."""

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

N_BASIS = 10  # functions that span the relative position bias
HIDDEN_LOGIT = -1e9  # finite: a row without any visible key must not become NaN


class FanIn(nn.Module):
    """norm -> linear or convolution -> ReLU. The norm sees the layer's input; a bias only where there is no norm.

    Every output row starts with L2 norm `scale` over its fan-in.
    """

    def __init__(self, layer, norm=None, scale=1.0, activation=True):
        super().__init__()
        if norm is not None:
            self.norm = norm
        self.layer = layer
        self.activation = activation
        scale_rows(layer, scale)

    def forward(self, x):
        x = self.layer(self.norm(x) if hasattr(self, "norm") else x)
        return x.relu_() if self.activation else x  # in place: neither layer needs its output to differentiate


@torch.no_grad()
def scale_rows(layer, scale):
    """Rescales each output row of a linear or convolution to L2 norm `scale`; zero bias. Returns the layer."""
    axes = tuple(range(1, layer.weight.ndim))
    layer.weight.mul_(scale / layer.weight.square().sum(axes, keepdim=True).sqrt())
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


def fan_in_linear(n_in, n_out, norm=True, scale=1.0, activation=True):
    return FanIn(nn.Linear(n_in, n_out, bias=not norm), nn.LayerNorm(n_in) if norm else None, scale, activation)


def fan_in_conv(n_in, n_out, norm=True, scale=1.0):
    conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=not norm)
    return FanIn(conv, nn.GroupNorm(1, n_in) if norm else None, scale)


class TimeConv(nn.Conv3d):
    """Kernel (k, 1, 1). `.to(memory_format=torch.channels_last)` refuses 5-axis weights, so it is shown four axes."""

    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, (kernel, 1, 1), padding=(kernel // 2, 0, 0))

    def _apply(self, fn, recurse=True):
        return super()._apply(lambda t: fn(t[..., 0])[..., None] if t.ndim == 5 else fn(t), recurse)


class ResidualBlock(nn.Module):
    """x + conv1(conv0(x)), the ReLUs inside the branch: the sum is not activated again."""

    def __init__(self, channels):
        super().__init__()
        scale = math.sqrt(math.sqrt(3) / math.sqrt(2))
        self.conv0 = fan_in_conv(channels, channels, scale=scale)
        self.conv1 = fan_in_conv(channels, channels, scale=scale)

    def forward(self, x):
        return x + self.conv1(self.conv0(x))


class Stack(nn.Module):
    """[b c h w] -> [b c' ceil(h/2) ceil(w/2)]"""

    def __init__(self, n_in, n_out, first_norm=True):
        super().__init__()
        self.firstconv = fan_in_conv(n_in, n_out, norm=first_norm)
        self.n = nn.GroupNorm(1, n_out)
        self.blocks = nn.ModuleList(ResidualBlock(n_out) for _ in range(2))

    def forward(self, x):
        x = self.n(F.max_pool2d(self.firstconv(x), 3, stride=2, padding=1))
        for block in self.blocks:
            x = block(x)
        return x


class Impala(nn.Module):
    """[b c h w] -> [b 256], three stacks and a dense layer over the C,H,W-flattened map."""

    def __init__(self, img_shape, channels, first_norm):
        super().__init__()
        height, width, n_in = img_shape
        stacks = []
        for n_out in channels:
            stacks.append(Stack(n_in, n_out, first_norm=first_norm or bool(stacks)))
            n_in, height, width = n_out, (height + 1) // 2, (width + 1) // 2
        self.stacks = nn.ModuleList(stacks)
        self.dense = fan_in_linear(n_in * height * width, 256, scale=1.4)

    def forward(self, x):
        for stack in self.stacks:
            x = stack(x)
        return self.dense(rearrange(x, "b c h w -> b (c h w)"))


class ImageProcess(nn.Module):
    """[b c h w] in [0, 1] (or the IDM's temporal maps) -> [b d]"""

    def __init__(self, img_shape, channels, hidsize, first_norm):
        super().__init__()
        self.cnn = Impala(img_shape, channels, first_norm)
        self.linear = fan_in_linear(256, hidsize)

    def forward(self, x):
        return self.linear(self.cnn(x))


class Attention(nn.Module):
    """Attention with logits scaled by 1/d_head (muP) and a learned, query-dependent bias over relative positions.

    `maxlen` is the number of past steps the bias spans; with 0 (the IDM) there is none and `r_layer` is dead weight.
    """

    def __init__(self, hidsize, heads, maxlen, init_scale):
        super().__init__()
        self.heads, self.maxlen = heads, maxlen
        self.q_layer = scale_rows(nn.Linear(hidsize, hidsize), 0.1)
        self.k_layer = scale_rows(nn.Linear(hidsize, hidsize, bias=False), 0.2)
        self.v_layer = scale_rows(nn.Linear(hidsize, hidsize, bias=False), math.sqrt(init_scale))
        self.proj_layer = scale_rows(nn.Linear(hidsize, hidsize), math.sqrt(init_scale))
        self.r_layer = scale_rows(nn.Linear(hidsize, N_BASIS * heads), 0.1)
        self.b_nd = nn.Parameter(0.2 * torch.randn(N_BASIS, maxlen))

    def forward(self, x, visible=None, delta=None, memory=None):
        """x [b t d] attends to T = memory, then x. Returns (output [b t d], (k, v) each [b T d]).

        visible: bool [b T] or [b t T], or None for all. delta: int64 [t T], steps back. memory: (k, v), each [b m d].
        """
        q, k, v = self.q_layer(x), self.k_layer(x), self.v_layer(x)
        if memory is not None:
            k = torch.cat([memory[0].to(k.dtype), k], 1)
            v = torch.cat([memory[1].to(v.dtype), v], 1)
        mask = None if visible is None else self.logit_bias(x, visible, delta).to(q.dtype)
        qh, kh, vh = (rearrange(y, "b t (n d) -> b n t d", n=self.heads) for y in (q, k, v))
        out = F.scaled_dot_product_attention(qh, kh, vh, attn_mask=mask, scale=1 / qh.shape[-1])
        return self.proj_layer(rearrange(out, "b n t d -> b t (n d)")), (k, v)

    def logit_bias(self, x, visible, delta):
        """[b n t T] (or broadcastable): position bias where visible, HIDDEN_LOGIT elsewhere."""
        if visible.ndim == 2:
            visible = rearrange(visible, "b T -> b 1 T")
        visible = rearrange(visible, "b t T -> b 1 t T")
        if delta is None or not self.maxlen:
            return torch.zeros(visible.shape, device=x.device).masked_fill(~visible, HIDDEN_LOGIT)
        basis = rearrange(self.r_layer(x), "b t (n k) -> b n t k", k=N_BASIS)
        by_delta = basis @ self.b_nd.to(basis.dtype)  # b n t maxlen
        index = delta.clamp(0, self.maxlen - 1).expand(*by_delta.shape[:2], *delta.shape)
        return by_delta.gather(-1, index).float().masked_fill(~visible, HIDDEN_LOGIT)


class Block(nn.Module):
    """y = LN(x); x = y + Attention(y): the residual is the normed stream; then x + MLP(LN(x))."""

    def __init__(self, hidsize, heads, maxlen, pointwise_ratio, init_scale):
        super().__init__()
        self.pre_r_ln = nn.LayerNorm(hidsize)
        self.r = nn.ModuleDict({"orc_block": Attention(hidsize, heads, maxlen, init_scale)})
        self.mlp0 = fan_in_linear(hidsize, pointwise_ratio * hidsize)
        self.mlp1 = fan_in_linear(pointwise_ratio * hidsize, hidsize, norm=False, scale=init_scale, activation=False)

    def forward(self, x, visible=None, delta=None, memory=None):
        y = self.pre_r_ln(x)
        attended, memory = self.r["orc_block"](y, visible, delta, memory)
        x = y + attended
        return x + self.mlp1(self.mlp0(x)), memory


class Trunk(nn.Module):
    """[b t d] -> [b t d]: blocks that all see the same keys."""

    def __init__(self, hidsize, heads, maxlen, n_layers, pointwise_ratio):
        super().__init__()
        self.hidsize, self.maxlen = hidsize, maxlen
        scale = n_layers**-0.5 * 2**-0.5
        blocks = (Block(hidsize, heads, maxlen, pointwise_ratio, scale) for _ in range(n_layers))
        self.blocks = nn.ModuleList(blocks)

    def initial_state(self, batch_size, device=None):
        """All zeros: (valid bool [b maxlen], ((k, v) per block, each [b maxlen d])). Zeroing a row resets it."""
        valid = torch.zeros(batch_size, self.maxlen, dtype=torch.bool, device=device)
        empty = torch.zeros(batch_size, self.maxlen, self.hidsize, device=device)
        return valid, tuple((empty.clone(), empty.clone()) for _ in self.blocks)

    def everything(self, x, mask=None):
        """Every frame sees every frame that `mask` [b t] marks real."""
        for block in self.blocks:
            x, _ = block(x, mask)
        return x

    def causal(self, x, first, state):
        """Each frame sees itself and the `maxlen - 1` frames before it, of its own episode. Returns (x, state)."""
        valid, memories = state
        visible, delta, valid = self.band(first, valid)
        carried = []
        for block, memory in zip(self.blocks, memories, strict=True):
            x, (k, v) = block(x, visible, delta, memory)
            carried.append((k[:, -self.maxlen :], v[:, -self.maxlen :]))
        return x, (valid, tuple(carried))

    def band(self, first, valid):
        """first bool [b t], valid bool [b m] -> (visible [b t T], steps back [t T], valid [b m] after the chunk)."""
        t, m = first.shape[1], self.maxlen
        device = first.device
        delta = torch.arange(t, device=device)[:, None] + m - torch.arange(m + t, device=device)  # t T
        episode = first.long().cumsum(1)  # b t; 0 = goes on from the memory
        of_key = F.pad(episode, (m, 0))  # b T
        present = F.pad(valid, (0, t), value=True)  # b T
        visible = present[:, None] & (episode[:, :, None] == of_key[:, None]) & (delta >= 0) & (delta < m)
        valid = present & (of_key == episode[:, -1:])
        return visible, delta, valid[:, -m:]
