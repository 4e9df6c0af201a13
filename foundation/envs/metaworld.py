"""Meta-World: 50 manipulation tasks of one robot arm (39 numbers in, 4 out), with a scripted policy for each.

The package as it comes has five traps, closed here: it clips an observed goal to zero, ignores `reset(seed=)`, repeats
one object and goal, raises after 500 steps, and tells success of the present step only.
"""

import warnings
from functools import partial

import numpy as np

from foundation.envs.states import StateEnv, require, single, unknown
from pipelines.trajectories import Spaces

VERSION = "-v3"
CW10 = tuple(  # order of Continual World (arXiv:2105.10919), as L2M fine-tunes
    name + VERSION
    for name in (
        "hammer", "push-wall", "faucet-close", "push-back", "stick-pull", "handle-press-side", "push", "shelf-place",
        "window-close", "peg-unplug-side",
    )
)  # fmt: skip
MT40 = tuple(  # the others: L2M's pretraining tasks
    name + VERSION
    for name in (
        "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown",
        "button-press-topdown-wall", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn",
        "disassemble", "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open",
        "faucet-open", "hand-insert", "handle-press", "handle-pull", "handle-pull-side", "lever-pull",
        "peg-insert-side", "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-back",
        "plate-slide-back-side", "plate-slide-side", "reach", "reach-wall", "soccer", "stick-push", "sweep",
        "sweep-into", "window-open",
    )
)  # fmt: skip
TASKS = tuple(sorted(CW10 + MT40))
GROUPS = {"mt50": TASKS, "mt40": MT40, "cw10": CW10}  # names that stand for several tasks


def full_name(name):
    """reach or reach-v3 -> reach-v3; DataError lists what is spelled like it."""
    full = name if str(name).endswith(VERSION) else f"{name}{VERSION}"
    if full not in TASKS:
        raise unknown("Meta-World task", name, [*GROUPS, *(task.removesuffix(VERSION) for task in TASKS)])
    return full


class MetaWorld(StateEnv):
    """One task. Every reset places the object and the goal anew, by its seed; the goal is part of the observation.

    Observation: hand (3), gripper opening (1), objects (14), the same of the step before (18), goal (3), in metres.
    Action: motion of the hand (3) and closing of the gripper (1) in [-1, 1]. Reward: dense, 0 to 10 a step.
    """

    def __init__(self, task, episode_steps=200, seed=None):
        self.task = full_name(single(task))
        super().__init__(Spaces(39, 4, low=(-1.0,) * 4, high=(1.0,) * 4), 80, episode_steps, seed)
        simulators = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS
        self._simulator = simulators[self.task](reward_function_version="v2")
        self._simulator._partially_observable = False
        # the bounds that `step` clips to were computed while the goal was hidden, and allow it nothing but zero
        self._simulator.__dict__.pop("sawyer_observation_space", None)
        self._simulator._set_task_called = True  # a task of theirs is one fixed placement
        self._simulator._freeze_rand_vec = False
        self._simulator.seeded_rand_vec = True  # draw from the generator that `seed` sets, not from NumPy's global one
        self._simulator.max_path_length = 10**9  # time is up when we say so
        self._simulator.touching_object = partial(touching, self._simulator)  # a third of a step's time in their loops

    @classmethod
    def names(cls, name):
        return list(GROUPS.get(name) or [full_name(name)])

    def _begin(self, seed):
        self._simulator.seed(seed)
        return self._simulator.reset()[0]

    def _advance(self, action):
        observation, reward, _, _, info = self._simulator.step(action)
        return observation, reward, False, False, info["success"] > 0

    def scripted(self):
        """The package's policy for this task, clipped: up to half of its numbers lie outside [-1, 1]."""
        warnings.filterwarnings("ignore", "Constant.s. may be too high")  # says so at every step
        policy = require("metaworld.policies", "metaworld").ENV_POLICY_MAP[self.task]()
        return lambda observation: np.clip(policy.get_action(observation), -1, 1).astype(np.float32)

    def close(self):
        self._simulator.close()


def touching(simulator, geom):
    """Whether both fingers press on the geometry of that number: the package's own test, over arrays."""
    data = simulator.data
    pairs, rows = data.contact.geom, data.contact.efc_address  # n 2, n
    if not len(pairs):
        return False
    with_geom = (pairs == geom).any(1)
    pads = (data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
    return all(data.efc_force[rows[with_geom & (pairs == pad).any(1)]].sum() > 0 for pad in pads)
