"""Do a transformer's heads look anywhere but at the last two tokens? (Markov heads, arXiv:2409.06985)

Heads that a language model brings and that look at the current and previous token only help where that is enough and
hurt where memory matters; neither new embeddings nor fine-tuning undo them.
"""

import torch

from models.causal_lm import CausalLM
from models.language import CausalAttention

UNSETTLED = 2  # the first positions see no more than two tokens whatever the head


@torch.no_grad()
def attention_maps(net, run):
    """Attention [b h n n] of every CausalAttention in `net` during run(), first block first, no position left out.

    Of a CausalLM in `net` it is that of its blocks, as transformers says it.
    """
    maps, layers = [], [m for m in net.modules() if isinstance(m, CausalAttention | CausalLM)]

    def look(layer, inputs):
        if isinstance(layer, CausalLM):
            maps.extend(layer.attention_maps(inputs[0]))
            return
        q, k = layer._split(layer.query(inputs[0])), layer._split(layer.key(inputs[0]))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # b h n n
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        maps.append(scores.masked_fill(future, -torch.inf).softmax(-1))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def markov_head_score(attention, mask=None):
    """Mean attention on the current or the previous token [h], over queries that could look further back.

    attention: [b h n n], rows sum to 1; mask: bool [b n], True = a real token.
    """
    n = attention.shape[-1]
    near = attention.diagonal(dim1=-2, dim2=-1)[..., 1:] + attention.diagonal(-1, dim1=-2, dim2=-1)  # b h n-1
    near = near[..., UNSETTLED - 1 :]  # b h n-2
    counted = torch.ones(len(attention), n, dtype=torch.bool, device=attention.device) if mask is None else mask
    weight = counted[:, None, UNSETTLED:].to(near.dtype)  # b 1 n-2
    return (near * weight).sum((0, 2)) / weight.sum((0, 2)).clamp(min=1)


def uniform_score(mask):
    """The score of a head that looks at all tokens before it alike; mask: bool [b n]."""
    n = mask.shape[1]
    even = torch.ones(n, n, device=mask.device).tril()
    return float(markov_head_score((even / even.sum(-1, keepdim=True)).expand(len(mask), 1, n, n), mask))
