"""The loss of Hilbert representations (HILP, arXiv:2402.15567): distances of latents become numbers of steps."""

from foundation.losses.intent_value import intent_advantage, intent_value_loss


def temporal_distance_loss(value_t, target_t, target_tp1, reached, gamma, expectile):
    """sum_k mean |tau - 1(A < 0)| (r + gamma m Vt_k(s', g) - V_k(s, g))^2 (Eqs. 5, 6; the advantage as released).

        A = r + gamma m min_k Vt_k(s', g) - mean_k Vt_k(s, g), of the target network alone
        r = -1, m = 1, or r = m = 0 where s is g

    value_t [e b]: V(s, g); target_t, target_tp1 [e b]: Vt(s, g), Vt(s', g); reached bool [b]: s is g. It is the loss of
    intention-conditioned values with the goal as the outcome and as the intent.
    """
    advantage = intent_advantage(target_t, target_tp1, reached, gamma)
    return intent_value_loss(value_t, target_tp1, reached, advantage, gamma, expectile)
