"""The loss of intention-conditioned value functions (ICVF, Ghosh et al. 2023, arXiv:2304.04782)."""

from foundation.losses.expectile import expectile_weight

REDUCTIONS = {"min": lambda v: v.amin(0), "mean": lambda v: v.mean(0)}


def temporal_difference(value_tp1, reached, gamma):
    """r + gamma m V(s', g): r = -1 and m = 1, or r = m = 0 where s is g. value_tp1 [... b], reached bool [b]."""
    going = (~reached).to(value_tp1.dtype)
    return going * (gamma * value_tp1 - 1)


def intent_advantage(towards_t, towards_tp1, reached, gamma, reduce="min"):
    """How much a step helps someone on the way to z: r_z + gamma m_z min_k Vt_k(s', z, z) - mean_k Vt_k(s, z, z).

    towards_t, towards_tp1 [k b]: Vt(s, z, z), Vt(s', z, z) of the target network; reached bool [b]: s is z.
    reduce: min | mean over the members, of the first term only. Returns [b].
    """
    target = temporal_difference(REDUCTIONS[reduce](towards_tp1), reached, gamma)
    return target - towards_t.mean(0)


def intent_value_loss(value_t, value_tp1, reached, advantage, gamma, expectile):
    """sum_k mean |expectile - 1(A < 0)| (r + gamma m Vt_k(s', s+, z) - V_k(s, s+, z))^2.

    value_t, value_tp1 [k b]: V(s, s+, z) and, of the target network, Vt(s', s+, z): each member follows its own target;
    reached bool [b]: s is s+; advantage [b] of the step for the intent z. Neither target nor advantage get a gradient.
    """
    target = temporal_difference(value_tp1.detach(), reached, gamma)  # k b
    weight = expectile_weight(advantage, expectile)  # b
    return (weight * (target - value_t).square()).mean(-1).sum()
