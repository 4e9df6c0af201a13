"""States, what follows them, outcomes and intents -> batches for methods that learn from sequences without actions.

Clip shards or vectors become all states [N ...] (`pipelines.states`), of which a batch gathers rows by (seed, step).
"""

from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from pipelines import schema
from pipelines.goals import Goals, state_rows
from pipelines.schema import DataError
from pipelines.states import divided, every, open_states
from pipelines.transforms import shifted

SHIFTED = ("same", "own")
VALIDATED = 16  # held-out batches


class IntentData(L.LightningDataModule):
    """Batches as a function of (seed, step); options as in configs/data/intents.yaml.

    `validation` (Intents or None) is of whole videos or episodes that training does not see.
    """

    def __init__(self, train, validation, on_damage, batch_size, workers, cache_gb, frame_skip, goals, p_samegoal,
                 gamma, shift, steps, seed):  # fmt: skip
        super().__init__()
        if batch_size < 1 or not 0 <= p_samegoal <= 1:
            raise DataError(f"data.batch_size={batch_size}, data.p_samegoal={p_samegoal}: expected at least 1, 0 to 1")
        self.batch_size, self.workers, self.cache_gb, self.steps, self.seed = batch_size, workers, cache_gb, steps, seed
        self.frame_skip, self.gamma, self.named = frame_skip, gamma, {"train": train, "validation": validation}
        self.options = {"goals": {**goals, "gamma": gamma}, "p_samegoal": p_samegoal, "frame_skip": frame_skip}
        self.states, self.shards = open_states(train, "data.train", on_damage)
        self.set_aside = Counter({f"data/set_aside_{n}": k for n, k in self.shards.set_aside.items() if k})
        if isinstance(validation, float):
            self.states, held_out = divided(self.states, validation, seed)
        else:
            held_out = open_states(validation, "data.validation", on_damage)[0] if validation else None
        if held_out is not None and held_out.kind != self.states.kind:
            raise DataError(f"data.validation has {held_out.kind}, data.train {self.states.kind}; make them alike")
        if shift and self.states.size is None:
            raise DataError("data.shift moves frames, these are vectors; set data.shift=null")
        self.size, self.spaces, self.fps = (getattr(self.states, name) for name in ("size", "spaces", "fps"))
        self.frames = int(self.states.offsets[-1])
        self.dataset = Intents(self.states, batch_size, (seed, TRAIN), shift=shift, **self.options)
        self.validation = held_out and Intents(held_out, batch_size, (0, HELD_OUT), batches=VALIDATED, **self.options)
        if self.dataset.dropped:
            self.set_aside["data/set_aside_trajectories"] = self.dataset.dropped

    def derive(self, net):
        """The network's config with what follows from the states filled in."""
        vectors, encoder = self.spaces is not None, net.get("encoder")
        encoder = ("none" if vectors else "impala") if encoder is None else encoder
        if (encoder == "none") != vectors:
            fitting = "none" if vectors else "impala or resnet"
            raise DataError(f"{self.named['train']} holds {self.states.kind}, but method.net.encoder={encoder}; set it"
                            f" to {fitting}, or leave it out")  # fmt: skip
        known = {"encoder": encoder, "state_dim": self.spaces.state_dim} if vectors else {
            "encoder": encoder, "height": self.size[0], "width": self.size[1],
        }  # fmt: skip
        return {name: known.get(name) if value is None else value for name, value in net.items()}

    def contract(self):
        """What whoever uses the network has to know: entries of the hub folder's config.yaml."""
        shown = {"size": self.size} if self.spaces is None else {"spaces": self.spaces.to_dict()}
        return {**shown, "fps": self.fps, "frame_skip": self.frame_skip, "gamma": self.gamma}

    def statistics(self):
        return {}

    def words(self):
        return f"{self.states.kind}, a step being {self.frame_skip} of them, without actions"

    def provenance(self):
        """Where the data came from: {fact: value}."""
        return {
            "training shards": f"{self.named['train']}, fingerprint {self.shards.fingerprint()}",
            "states": self.frames, "hours": self.frames / self.fps / 3600, "frame skip": self.frame_skip,
            "videos or episodes": len(set(self.states.groups)), "trajectories": len(self.states.offsets) - 1,
            "actions": "not used", "held out": str(self.named["validation"]),
        }  # fmt: skip

    def setup(self, stage):
        """Loads the states, once."""
        for name, dataset in (("train", self.dataset), ("validation", self.validation)):
            if dataset is not None and dataset.values is None:
                spill = Path(self.trainer.default_root_dir) / f"frames-{name}-{self.trainer.global_rank}.npy"
                dataset.load(self.cache_gb, spill)

    def train_dataloader(self):
        return by_step(self.dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None) if self.validation else []


class Intents(Dataset):
    """Item t = batch t: OBSERVATION s, NEXT_OBSERVATION s', GOAL s+, INTENT z, all uint8 [b h w c] or float32 [b s];
    REACHED (s is s+), INTENT_REACHED (s is z) bool [b].

    goals: options of `pipelines.goals.Goals`, by which intents are drawn and, unless it is the intent (probability
    `p_samegoal`), the outcome. s is uniform over all states with a successor, `frame_skip` states later. The last one
    of a trajectory has none, yet may be a goal, so it is shown as s with itself as the goal, as often as any other
    state is by `goals.p_current`: no other s would teach that its value there is 0.
    """

    def __init__(self, states, batch_size, key, frame_skip, goals, p_samegoal, shift=None, batches=None):
        self.states, self.batch_size, self.key, self.batches = states, batch_size, key, batches
        self.p_samegoal, self.shift, self.values = p_samegoal, Shift(**shift) if shift else None, None
        self.rows, self.offsets, self.dropped = every(states.offsets, frame_skip)
        self.goals = Goals(self.offsets, **goals)
        self.starts = self.offsets - np.arange(len(self.offsets))  # of the states with a successor, laid end to end
        self.p_last = self.goals.p_current * (len(self.offsets) - 1) / self.offsets[-1]
        self.rank, self.world_size = 0, 1

    def __len__(self):
        return self.batches

    def load(self, cache_gb=8.0, spill=None):
        self.values = self.states.load(cache_gb, spill)
        return self

    def draw(self, generator, count):
        """Rows of (s, s', s+, z), int [4 b], of the trajectories of every `frame_skip`-th state."""
        s = state_rows(self.starts, generator.integers(self.starts[-1], size=count))
        z, goal = self.goals.draw(s, generator), self.goals.draw(s, generator)
        goal = np.where(generator.random(count) < self.p_samegoal, z, goal)
        lasts = self.offsets[1:][generator.integers(len(self.offsets) - 1, size=count)] - 1
        alone = generator.random(count) < self.p_last
        return np.where(alone, lasts, np.stack([s, s + 1, goal, z]))

    def __getitem__(self, step):
        generator = np.random.default_rng((*self.key, step))
        count = self.batch_size * self.world_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        drawn = self.draw(generator, count)[:, mine]
        shifts = self.shift.draw(generator, count) if self.shift else None
        parts = self.values[self.rows[drawn.ravel()]]  # 4b ...
        if shifts is not None:
            parts = shifted(parts, shifts[:, mine].reshape(-1, 2), self.shift.pad)
        parts = torch.from_numpy(parts).unflatten(0, drawn.shape)  # 4 b ...
        names = schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL, schema.INTENT
        s, _, goal, z = torch.from_numpy(drawn)
        return dict(zip(names, parts, strict=True)) | {schema.REACHED: s == goal, schema.INTENT_REACHED: s == z}

    def ordered(self, count, seed=0):
        """(states, later ones of the same trajectories, by how many steps), for measuring: [n ...], [n ...], [n]."""
        generator = np.random.default_rng(seed)
        s = state_rows(self.starts, generator.integers(self.starts[-1], size=count))
        later = generator.integers(s + 1, self.goals.last(s), endpoint=True)
        pair = (torch.from_numpy(self.values[self.rows[rows]]) for rows in (s, later))
        return (*pair, later - s)


class Shift:
    """Random shifts of frames by up to `pad` pixels, the same for s and s'.

    probability: that a batch is shifted at all. goals: "same" = s+ and z as s (HILP's and HIQL's releases) | "own".
    """

    def __init__(self, pad, probability, goals):
        if pad < 1 or not 0 <= probability <= 1 or goals not in SHIFTED:
            given = f"pad={pad}, probability={probability}, goals={goals!r}"
            raise DataError(f"data.shift: {given}: expected at least 1, 0 to 1, one of {SHIFTED}")
        self.pad, self.probability, self.goals = pad, probability, goals

    def draw(self, generator, count):
        """Pixels down and right of (s, s', s+, z), int [4 b 2], or None: this batch stays as it is."""
        moved = generator.integers(-self.pad, self.pad, (3, count, 2), endpoint=True)
        if generator.random() >= self.probability:
            return None
        return moved[[0, 0, 1, 2] if self.goals == "own" else [0] * 4]
