"""States and goals as environments show them, on their way to a policy that was trained on data of theirs."""

import logging

import numpy as np
import torch

from pipelines.schema import DataError
from pipelines.trajectory_windows import Normalizer
from pipelines.values import is_number, list_of

log = logging.getLogger("foundation-policy")

MARGIN = 1e-3  # by which a goal may lie outside of known states unnoticed


class SeenStates:
    """The policy of a loaded Bundle, and states as it takes them: normalised as in training, on its device."""

    def __init__(self, bundle, device="cpu"):
        self.net, self.device = bundle.net.to(device).eval(), device
        statistics = bundle.statistics or {}
        self.normalizer = Normalizer.from_dict(statistics) if "state_mean" in statistics else None
        self.bounds, self.warned = bounds_of(statistics, self.net.state_dim), False

    def seen(self, states):
        """As the network takes them, float32 [n s] on its device; DataError unless they fit and are finite."""
        states = torch.atleast_2d(torch.as_tensor(states, dtype=torch.float32))
        if states.ndim != 2 or states.shape[1] != self.net.state_dim:
            raise DataError(f"states {list(states.shape)}: expected {self.net.state_dim} numbers each, [n s]")
        if not torch.isfinite(states).all():
            raise DataError("a state of the prompt is no finite number; check where it comes from")
        if self.normalizer is not None:
            states = torch.from_numpy(self.normalizer(states.cpu().numpy()))
        return states.to(self.device)

    def check_goals(self, goals):
        """A warning about goals outside of the states of the training data; DataError at more than their extent from
        them."""
        if self.bounds is None:
            return
        goals, (low, high) = torch.atleast_2d(torch.as_tensor(goals)).cpu().numpy(), self.bounds
        outside = np.maximum(low - goals, goals - high)  # n s
        far = (outside > high - low + MARGIN).any(1)
        if far.any():
            raise DataError(f"the goal {goals[far][0].round(2)} lies far outside of the states that the policy was"
                            f" trained on, {low.round(2)} to {high.round(2)}; give one among them")  # fmt: skip
        if (outside > MARGIN).any() and not self.warned:
            self.warned = True
            log.warning("a goal lies %.3g outside of the states that the policy was trained on", outside.max())


def bounds_of(statistics, state_dim):
    """(least, greatest) states of the training data [s], None where they are not known; DataError if damaged."""
    found = [statistics.get(name) for name in ("state_low", "state_high")]
    if found == [None, None]:
        return None
    if any(not list_of(is_number)(one) or len(one) != state_dim for one in found):
        raise DataError(f"the model's state_low, state_high are not {state_dim} numbers each; copy it again")
    return tuple(np.array(one, np.float32) for one in found)
