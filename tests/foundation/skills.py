"""A tiny policy of skills as a hub folder, untrained, whose actions are as large as the bounds."""

import torch

from models.hilbert import HilbertPolicy
from pipelines import checkpoint


def write_skills(folder, spaces, statistics=None, **options):
    """HilbertPolicy for `spaces` -> its folder. Skills of 4 numbers."""
    net = {"state_dim": spaces.state_dim, "action_dim": spaces.action_dim, "n_actions": spaces.n_actions}
    net |= {"latent_dim": 4, "width": 16, "layers": 1, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = HilbertPolicy(**net)
    with torch.no_grad():
        policy.actor.out.weight.mul_(30)
    extras = {"spaces": spaces.to_dict(), "fps": 10.0, "condition": "skill", "statistics": statistics or {}}
    return checkpoint.save(folder, {"_target_": "models.hilbert.HilbertPolicy", **net}, policy, extras, "card")
