"""Imitation of recorded or pseudo-labelled actions, and of an IDM's targets, by maximum likelihood."""


def weighted_mean(values, weight):
    """Mean of `values` [...] with non-negative `weight` [...]; 0 (with gradient 0) where all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp(min=1e-8)


def inverse_dynamics_nll(distribution, keys, bins, weight):
    """Sum over keys and mouse axes of -log p (VPT, arXiv:2206.11795, IDM training), mean over frames.

    distribution: Factored over [b t]; keys int [b t k], bins int [b t 2], weight float [b t], 0 = padding.
    """
    return weighted_mean(-distribution.log_prob(keys, bins), weight)


def behaviour_cloning_nll(distribution, action, weight):
    """-log pi(a_t | o_<=t) (Eq. 1, arXiv:2206.11795) with the camera term only where the mouse moves.

    The release always adds the camera term, which trains it towards "null" wherever the buttons class holds the mouse
    still. distribution: Joint over [b t]; action int64 [b t 2]; weight float [b t].
    """
    return weighted_mean(-distribution.log_prob(action), weight)


def soft_behaviour_cloning_nll(distribution, buttons_target, camera_target, weight):
    """Cross-entropy to the labeller's distribution instead of its argmax; both targets [b t k]."""
    return weighted_mean(-distribution.expected_log_prob(buttons_target, camera_target), weight)
