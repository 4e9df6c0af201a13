"""Language modelling by maximum likelihood."""

from einops import rearrange
from torch.nn import functional as F


def next_token_loss(logits, tokens):
    """-log p(x_t | x_<t), mean over tokens, in nats. logits [b n v] read at tokens[:, :-1]; tokens int [b n+1]."""
    return F.cross_entropy(rearrange(logits.float(), "b n v -> (b n) v"), rearrange(tokens[:, 1:], "b n -> (b n)"))
