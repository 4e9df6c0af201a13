"""Episodes of vectors -> contexts of one task each, for in-context policies, as a LightningDataModule.

    episodes --by--> tasks --order--> contexts of `length` steps, across the ends of episodes --> batches

Every step is a query about its state after all steps before it. What led from an episode to the next is no transition:
the last step of an episode led to its final observation, and acting keeps to that (`memory=task` of evaluate). All
tasks share one normalisation, since which task it is has to be found out from the context.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.envs.worlds import differences
from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from foundation.pretraining.trajectory_data import TrajectoryData, describe
from pipelines import schema
from pipelines.schema import DataError
from pipelines.trajectory_windows import tag_of

ORDERS = ("return", "recorded", "random")
TARGETS = ("optimal", "action")
HELD_OUT_BATCHES = 4


class ContextData(TrajectoryData):
    """Options as in configs/data/contexts.yaml. A batch is a pure function of (seed, step, data)."""

    def __init__(self, train, where, episodes, by, validation, heldout, on_damage, batch_size, workers, length, target,
                 order, cut, shuffle, reward_scale, normalise, steps, seed):  # fmt: skip
        check(length, target, order, cut, normalise)
        names = [by] if isinstance(by, str) else by
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"data.by={by}: expected the name of a tag that says the task, or a list of names")
        if reward_scale is not None and reward_scale <= 0:
            raise DataError(f"data.reward_scale={reward_scale}: expected a number above 0, or null")
        self.by, self.heldout = tuple(names), tuple(map(str, heldout or ()))
        self.made = {"length": length, "target": target, "order": order, "cut": cut, "shuffle": shuffle}
        self.one_query = False  # a batch asks about the last state only; set by the network
        super().__init__(train, where, episodes, validation, on_damage, batch_size, workers, length, "length", 0.1, 0.1,
                         "none", reward_scale, 1.0, normalise, steps, seed)  # fmt: skip

    def _divided(self, data, validation, seed):
        """(train, held out): the tasks `heldout`, or a share of all tasks, whole."""
        self.world = world_of(data)
        tasks = np.array(["/".join(task_of(tags, self.by)) for tags in data.tags])
        names, held_out = np.unique(tasks), set(self.heldout)
        if self.heldout and validation is not None:
            raise DataError(f"data.heldout and data.validation={validation} both say what validates; set one of them")
        if unknown := held_out - set(names):
            raise DataError(f"data.heldout: no tasks {sorted(unknown)}; there are {names[:60].tolist()}")
        if isinstance(validation, float):
            names = np.random.default_rng(seed).permutation(names)
            held_out = set(names[: int(np.ceil(validation * len(names) - 1e-9))])
        chosen = np.isin(tasks, sorted(held_out))
        if chosen.all() or (isinstance(validation, float) and not chosen.any()):
            raise DataError(f"{len(held_out)} of {len(names)} tasks held out leave one part empty; see data.by")
        parts = data.select(~chosen), data.select(chosen) if chosen.any() else None
        if validation is None or isinstance(validation, float):
            return parts
        held_out = self.load(validation)
        if world_of(held_out) != self.world:
            raise DataError(f"data.validation={validation} holds {world_of(held_out)}, data.train {self.world}")
        return parts[0], held_out

    def _returns(self, data, scale):
        """Returns as they are; rewards are brought to [-1, 1]."""
        return describe(data.returns, scale or float(np.abs(data.reward).max()))

    def _cut(self):
        parts = (self.data, (self.seed, TRAIN)), (self.held_out, (0, HELD_OUT))
        self.dataset, self.validation = (data and Contexts(data, key, self, **self.made) for data, key in parts)

    def derive(self, net):
        longest = max(1, self.length - 1)  # transitions before the last query
        return super().derive({**net, "context": longest if net.get("context") is None else net["context"]})

    def inherit(self, statistics, config=None):
        theirs = (config or {}).get("world")
        if self.world and theirs and differences(self.world, theirs):
            raise DataError(f"the policy of init= was trained in {theirs}, data.train is of {self.world}")
        super().inherit(statistics, config)

    def contract(self):
        return {**super().contract(), **({} if self.world is None else {"world": self.world})}

    def provenance(self):
        kind = "the best action at hand" if self.made["target"] == "optimal" else "the recorded action"
        held_out = ", ".join(self.heldout) or str(self.named["validation"])
        return {**super().provenance(), "target": kind, "held out": held_out}

    def setup(self, stage):
        """DataError where the network takes no contexts, or others."""
        net = self.trainer.lightning_module.net
        if not hasattr(net, "query"):
            raise DataError(f"a {type(net).__name__} learns from no contexts; use method=dpt, or data=trajectories")
        if net.n_actions != self.spaces.n_actions:
            raise DataError(f"the policy has n_actions={net.n_actions}, the data {self.spaces.n_actions}")
        self.one_query = net.query == "first"
        super().setup(stage)

    def train_dataloader(self):
        return by_step(self.dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return [] if self.validation is None else DataLoader(self.validation, batch_size=None)


class Contexts(Dataset):
    """Item t = batch t of contexts, zero where one is shorter than `length`.

    OBSERVATION, NEXT_OBSERVATION float32 [b t s], normalised; ACTION [b t a] or [b t]; SCALED_REWARD = reward / scale,
    WEIGHT float32 [b t]; MASK bool [b t]; TARGET as ACTION. Or, where the owner says `one_query`, the context of all
    steps but the last: [b t-1 ...], REWARD in place of SCALED_REWARD, QUERY [b 1 s], PLACE int64 [t] = 0, 1, ...,
    TARGET and WEIGHT [b t].
    """

    rank, world_size = 0, 1

    def __init__(self, data, key, owner, length, target, order, cut, shuffle):
        if target == "optimal" and data.optimal_action is None:
            raise DataError(
                "not all of the episodes say what is optimal: collect them in an environment with a scripted player, or"
                " imitate what was done, with data.target=action"
            )
        if shuffle and (data.next_observation is None or any(tags.get("ordered", True) for tags in data.tags)):
            raise DataError(
                "data.shuffle=true is for contexts of single transitions, which are independent; the order of these"
                " steps says something"
            )
        self.data, self.key, self.owner, self.length = data, key, owner, length
        self.order, self.cut, self.shuffle, self.batch_size = order, cut, shuffle, owner.batch_size
        self.target = data.optimal_action if target == "optimal" else data.action
        self.returns, self.lengths = data.returns, data.lengths
        groups = {}
        for episode, tags in enumerate(data.tags):
            groups.setdefault(task_of(tags, owner.by), []).append(episode)
        if order == "return" and all(len(members) == 1 for members in groups.values()):
            raise DataError(
                "data.order=return puts the worse episodes of a task first, but every task of these data has one"
                " episode; see data.by, or leave it out"
            )
        if mixed := [task for task, members in groups.items() if len({unknown(data.tags[e]) for e in members}) > 1]:
            raise DataError(
                f"data.by={list(owner.by)}: episodes of {'/'.join(mixed[0])} are of different tasks of a world, which"
                " must not mix in a context; set data.by=[task,seed], or choose some of the episodes with data.where"
            )
        self.members = [np.array(members) for members in groups.values()]  # episodes of each task

    def __len__(self):
        return HELD_OUT_BATCHES if self.key[1] == HELD_OUT else self.owner.steps

    def __getitem__(self, step):
        first = self.rank * self.batch_size
        found = [self.steps((*self.key, step, row)) for row in range(first, first + self.batch_size)]
        rows = np.zeros((len(found), self.length), np.int64)
        mask = np.arange(self.length) < np.array([len(one) for one in found])[:, None]
        rows[mask] = np.concatenate(found)
        batch = self._gathered(rows, mask)
        return one_query(batch) if self.owner.one_query else batch

    def steps(self, key):
        """int64 [<= length]: the steps of a context, as rows of the flat arrays. Every task is as probable."""
        rng = np.random.default_rng(key)
        members = self.members[rng.integers(len(self.members))]
        cut = rng.random() < self.cut
        members = self._suffix(members, rng) if self.order == "recorded" else rng.permutation(members)
        ends = self.lengths[members].cumsum()
        members = members[: np.searchsorted(ends, self.length) + (2 if cut else 1)]
        if self.order == "return":
            members = members[self.returns[members].argsort(kind="stable")]
        rows = np.concatenate([np.arange(*self.data.offsets[e : e + 2]) for e in members])
        spare = min(self.lengths[members[0]] - 1, max(0, len(rows) - self.length))
        rows = rows[rng.integers(spare + 1) if cut else 0 :][: self.length]
        return rng.permutation(rows) if self.shuffle else rows

    def _suffix(self, members, rng):
        """The episodes from a random one on, after which enough steps are left."""
        lengths = self.lengths[members]
        left = lengths[::-1].cumsum()[::-1]
        return members[rng.integers(max(1, (left >= self.length).sum())) :]

    def _gathered(self, rows, mask):
        data, normal = self.data, self.owner.normalizer or np.asarray
        scale = np.float32(self.owner.returns["returns_scale"])
        batch = {
            schema.OBSERVATION: normal(data.observation.take(rows, 0)),
            schema.NEXT_OBSERVATION: normal(data.following(rows)), schema.ACTION: data.action.take(rows, 0),
            schema.SCALED_REWARD: data.reward.take(rows) / scale, schema.TARGET: self.target.take(rows, 0),
        }  # fmt: skip
        for value in batch.values():
            value[~mask] = 0
        batch |= {schema.MASK: mask, schema.WEIGHT: mask.astype(np.float32)}
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def one_query(batch):
    """The same contexts with one query each: the last step's state, asked after each number of the steps before it."""
    mask = batch[schema.MASK]
    b, t = mask.shape
    rows, last, place = torch.arange(b), mask.sum(1) - 1, torch.arange(t)
    weight = (place <= last[:, None]).float()
    names = (schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.ACTION)
    context = {name: batch[name][:, :-1] for name in names}
    target = batch[schema.TARGET][rows, last][:, None]
    return {
        **context, schema.REWARD: batch[schema.SCALED_REWARD][:, :-1], schema.PLACE: place, schema.WEIGHT: weight,
        schema.QUERY: batch[schema.OBSERVATION][rows, last][:, None], schema.MASK: mask,
        schema.TARGET: target.expand(b, t, *target.shape[2:]),
    }  # fmt: skip


def world_of(data):
    """The config of the world whose contexts these are, or None; DataError where there are several."""
    found = {str(tags.get("world")): tags.get("world") for tags in data.tags}
    if len(found) > 1:
        kinds = " and ".join(sorted(found)[:3])
        raise DataError(f"contexts of several worlds do not go together: {kinds}; choose some with data.where")
    return next(iter(found.values()))


def unknown(tags):
    """Which task of a world an episode was, as text."""
    return str(tags.get("unknown"))


def task_of(tags, by):
    """What makes the task of an episode: its values of the tags `by`."""
    return tuple(tag_of(tags, name) for name in by)


def check(length, target, order, cut, normalise):
    options = ("target", target, TARGETS), ("order", order, ORDERS), ("normalise", normalise, (None, "all"))
    for name, value, known in options:
        if value not in known:
            raise DataError(f"data.{name}={value!r}: expected one of {list(known)}")
    if not length or length < 1 or not 0 <= cut <= 1:
        raise DataError(f"data.length={length} must be at least 1, data.cut={cut} in 0..1")
