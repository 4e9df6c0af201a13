"""Tasks drawn from a world -> batches of contexts, queries and optimal actions, as a LightningDataModule.

Nothing is stored: a batch is a pure function of (seed, step), its tasks and contexts are drawn from the world.
"""

import logging
from collections import Counter

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation import posteriors
from foundation.envs.worlds import World
from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from foundation.training import made
from pipelines import schema
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

log = logging.getLogger("foundation-policy")


class WorldData(L.LightningDataModule):
    """Options as in configs/data/bandit.yaml; the members are those of TrajectoryData."""

    fps = 1.0

    def __init__(self, world, length, shares, queries, batch_size, validation, workers, steps, seed):
        super().__init__()
        self.node, self.world = world, made(world)
        if not isinstance(self.world, World):
            raise DataError(f"data.world={world}: expected a _target_ such as foundation.envs.bandits.GaussianBandit")
        self.lengths = lengths_of(length, shares, steps)
        self.queries, self.batch_size, self.workers = queries, batch_size, workers
        if min(1 if queries is None else queries, batch_size, validation) < 1:
            given = f"data.queries={queries}, data.batch_size={batch_size}, data.validation={validation}"
            raise DataError(f"{given}: expected at least 1 of each")
        self.one_query = True  # a batch asks about one state per task; set by the network
        self.steps, self.seed, self.set_aside = steps, seed, Counter()
        self.longest = max(self.lengths.values())
        self.frames = sum(self.rows(step) * self.length_at(step) for step in range(steps))
        self.validation = Batches(self, (0, HELD_OUT), "heldout", validation)
        kinds = world.get("contexts")
        several = not isinstance(kinds, str | None)
        self.world_of_validation = made({**world, "contexts": kinds[0]}) if several else self.world

    def length_at(self, step):
        """Transitions in the contexts of a batch."""
        return self.lengths[max(start for start in self.lengths if start <= step)]

    def rows(self, step):
        """Tasks in a batch and rank: `batch_size` of the longest contexts, more of shorter ones, at equal tokens."""
        return self.batch_size * (self.longest + 1) // (self.length_at(step) + 1)

    def derive(self, net):
        """The network's config with what follows from the world filled in."""
        if "query" not in net:
            raise DataError(f"{net['_target_']} does not learn from contexts, which data= draws here; use method=dpt")
        if self.world.pictures and not net.get("encoder"):
            log.warning('%s shows pictures and the net has no encoder: it takes them as %d numbers. For pictures:'
                        ' method.net.next_state=false "method.net.encoder={_target_: models.vision.PictureEncoder}"',
                        type(self.world).__name__, self.world.state_dim)  # fmt: skip
        known = {"state_dim": self.world.state_dim, "action_dim": 1, "n_actions": self.world.n_actions,
                 "context": self.longest}  # fmt: skip
        return {name: known.get(name) if value is None else value for name, value in net.items()}

    def contract(self):
        spaces = Spaces(self.world.state_dim, 1, self.world.n_actions)
        return {"spaces": spaces.to_dict(), "fps": self.fps, "condition": "none", "world": self.node}

    def statistics(self):
        return {"returns_scale": 1.0}

    def words(self):
        return f"{type(self.world).__name__}, contexts of up to {self.longest} transitions"

    def provenance(self):
        options = ", ".join(f"{name} {value}" for name, value in self.node.items() if name != "_target_")
        return {"world": f"{type(self.world).__name__} ({options})", "transitions": self.frames,
                "held out": "tasks drawn apart from the seed"}  # fmt: skip

    def setup(self, stage):
        """DataError where the network of init= does not fit the world."""
        net = self.trainer.lightning_module.net
        self.one_query = net.query == "first"
        for name in ("state_dim", "n_actions"):
            ours, theirs = getattr(net, name), getattr(self.world, name)
            if ours != theirs:
                raise DataError(f"the policy has {name}={ours}, {type(self.world).__name__} has {theirs}; choose data=")
        if net.positions is not None and self.longest > net.context:
            raise DataError(
                f"data.length={self.longest} exceeds the policy's context {net.context}; shorten it, or set"
                f" method.net.context={self.longest} or method.net.positions=none"
            )

    def train_dataloader(self):
        dataset = Batches(self, (self.seed, TRAIN), "train", parts=self.trainer.accumulate_grad_batches)
        return by_step(dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None)


class Batches(Dataset):
    """Item t = batch t, `parts` of them to an update: a context as a trajectory's [b n ...], QUERY [b k s], PLACE int64
    [p], TARGET [b p].

    One state is asked about after each of p numbers of transitions (k = 1), or p states, one after each (k = p). Of
    validation there is one batch, of so many held-out tasks, with FLOOR [b p] where the world knows its posterior; of
    several kinds of contexts it has the first.
    """

    def __init__(self, data, key, split, held_out=None, rank=0, world_size=1, parts=1):
        self.data, self.key, self.split, self.held_out = data, key, split, held_out
        self.rank, self.world_size, self.parts, self.kept = rank, world_size, parts, None

    def __len__(self):
        return self.data.steps * self.parts if self.held_out is None else 1

    def __getitem__(self, step):
        if self.held_out is not None:
            self.kept = self.kept or self._held_out()
            return self.kept
        data, update = self.data, step // self.parts
        rows, length = data.rows(update) * self.world_size, data.length_at(update)
        generator = torch.Generator().manual_seed(seed_of(*self.key, step))
        place = torch.arange(length + 1)
        if data.queries is not None:
            place = torch.randint(length + 1, (data.queries,), generator=generator).sort().values
        batch, _ = draw(data.world, rows, length, place, 1 if data.one_query else len(place), generator, self.split)
        mine = slice(self.rank * rows // self.world_size, (self.rank + 1) * rows // self.world_size)
        return {name: value if name == schema.PLACE else value[mine] for name, value in batch.items()}

    def _held_out(self):
        data, generator = self.data, torch.Generator().manual_seed(seed_of(*self.key))
        place = torch.linspace(0, data.longest, min(33, data.longest + 1)).round().long()
        world = data.world_of_validation
        batch, tasks = draw(world, self.held_out, data.longest, place, 1, generator, self.split)
        query = batch[schema.QUERY]
        if posteriors.known(world):
            batch[schema.FLOOR], _ = posteriors.floor(world, tasks, batch, query, place.tolist())
        batch[schema.QUERY] = query if data.one_query else query.expand(-1, len(place), -1)
        return batch


def draw(world, rows, length, place, queries, generator, split):
    """(batch of `rows` tasks with contexts of `length` transitions, the tasks); see `Batches`."""
    tasks = world.draw(rows, generator, split)
    context = world.context(tasks, length, generator)
    query = world.queries(tasks, queries, generator)
    target = world.optimal(tasks, query).expand(-1, len(place))
    return {**context, schema.QUERY: query, schema.PLACE: place, schema.TARGET: target}, tasks


def seed_of(*key):
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def lengths_of(length, shares, steps):
    """{first step: length of contexts from there on}; length: a number, or a list that takes turns by `shares`."""
    lengths = [length] if isinstance(length, int) else list(length)
    shares = [1 / max(1, len(lengths))] * len(lengths) if shares is None else list(shares)
    if min(lengths, default=0) < 1 or len(shares) != len(lengths) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(
            f"data.length={length} with data.shares={shares}: expected lengths of at least 1, and for each a share of"
            " the steps, which add up to 1"
        )
    starts = np.round(np.cumsum([0, *shares[:-1]]) * steps).astype(int)
    return dict(zip(starts.tolist(), lengths, strict=True))
