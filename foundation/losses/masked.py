"""Means that leave out what a mask excludes."""


def masked_mean(values, mask):
    """Mean of `values` [...] over the places where `mask` bool [...] is True; 0 (with gradient 0) if there are none."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
