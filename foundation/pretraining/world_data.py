"""Tasks drawn from a world -> batches of contexts, queries and optimal actions, as a LightningDataModule.

Nothing is stored: a batch is a pure function of (seed, step), and no task is seen twice.
"""

from collections import Counter

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.pretraining.token_data import HELD_OUT, TRAIN, Steps
from foundation.training import made
from pipelines import schema
from pipelines.schema import DataError
from pipelines.trajectories import Spaces


class WorldData(L.LightningDataModule):
    """Options as in configs/data/bandit.yaml; the members are those of TrajectoryData."""

    fps = 1.0

    def __init__(self, world, length, shares, queries, batch_size, validation, workers, steps, seed):
        super().__init__()
        self.node, self.world = world, made(world)
        self.lengths = lengths_of(length, shares, steps)
        self.queries, self.batch_size, self.workers = queries, batch_size, workers
        if min(queries, batch_size, validation) < 1:
            given = f"data.queries={queries}, data.batch_size={batch_size}, data.validation={validation}"
            raise DataError(f"{given}: expected at least 1 of each")
        self.steps, self.seed, self.set_aside = steps, seed, Counter()
        self.longest = max(self.lengths.values())
        self.frames = sum(self.rows(step) * self.length_at(step) for step in range(steps))
        self.validation = Batches(self, (0, HELD_OUT), "heldout", validation)

    def length_at(self, step):
        """Transitions in the contexts of a batch."""
        return self.lengths[max(start for start in self.lengths if start <= step)]

    def rows(self, step):
        """Tasks in a batch and rank: `batch_size` of the longest contexts, more of shorter ones, at equal tokens."""
        return self.batch_size * (self.longest + 1) // (self.length_at(step) + 1)

    def derive(self, net):
        """The network's config with what follows from the world filled in."""
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
        for name in ("state_dim", "n_actions"):
            ours, theirs = getattr(net, name), getattr(self.world, name)
            if ours != theirs:
                raise DataError(f"the policy has {name}={ours}, {type(self.world).__name__} has {theirs}; choose data=")

    def train_dataloader(self):
        trainer = self.trainer
        total = self.steps * trainer.accumulate_grad_batches
        sampler = Steps(total, trainer.global_step * trainer.accumulate_grad_batches)
        dataset = Batches(self, (self.seed, TRAIN), "train", None, trainer.global_rank, trainer.world_size)
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None)


class Batches(Dataset):
    """Item t = batch t: a context with the keys of a trajectory [b n ...], QUERY, PLACE, TARGET.

    Of validation, `held_out` tasks: one batch at the longest context, with FLOOR where the world knows it.
    """

    def __init__(self, data, key, split, held_out=None, rank=0, world_size=1):
        self.data, self.key, self.split, self.held_out = data, key, split, held_out
        self.rank, self.world_size = rank, world_size

    def __len__(self):
        return self.data.steps if self.held_out is None else 1

    def __getitem__(self, step):
        data, validating = self.data, self.held_out is not None
        rows = self.held_out if validating else data.rows(step) * self.world_size
        generator = torch.Generator().manual_seed(seed_of(*self.key, 0 if validating else step))
        batch = draw(data.world, rows, data.longest if validating else data.length_at(step), data.queries, generator,
                     self.split)  # fmt: skip
        if validating:
            return batch
        mine = slice(self.rank * rows // self.world_size, (self.rank + 1) * rows // self.world_size)
        return {name: value if name == schema.PLACE else value[mine] for name, value in batch.items()}


def draw(world, rows, length, queries, generator, split):
    """A batch of `rows` tasks: context [b n ...], QUERY [b k s], PLACE int64 [k] ascending, TARGET int64 [b k]."""
    tasks = world.draw(rows, generator, split)
    context = world.context(tasks, length, generator)
    query = world.queries(tasks, queries, generator)
    place = torch.randint(length + 1, (queries,), generator=generator).sort().values
    return {**context, schema.QUERY: query, schema.PLACE: place, schema.TARGET: world.optimal(tasks, query)}


def seed_of(*key):
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def lengths_of(length, shares, steps):
    """{first step: length of contexts from there on}; length: a number, or a list that takes turns by `shares`."""
    lengths = [length] if isinstance(length, int) else list(length)
    shares = [1 / len(lengths)] * len(lengths) if shares is None else list(shares)
    if min(lengths, default=0) < 1 or len(shares) != len(lengths) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(
            f"data.length={length} with data.shares={shares}: expected lengths of at least 1, and for each a share of"
            " the steps, which add up to 1"
        )
    starts = np.round(np.cumsum([0, *shares[:-1]]) * steps).astype(int)
    return dict(zip(starts.tolist(), lengths, strict=True))
