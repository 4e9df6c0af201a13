"""The clipped policy-gradient objective of PPO."""

import torch

from foundation.losses.masked import masked_mean


def clipped_surrogate(log_prob_t, old_log_prob_t, advantage_t, epsilon, mask):
    """Negative clipped surrogate objective (Eq. 7, arXiv:1707.06347): mean of -min(r A, clip(r, 1-eps, 1+eps) A).

    log_prob_t (with gradient), old_log_prob_t, advantage_t [b t]; r = exp(log_prob_t - old_log_prob_t).
    """
    ratio = (log_prob_t - old_log_prob_t).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -masked_mean(torch.minimum(ratio * advantage_t, clipped * advantage_t), mask)


def clip_fraction(log_prob_t, old_log_prob_t, epsilon, mask):
    """Share of actions whose probability ratio left [1 - eps, 1 + eps]; a diagnostic without gradient."""
    ratio = (log_prob_t - old_log_prob_t).detach().exp()
    return masked_mean(((ratio - 1).abs() > epsilon).float(), mask)
