"""Rewards of point mazes as named functions of states, for policies that are told a reward: `reward_of("north_east")`.

All lie in [0, 1] and speak of places as (u, v) in [0, 1]^2, from the west and south end of where the ball can be to the
east and north end, so that they mean the same in every maze. A reward says what a step led to.
"""

import numpy as np

from foundation.envs.states import unknown
from pipelines.schema import DataError

STRIDE = 0.2  # units that a full action moves the ball
WIDTH = 0.2  # deviation of a hill, of the maze's extent: its foot is about half of the maze away


def hill(*tops, width=WIDTH):
    """1 at any of these places, Gaussian slopes."""

    def reward(place, moved):
        squared = np.square(place[:, None] - np.array(tops, float)).sum(-1)  # n tops
        return np.exp(-squared.min(1) / (2 * width**2))

    return reward


def border(place, moved):
    """1 at the edges, falling to 0 at an eighth of the maze away from them."""
    return 1 - 8 * np.minimum(place, 1 - place).min(-1)


def diagonal(place, moved):
    """1 on the line from the south-west to the north-east."""
    return np.exp(-np.square(place[:, 0] - place[:, 1]) / (2 * 0.1**2))


def north(place, moved):
    """A slope over the northern half, 0 south of it."""
    return 2 * place[:, 1] - 1


def eastward(place, moved):
    """How fast the step went east, from 0 at half of a stride to 1: who arrives there has to come back for more."""
    return 2 * moved[:, 0] - 1


REWARDS = {  # name -> function(places [n 2] in [0, 1], moves [n 2] in strides) -> [n], clipped to [0, 1] below
    "south_west": hill((0, 0)), "south_east": hill((1, 0)), "north_west": hill((0, 1)), "north_east": hill((1, 1)),
    "middle": hill((0.5, 0.5), width=0.15), "opposite_corners": hill((0, 1), (1, 0)),
    "border": border, "diagonal": diagonal, "north": north, "eastward": eastward,
}  # fmt: skip


def reward_of(name, world_bounds=None):
    """The function (observation [n 2], next_observation [n 2]) -> reward float32 [n] of a name in REWARDS.

    world_bounds: (low [2], high [2]) of where the ball can be, as of PointMaze.bounds. None = the least and greatest
    states of each call, for those of a whole data set at once.
    """
    if name not in REWARDS:
        raise unknown("reward of states", name, list(REWARDS))

    def reward(observation, next_observation):
        now, following = (np.asarray(states, float) for states in (observation, next_observation))
        if now.ndim != 2 or now.shape != following.shape or now.shape[1] != 2:
            raise DataError(f"reward {name}: states {now.shape} and {following.shape}: expected [n 2] of a point maze,"
                            " before and after the step")  # fmt: skip
        low, high = extent(now, following) if world_bounds is None else np.asarray(world_bounds, float)
        place = (np.clip(following, low, high) - low) / (high - low)
        return np.clip(REWARDS[name](place, (following - now) / STRIDE), 0, 1).astype(np.float32)

    return reward


def extent(*states):
    """(low [2], high [2]) of all these states; DataError where they are no area."""
    low, high = np.min([s.min(0) for s in states], 0), np.max([s.max(0) for s in states], 0)
    if not (high > low).all():
        raise DataError(f"{len(states[0])} states from {low} to {high} show no maze to speak of; give world_bounds")
    return low, high
