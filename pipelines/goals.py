"""Which states are goals of which: index arithmetic on episodes, without their data.

An episode of t steps has t + 1 states, the last of which is its final observation. Laid end to end, the states of
episode e are rows offsets[e]:offsets[e + 1] of `state_offsets`, and step i of the flat arrays of `Trajectories` starts
in row `state_rows(offsets, i)` and ends in the next one. The final observation may be a goal, which the data of OGBench
and HILP's release cannot express (they drop it): a step there that is the last of its episode has itself as the goal.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.schema import DataError

WITHIN = ("geometric", "uniform", "ahead")


def state_offsets(offsets):
    """Offsets of steps [E+1] -> offsets of states [E+1]: one state more per episode than it has steps."""
    return np.asarray(offsets) + np.arange(len(offsets))


def state_rows(offsets, steps):
    """Rows of the states in which `steps` int [b] start; offsets: of steps [E+1]."""
    return steps + np.searchsorted(offsets, steps, side="right") - 1


@dataclass(frozen=True)
class Goals:
    """Goals of states: the state itself, a later one of its episode, or any of the data, by three probabilities.

    offsets: int [E+1], rows of state of each episode. within: how later ones are drawn, `geometric` = so many steps on,
    at least one, geometric with parameter 1 - gamma, clipped at the episode's last state (HILP, arXiv:2402.15567) |
    `uniform` = over the rest of the episode, the state itself included (ICVF, arXiv:2304.04782) | `ahead` = the same
    without it, as actors' goals in OGBench (arXiv:2410.20092), which draws the first and last half as often.
    """

    offsets: np.ndarray
    p_current: float = 0.0
    p_trajectory: float = 0.625
    p_random: float = 0.375
    within: str = "geometric"
    gamma: float = 0.99

    def __post_init__(self):
        given = (self.p_current, self.p_trajectory, self.p_random)
        if min(given) < 0 or abs(sum(given) - 1) > 1e-6:
            names = "p_current, p_trajectory, p_random"
            raise DataError(f"goals: {names} = {given}: expected three shares of at least 0 that add up to 1")
        if self.within not in WITHIN:
            raise DataError(f"goals: within={self.within!r}: expected one of {list(WITHIN)}")
        if self.within == "geometric" and not 0 <= self.gamma < 1:
            raise DataError(f"goals: gamma={self.gamma}: a geometric distance needs 0 <= gamma < 1")

    def last(self, rows):
        """Row of the last state of the episode of every row, int [b]."""
        return self.offsets[np.searchsorted(self.offsets, rows, side="right")] - 1

    def draw(self, rows, generator):
        """Rows of the goals of `rows` int [b]; a pure function of the numpy Generator."""
        rows = np.asarray(rows)
        kind = generator.random(len(rows))
        later, anywhere = self.later(rows, generator), generator.integers(self.offsets[-1], size=len(rows))
        goals = np.where(kind < self.p_current + self.p_trajectory, later, anywhere)
        return np.where(kind < self.p_current, rows, goals)

    def later(self, rows, generator):
        """Rows of goals within the episode; the last state of one is its own goal."""
        last = self.last(rows)
        if self.within != "geometric":
            first = rows if self.within == "uniform" else np.minimum(rows + 1, last)
            return generator.integers(first, last, endpoint=True)
        return np.minimum(rows + generator.geometric(1 - self.gamma, size=len(rows)), last)
