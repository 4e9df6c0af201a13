"""Expectile regression: a mean that leans to one side, a maximum over what was seen where it leans far."""


def expectile_weight(difference, expectile):
    """|tau - 1(u < 0)| [...], without gradient; u = 0 is on the side of tau."""
    return (expectile - (difference.detach() < 0).to(difference.dtype)).abs()


def expectile_loss(difference, expectile):
    """mean |tau - 1(u < 0)| u^2 (IQL, Eq. 5, arXiv:2110.06169); u = target - prediction [...], without gradient in the
    target."""
    return (expectile_weight(difference, expectile) * difference.square()).mean()
