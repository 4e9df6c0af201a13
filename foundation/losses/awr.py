"""Imitation of the actions that turned out better than expected."""


def awr_weight(advantage, temperature, clip):
    """min(exp(beta A), clip), without gradient: cut after the exponential, as the releases of IQL and HILP do."""
    return (temperature * advantage.detach()).exp().clamp(max=clip)


def awr_loss(log_prob, advantage, temperature, clip=100.0):
    """-mean min(exp(beta A), clip) log pi(a | s) (advantage-weighted regression, arXiv:1910.00177; IQL, Eq. 7).

    log_prob, advantage [...].
    """
    return -(awr_weight(advantage, temperature, clip) * log_prob).mean()
