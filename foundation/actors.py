"""Who acts in an evaluation: a policy with its memory, or a baseline that needs no training.

An actor has `start(slots)` at the first frame, `act(frame) -> actions`, and `keep(rows)` when some slots are done.
"""

import logging
from functools import partial

import numpy as np
import torch

from foundation.envs.doom_player import ScriptedPlayer
from foundation.rollout import on_cpu, take, to_environment
from models.rolling import Rolling
from pipelines.schema import ACTION, CONDITION, FIRST, NEXT_OBSERVATION, OBSERVATION, REWARD, TIMESTEP, DataError
from pipelines.trajectories import Spaces
from pipelines.trajectory_windows import Normalizer, returns_of

log = logging.getLogger("foundation-policy")


class PolicyActor:
    """Samples from a policy (or takes its mode), carrying one memory per environment."""

    def __init__(self, policy, codec, seed=0, greedy=False, device="cpu"):
        self.policy, self.codec, self.greedy, self.device = policy.eval(), codec, greedy, device
        self.seed = seed

    def start(self, slots):
        self.generator = torch.Generator().manual_seed(self.seed)
        self.state = self.policy.initial_state(len(slots), self.device)

    def keep(self, rows):
        """Goes on in these environments only."""
        self.state = take(self.state, rows)

    @torch.no_grad()
    def act(self, frame):
        """Frame of b environments -> b actions."""
        observation, first = torch.from_numpy(frame.observation), torch.from_numpy(frame.first)
        joint, _, self.state = self.policy.step(observation.to(self.device), first.to(self.device), self.state)
        joint = on_cpu(joint)
        return to_environment(self.codec, joint.mode() if self.greedy else joint.sample(self.generator))


class RandomActor:
    """Uniform over the joint classes: the policy that knows nothing."""

    def __init__(self, codec, seed=0):
        self.codec, self.seed = codec, seed

    def start(self, slots):
        self.generator = torch.Generator().manual_seed(self.seed)

    def keep(self, rows):
        pass

    def act(self, frame):
        size = (len(frame.first),)
        buttons = torch.randint(self.codec.n_buttons, size, generator=self.generator)
        camera = torch.randint(self.codec.n_camera, size, generator=self.generator)
        return to_environment(self.codec, torch.stack([buttons, camera], -1))


class NoopActor:
    """Presses nothing."""

    def __init__(self, codec):
        self.codec = codec

    def start(self, slots):
        pass

    def keep(self, rows):
        pass

    def act(self, frame):
        null = torch.tensor([0, self.codec.camera_null]).expand(len(frame.first), 2)
        return to_environment(self.codec, null)


class PlayerActor:
    """The scripted player, which reads the engine's state instead of the picture: what imitation could reach."""

    def __init__(self, seed=0, **style):
        self.seed, self.style = seed, style

    def start(self, slots):
        self.slots = slots
        makers = [getattr(slot.environment, "player", partial(ScriptedPlayer, slot.environment)) for slot in slots]
        self.players = [make(self.seed + slot.index, **self.style) for slot, make in zip(slots, makers, strict=True)]

    def keep(self, rows):
        self.slots, self.players = [self.slots[i] for i in rows], [self.players[i] for i in rows]

    def act(self, frame):
        return [self._act(*row) for row in zip(self.slots, self.players, frame.first, strict=True)]

    @staticmethod
    def _act(slot, player, first):
        if first:
            player.reset()
        return None if slot.done else player.act()  # a finished game has no state to read, and ignores the action


class SequenceActor:
    """Acts on vectors with a sequence policy of a hub folder, which is asked for a return.

    What came is taken off what is asked for: condition = (target - rewards so far) / scale, or, with a policy trained
    on condition=delayed, target / scale throughout; on condition=none, 0. target: a return, "q0.9" = that quantile of
    the training data's returns, None = q0.9. States are normalised as in training. A policy of several tasks has
    scales, quantiles and normalisers of its own for each, chosen by the `tags` of the environments.
    cache: exact = every step computes its window again | rolling = keys and values are kept (models.rolling).
    memory: episode = every episode starts from nothing | task = an in-context policy remembers the episodes before, in
    the same environment.
    """

    def __init__(self, bundle, target=None, seed=0, greedy=True, device="cpu", cache="exact", memory="episode"):
        self.memory = remembered(bundle.net, memory)
        self.policy, self.device, self.seed, self.greedy = acting(bundle.net, cache).to(device), device, seed, greedy
        self.spaces = Spaces.from_dict(bundle.config["spaces"])
        self.scale = float(bundle.statistics.get("returns_scale", 1.0))
        self.wanted, self.statistics = target, bundle.statistics
        self.condition = bundle.config.get("condition", "return")
        self.target = 0.0 if self.condition == "none" else target_return(target, bundle.statistics)
        self.normalizer = Normalizer.from_dict(bundle.statistics) if "state_mean" in bundle.statistics else None

    def start(self, slots):
        self.generator = torch.Generator().manual_seed(self.seed)
        self.state = self.policy.initial_state(len(slots), self.device)
        tags = [getattr(slot.environment, "tags", {}) for slot in slots]
        self.rows = None if self.normalizer is None else self.normalizer.rows(tags)
        self.scales, self.targets = np.full((2, len(slots)), [[self.scale], [self.target]], np.float64)
        if self.statistics.get("returns_by"):
            own = [returns_of(one, self.statistics) for one in tags]
            self.scales = np.array([one["returns_scale"] for one in own])
            self.targets = np.array([target_return(self.wanted, one) for one in own])
        self.asked = self.targets
        order = self.statistics.get("sequence")  # tasks that a continual learner was taught, which may want to be told
        self.tasks = order and np.array([order.index(one["task"]) if one.get("task") in order else -1 for one in tags])
        self.timestep = np.zeros(len(slots), np.int64)
        self.action = None

    def keep(self, rows):
        self.state, self.rows = take(self.state, rows), None if self.rows is None else self.rows[rows]
        self.asked, self.timestep, self.action = self.asked[rows], self.timestep[rows], self.action[rows]
        self.scales, self.targets = self.scales[rows], self.targets[rows]
        self.tasks = None if self.tasks is None else self.tasks[rows]

    @torch.no_grad()
    def act(self, frame):
        """Frame of b environments -> b actions."""
        came = frame.reward if self.condition == "return" else 0.0
        self.asked = np.where(frame.first, self.targets, self.asked - came)
        told = self.asked / self.scales * (self.condition != "none")
        self.timestep = np.where(frame.first, 0, self.timestep + 1)
        normal = np.asarray if self.normalizer is None else lambda states: self.normalizer(states, self.rows)
        now = {
            OBSERVATION: torch.from_numpy(np.asarray(normal(frame.observation), np.float32)),
            CONDITION: torch.from_numpy(told.astype(np.float32))[:, None],
            TIMESTEP: torch.from_numpy(self.timestep.clip(max=self.policy.max_timestep - 1)),
            ACTION: self.action, REWARD: torch.from_numpy((frame.reward / self.scales).astype(np.float32))[:, None],
        }  # fmt: skip
        if frame.following is not None:
            now[NEXT_OBSERVATION] = torch.from_numpy(np.asarray(normal(frame.following), np.float32))
        if self.action is None:
            del now[ACTION], now[REWARD]
        if self.tasks is not None:
            now["task"] = torch.from_numpy(self.tasks)
        first = torch.from_numpy(frame.first)
        if self.memory == "task":
            now[FIRST], first = first, torch.full_like(first, self.action is None)
        now, first = {name: value.to(self.device) for name, value in now.items()}, first.to(self.device)
        try:
            distribution, _, self.state = self.policy.step(now, first, self.state)
        except ValueError as error:  # an in-context policy ran out of positions
            raise DataError(str(error)) from error
        self.action = self.choose(distribution)
        return list(self.spaces.from_unit(self.policy.unit(self.action).numpy()))

    def choose(self, distribution):
        """The actions of b episodes as the policy says them, on the CPU: [b a] in [-1, 1] or bins, or [b]."""
        return (distribution.mode() if self.greedy else distribution.cpu().sample(self.generator)).cpu()


def remembered(policy, memory):
    """`memory`; DataError unless the policy can."""
    if memory not in ("episode", "task"):
        raise DataError(f"memory={memory!r}: expected episode or task")
    if memory == "task" and not hasattr(policy, "query"):
        raise DataError(f"memory=task: a {type(policy).__name__} knows its own episode only; give one of method=dpt")
    return memory


def acting(policy, cache):
    """The policy in evaluation mode; cache=rolling: computing each token once, see models.rolling."""
    if cache not in ("exact", "rolling"):
        raise DataError(f"cache={cache!r}: expected exact or rolling")
    try:
        return (Rolling(policy) if cache == "rolling" else policy).eval()
    except ValueError as error:
        raise DataError(str(error)) from error


def target_return(target, statistics):
    """The return to ask for; a number, or "q<quantile>" of the training data's returns. Warns beyond their best."""
    known = statistics.get("returns") or {}
    try:
        quantiles = sorted((float(q), float(value)) for q, value in known.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"the model's statistics hold damaged quantiles of returns ({error})") from error
    target = "q0.9" if target is None else target
    if isinstance(target, str):
        share = number(target.removeprefix("q"))
        if not target.startswith("q") or share is None or not 0 <= share <= 1:
            raise DataError(f"target={target!r}: expected a return, or a quantile such as q0.9")
        if not quantiles:
            raise DataError(f"target={target}: the model does not say what returns its data had; give a number")
        return float(np.interp(share, *zip(*quantiles, strict=True)))
    if not np.isfinite(target):
        raise DataError(f"target={target}: expected a finite return, or a quantile such as q0.9")
    if quantiles and target > quantiles[-1][1]:
        log.warning("target=%g is beyond the best return of the training data, %g (q1)", target, quantiles[-1][1])
    return float(target)


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


class UniformActor:
    """Uniform over the box of actions, or over the discrete ones: the policy that knows nothing."""

    def __init__(self, spaces, seed=0):
        self.spaces, self.seed = spaces, seed

    def start(self, slots):
        self.generator = np.random.default_rng(self.seed)

    def keep(self, rows):
        pass

    def act(self, frame):
        b, spaces = len(frame.first), self.spaces
        if spaces.n_actions is not None:
            return list(self.generator.integers(spaces.n_actions, size=b))
        return list(spaces.from_unit(self.generator.uniform(-1, 1, (b, spaces.action_dim))))


class RestingActor:
    """The middle of every action's bounds, or the first of the discrete ones."""

    def __init__(self, spaces):
        self.spaces = spaces

    def start(self, slots):
        pass

    def keep(self, rows):
        pass

    def act(self, frame):
        b, spaces = len(frame.first), self.spaces
        return list(spaces.from_unit(np.zeros((b, spaces.action_dim)) if spaces.n_actions is None else np.zeros(b)))


class ScriptedActor:
    """The environment's own scripted policy: what made the demonstrations, and what imitation could reach."""

    def __init__(self, spaces):
        pass

    def start(self, slots):
        self.policies = [slot.environment.scripted() for slot in slots]
        if None in self.policies:
            raise DataError("the task has no scripted player; leave out `player`")

    def keep(self, rows):
        self.policies = [self.policies[i] for i in rows]

    def act(self, frame):
        return [policy(observation) for policy, observation in zip(self.policies, frame.observation, strict=True)]
