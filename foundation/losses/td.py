"""Temporal differences: what a critic of states and actions is regressed on (TD3, arXiv:1802.09477)."""

from foundation.losses.masked import masked_mean


def td_target(reward_t, terminated_t, q_tp1, gamma):
    """r_t + gamma (1 - terminated_t) min_i Q_i(s_t+1, a_t+1) (TD3, Eq. 10).

    reward_t, terminated_t [...]; q_tp1 [e ...]. An episode that was cut (truncated) goes on in its value.
    """
    return reward_t + gamma * (1.0 - terminated_t.to(q_tp1.dtype)) * q_tp1.amin(0)


def td_loss(q_t, target_t, mask):
    """sum_i mean (Q_i(s_t, a_t) - target_t)^2: q_t [e ...], target_t and mask [...]; none reaches the target."""
    error = (q_t - target_t.detach()).square()  # e ...
    return masked_mean(error, mask.expand_as(error)) * len(q_t)


def smoothed(action, noise, clip):
    """Target policy smoothing (TD3, Eq. 14): the action [... a] in [-1, 1] plus noise, itself cut at +-clip."""
    return (action + noise.clamp(-clip, clip)).clamp(-1, 1)
