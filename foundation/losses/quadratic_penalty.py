"""Keeping weights near the ones that earlier tasks ended with (continual learning)."""

import torch


def quadratic_penalty(weights, anchor, importance):
    """1/2 sum_i F_i (theta_i - theta*_i)^2 (EWC, Eq. 3, arXiv:1612.00796), 0 for names that have no anchor yet.

    weights, anchor, importance: {name: tensor}. F = 1 everywhere is L2 regularisation towards the anchor.
    """
    terms = [(importance[name] * (weights[name] - value).square()).sum() for name, value in anchor.items()]
    return 0.5 * sum(terms) if terms else torch.zeros(())


def merge(anchor, importance, weights, new):
    """(anchor, importance) whose penalty is, up to a constant, the old one plus that of `new` around `weights`.

    The sum of two parabolas is one: F = F1 + F2 around (F1 theta1 + F2 theta2) / F, so that any number of tasks costs
    the memory of one. Where nothing matters, the weights themselves.
    """
    if not anchor:
        return {name: weights[name].clone() for name in new}, dict(new)
    total = {name: importance[name] + value for name, value in new.items()}
    centre = {}
    for name, value in new.items():
        summed = importance[name] * anchor[name] + value * weights[name]
        centre[name] = torch.where(total[name] > 0, summed / total[name].clamp(min=1e-30), weights[name])
    return centre, total
