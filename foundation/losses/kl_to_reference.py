"""Keeping a policy near a frozen one."""

from foundation.losses.masked import masked_mean


def kl_to_reference(reference, policy, mask):
    """KL(reference || policy), the auxiliary loss that anchors RL fine-tuning to the pretrained policy.

    VPT, arXiv:2206.11795, section "Fine-tuning with reinforcement learning": it replaces the entropy bonus.
    `reference` and `policy` are distributions [b t] with `kl(other)`. No gradient reaches the reference.
    The release sums the heads' divergences unweighted; ours is the divergence of the joint action (models.heads.Joint).
    """
    return masked_mean(reference.detach().kl(policy), mask)


def anchor_weight(rho, decay, iteration):
    """rho decayed once per iteration: rho * decay^iteration (VPT: 0.2 * 0.9995^k)."""
    return rho * decay**iteration
