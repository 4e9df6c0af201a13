"""Who moves the objects of OGBench's manipulation tasks: the package's own players, and what they are to do next."""

import contextlib

import numpy as np

from foundation.envs.states import require

MIN_NORM, SMOOTHING = 0.4, 0.5  # of the package's players, as OGBench collects with them
SPREAD = np.array([1, 1, 1, 3, 10])  # of the noise over the dimensions of an action
STACKING = {"cube-single": (0, 0), "cube-double": (0, 0.25), "cube-triple": (0.05, 0.35), "cube-quadruple": (0.1, 0.5),
            "scene": (0.5, 0.5)}  # least and greatest chance of an episode that a cube is put on another  # fmt: skip
NEAR, BESIDE, SIZE = 0.04, 0.06, 0.04  # metres: of success, in the way, of a cube
ABOVE = {"cube": 0.16, "button": 0.16, "drawer": 0.18, "window": 0.28}  # metres over the table: the hand has let go
OPEN, AJAR, DRAWER, INSIDE = -0.16, -0.12, (0.33, -0.24, 0.066), -0.15  # metres: of the drawer that is open, that is
# open enough; where a cube is put into it; cubes with less y than the last are in it
PATIENCE = 150  # steps after which another plan is made
KINDS = ("cube", "button", "drawer", "window")


@contextlib.contextmanager
def drawing_from(rng):
    """Inside, NumPy's global random numbers, which the package's players draw, follow from `rng`."""
    before = np.random.get_state()
    np.random.seed(rng.integers(2**32))
    try:
        yield
    finally:
        np.random.set_state(before)


def oracles(env, way, **settings):
    """{kind of object: the package's player} of a task; way: plan | markov."""
    found = {}
    for kind in KINDS if env.task == "scene" else KINDS[:1]:
        module = require(f"ogbench.manipspace.oracles.{way}.{kind}_{way}", "ogbench")
        found[kind] = getattr(module, f"{kind.title()}{way.title()}Oracle")(env=env.world, **settings)
    return found


class CollectionPlayer:
    """Moves what the environment picks, and lets it pick again when that is done. [s] -> [5]"""

    def __init__(self, env, style, rng):
        self.env, self.rng, self.noisy = env, rng, style == "noisy"
        settings = {"min_norm": MIN_NORM} if self.noisy else {"noise": env.noise, "noise_smoothing": SMOOTHING}
        self.oracles, self.oracle = oracles(env, "markov" if self.noisy else "plan", **settings), None
        self.stacking, self.noise = rng.uniform(*STACKING[env.task]), rng.uniform(0, env.noise) * SPREAD

    def __call__(self, observation):
        env, rng = self.env, self.rng
        if self.oracle is None or self.oracle.done:
            if self.oracle is not None:
                env.info = env.world.set_new_target(p_stack=self.stacking)[1]
            self.oracle = self.oracles[env.info["privileged/target_task"]]
            with drawing_from(rng):
                self.oracle.reset(observation, env.info)
        if self.noisy and rng.random() < env.random:
            return rng.uniform(-1, 1, len(SPREAD)).astype(np.float32)
        action = self.oracle.select_action(observation, env.info)
        return np.clip(action + rng.normal(0, self.noise) if self.noisy else action, -1, 1).astype(np.float32)


class TaskPlayer:
    """Moves one object after another until all are as in the goal. [s] -> [5]

    `step` is what is being done: (kind of object, its number, where to), None = to be decided.
    """

    def __init__(self, env):
        self.env, self.oracles, self.step, self.age = env, oracles(env, "markov", min_norm=MIN_NORM), None, 0

    def start(self):
        """Begins another episode; where the hand rests in the end follows from its seed."""
        self.step = None
        for oracle in self.oracles.values():
            with drawing_from(self.env.rng):
                oracle.reset(None, None)

    def __call__(self, observation):
        info = self.env.info
        if self.env.style:
            kind = info["privileged/target_task"]
        else:
            if self.step is None or self._done():
                self.step, self.age = self._next(), 0
            self.age += 1
            if self.step is None:
                return np.zeros(len(SPREAD), np.float32)
            kind, info = self.step[0], {**info, **self._told()}
        return self.oracles[kind].select_action(observation, info).astype(np.float32)

    def _told(self):
        """What the package's players are to know of `step`."""
        (kind, number, target), info, world = self.step, self.env.info, self.env.world
        if kind == "cube":
            told = {"block": number, "block_pos": target, "block_yaw": np.zeros(1)}
        elif kind == "button":
            top = world._data.site_xpos[world._button_site_ids[number]]
            told = {"button": number, "button_state": target, "button_top_pos": top}
        else:
            way = target - info[f"privileged/{kind}_pos"].item()
            handle = info[f"privileged/{kind}_handle_pos"]
            told = {f"{kind}_handle_pos": handle + ((0, -way, 0) if kind == "drawer" else (way, 0, 0))}
        return {f"privileged/target_{name}": value for name, value in told.items()}

    def _done(self):
        """Whether the object is where it is to be, and the hand away from it."""
        (kind, number, target), info = self.step, self.env.info
        if kind == "cube":
            reached = np.linalg.norm(self._place(number) - target) <= NEAR
        elif kind == "button":
            reached = info[f"privileged/button_{number}_state"] == target
        else:
            reached = abs(info[f"privileged/{kind}_pos"].item() - target) <= NEAR / 2
        free = kind != "cube" or info["proprio/gripper_contact"] < 0.1
        return (reached and free and info["proprio/effector_pos"][2] > ABOVE[kind]) or self.age > PATIENCE

    def _place(self, number):
        return self.env.info[f"privileged/block_{number}_pos"]

    def _next(self):
        """The next step of a plan from the state as it is, or None."""
        return self._scene() if self.env.task == "scene" else self._cubes()

    def _cubes(self):
        """A cube that nothing lies on, to its goal, the lower ones first; out of the way if all goals are taken."""
        world = self.env.world
        goals = world._data.mocap_pos[world._cube_target_mocap_ids].copy()
        places = np.array([self._place(i) for i in range(len(goals))])
        there = np.linalg.norm(places - goals, axis=1) <= NEAR
        above = (places[:, None, 2] + SIZE / 2 < places[None, :, 2]) & near(places, places)  # n n: the second is higher
        loose = [i for i in np.argsort(goals[:, 2]) if not there[i] and not above[i].any()]
        for i in loose:
            taken = near(goals[i : i + 1], places)[0] & (np.arange(len(goals)) != i)
            below = near(goals[i : i + 1], goals)[0] & (goals[:, 2] < goals[i, 2])
            if there[below].all() and (taken == below).all():
                return "cube", i, goals[i]
        if loose:
            low, high = world._target_sampling_bounds
            spots = np.stack(np.meshgrid(*np.linspace(low, high, 5).T), -1).reshape(-1, 2)
            apart = np.linalg.norm(spots[:, None] - np.concatenate([places, goals])[None, :, :2], axis=-1).min(1)
            return "cube", loose[0], np.array([*spots[apart.argmax()], SIZE / 2])
        return None

    def _scene(self):
        """The cube, then drawer and window, both behind the locks that the buttons toggle, then the buttons."""
        info, world = self.env.info, self.env.world
        drawer, goal = info["privileged/drawer_pos"].item(), world._data.mocap_pos[world._cube_target_mocap_ids[0]]
        if goal[1] < INSIDE and not world._is_in_drawer(self._place(0)):
            return ("cube", 0, np.array(DRAWER)) if drawer <= AJAR else self._slid("drawer", 0, OPEN)
        if goal[1] >= INSIDE and np.linalg.norm(self._place(0) - goal) > NEAR:
            return "cube", 0, goal.copy()
        for number, kind in enumerate(("drawer", "window")):
            target = getattr(world, f"_target_{kind}_pos")
            if abs(info[f"privileged/{kind}_pos"].item() - target) > NEAR:
                return self._slid(kind, number, target)
        for number, target in enumerate(world._target_button_states):
            if info[f"privileged/button_{number}_state"] != target:
                return "button", number, target
        return None

    def _slid(self, kind, number, target):
        """Moves what the button of that number locks, once it is unlocked."""
        locked = not self.env.info[f"privileged/button_{number}_state"]
        return ("button", number, 1) if locked else (kind, number, target)


def near(some, others):
    """Whether points [n 3] stand over or under points [m 3], bool [n m]."""
    return np.linalg.norm(some[:, None, :2] - others[None, :, :2], axis=-1) < BESIDE
