"""Trajectory shards of frames -> batches of single steps (s, a, r, s') for offline RL, as a LightningDataModule.

    shards --decoded once--> frames [N h w c] --+
    prior shards ------------> more of them ----+--> batches, a share of each from the prior data

Actions are the keys alone. What the last action of an episode led to is a frame of its own, where it was recorded.
"""

from collections import Counter
from itertools import accumulate
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from foundation.pretraining.data import facts
from foundation.pretraining.intent_data import VALIDATED, Shift
from foundation.pretraining.token_data import HELD_OUT, TRAIN, by_step
from foundation.training import derive
from pipelines import schema
from pipelines.actions import ActionCodec
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.states import divided, open_states
from pipelines.stream import pieces
from pipelines.transforms import shifted


class FrameStepData(L.LightningDataModule):
    """Options as in configs/data/frame_steps.yaml. A batch is a pure function of (seed, step, data)."""

    def __init__(self, train, labels, prior, prior_labels, prior_share, mix_from, validation, on_damage, batch_size,
                 workers, cache_gb, gamma, reward, tasks, shift, steps, seed):  # fmt: skip
        super().__init__()
        if batch_size < 1 or not 0 <= prior_share < 1 or mix_from < 0:
            given = f"data.batch_size={batch_size}, data.prior_share={prior_share}, data.mix_from={mix_from}"
            raise DataError(f"{given}: expected at least 1, a share in [0, 1), at least 0")
        if mix_from and not prior:
            raise DataError(f"data.mix_from={mix_from}: until then batches are of data.prior, which is not set")
        if steps and mix_from >= steps:
            raise DataError(f"data.mix_from={mix_from}: steps={steps} end before data.train is in a batch")
        self.batch_size, self.workers, self.cache_gb, self.steps, self.seed = batch_size, workers, cache_gb, steps, seed
        self.gamma, self.reward, self.tasks, self.on_damage = gamma, reward, tasks, on_damage
        self.named = {"training shards": train, "labels": labels, "prior shards": prior, "held out": validation}
        self.set_aside, self.facts = Counter(), None
        share = validation if isinstance(validation, float) else None
        target, *held_out = self._open(train, labels, "train", share)
        if validation and share is None:
            held_out = self._open(validation, None, "validation")
        sources = [target, *(self._open(prior, prior_labels, "prior") if prior else [])]
        self.frames = sum(len(source.steps) for source in sources)
        shift = Shift(**shift, goals="same") if shift else None
        self.dataset = Steps(sources, batch_size, (seed, TRAIN), prior_share, mix_from, shift)
        self.validation = Steps(held_out, batch_size, (0, HELD_OUT), batches=VALIDATED) if held_out else None

    def _open(self, root, labels, option, held_out=None):
        """[Recorded], or two of them, the second of a share `held_out` of the videos."""
        what = f"data.{option}"
        states, shards = open_states(root, what, self.on_damage)
        if states.size is None:
            raise DataError(f"{root} holds {states.kind}; {what} takes trajectory shards of frames")
        labels = Shards(labels, on_damage=self.on_damage) if labels else None
        found = facts(shards, labels, "data.prior_labels" if option == "prior" else "data.labels")
        if self.facts not in (None, found):
            raise DataError(f"{what} has other keys, sizes or rates than data.train; collect them alike")
        self.facts, (self.spec, self.size, self.fps) = found, found
        for one in (shards, labels):
            counts = one.set_aside if one else {}
            self.set_aside.update({f"data/set_aside_{name}": n for name, n in counts.items() if n})
        parts = [states] if held_out is None else divided(states, held_out, self.seed)
        codec = ActionCodec(self.spec)
        return [Recorded(part, labels, codec, self.gamma, self.reward, self.tasks) for part in parts]

    def derive(self, net):
        """The network's config with what follows from frames, actions and tasks filled in."""
        codec = ActionCodec(self.spec)
        tasks = 0 if self.tasks is None else len(values_of(self.tasks)[1])
        known = {"tasks": tasks, "n_actions": codec.n_buttons - sum(codec.camera_on)}
        net = {name: known.get(name) if value is None else value for name, value in net.items()}
        return derive(net, self.size, codec)

    def contract(self):
        """What whoever uses the network has to know: entries of the hub folder's config.yaml."""
        return {"actions": self.spec, "size": self.size, "fps": self.fps, "gamma": self.gamma}

    def statistics(self):
        return {}

    def words(self):
        return f"the keys of {self.spec.name}, frames {self.size[0]}x{self.size[1]} RGB at {self.fps:g} Hz"

    def provenance(self):
        """Where the data came from: {fact: value}."""
        target, *prior = self.dataset.sources
        named = {
            name: f"{where}, fingerprint {source.states.shards.fingerprint()}"
            for name, where, source in zip(
                ("training shards", "prior shards"), (self.named["training shards"], self.named["prior shards"]),
                self.dataset.sources, strict=False,
            )
        }  # fmt: skip
        share = f"{self.dataset.prior_share:g}, from step {self.dataset.mix_from}" if prior else None
        reward = "as recorded" if self.reward is None else str(self.reward)
        return {
            **named, "labels": self.named["labels"], "steps": len(target.steps),
            "prior steps": len(prior[0].steps) if prior else None, "share of prior data": share, "reward": reward,
            "held out": str(self.named["held out"]),
        }  # fmt: skip

    def setup(self, stage):
        """Decodes the frames, once; says which task the policy is trained for."""
        parts = {"train": self.dataset, "validation": self.validation}
        for name, dataset in parts.items():
            if dataset is not None and dataset.sources[0].frames is None:
                spill = Path(self.trainer.default_root_dir) / f"frames-{name}-{self.trainer.global_rank}"
                dataset.load(self.cache_gb, spill)
        if self.tasks is not None:
            self.trainer.lightning_module.net.told.copy_(torch.from_numpy(self.dataset.sources[0].condition[0]))

    def train_dataloader(self):
        return by_step(self.dataset, self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None) if self.validation else []


class Recorded:
    """Steps of trajectories: row numbers of s and s' among the frames, int [n], and what happened in between, [n].

    states: pipelines.states.Clips, with label shards or None; reward, tasks: see configs/data/frame_steps.yaml.
    """

    def __init__(self, states, labels, codec, gamma, reward, tasks):
        self.states, self.labels, self.codec, self.frames = states, labels, codec, None
        self.gamma, self.reward, self.tasks = gamma, reward, tasks
        self.still = np.cumsum(~np.array(codec.camera_on)) - 1  # buttons class -> its number among those without mouse
        rows = [self._episode(start, *run) for start, run in zip(states.offsets, states.runs, strict=False)]
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        self.steps, self.after, self.action, self.rewards, self.terminated, self.returns = columns[:6]
        self.condition = columns[6] if tasks is not None else None
        if not len(self.steps):
            raise DataError(f"{states.shards.root} holds no step: no frame with an action and another after it")

    def load(self, cache_gb, spill):
        self.frames = self.states.load(cache_gb, spill)

    def _episode(self, start, source, clips, at):
        n = len(at)
        taken = self._column(clips, at, schema.COVERAGE, np.ones(n, bool), self.labels).astype(bool)
        ends = self._column(clips, at, schema.TERMINATED, np.zeros(n, bool)).astype(bool)
        action = self._actions(clips, at)
        rewards = self._rewards(clips, at, taken)
        if self.reward is not None:
            ends = np.arange(n) == np.flatnonzero(taken).max(initial=-1)
        after = np.minimum(np.arange(n) + 1, n - 1)
        known = np.flatnonzero(taken & ((after > np.arange(n)) | ends))
        r, ended = rewards[known], ends[known]
        columns = (start + known, start + after[known], action[known], r, ended, returns(r, ended, self.gamma))
        return columns if self.tasks is None else (*columns, self._condition(clips[0], len(known)))

    def _column(self, clips, at, name, default=None, labels=None):
        """An array of the trajectory's frames, [n ...]; None, or `default`, where the shards do not have it."""
        parts = []
        for clip, rows in pieces(clips, at):
            arrays = (labels or self.states.shards).arrays(clip)
            if name not in arrays:
                return default
            parts.append(arrays[name][rows])
        return np.concatenate(parts)

    def _actions(self, clips, at):
        keys, mouse = (self._column(clips, at, name, None, self.labels) for name in (schema.KEYS, schema.MOUSE))
        buttons = self.codec.to_joint(keys, self.codec.to_bins(mouse))[:, 0]
        moving = np.array(self.codec.camera_on)[buttons]
        if moving.any():
            raise DataError(f"{clips[0]} moves the mouse in {moving.sum()} frames; these methods press keys alone")
        return self.still[buttons]

    def _rewards(self, clips, at, taken):
        if self.reward is None:
            found = self._column(clips, at, schema.REWARD)
            if found is None:
                raise DataError(
                    f"{clips[0]} has no rewards; record them, or say what they are, as"
                    ' "data.reward={last: 3, value: 10, other: -1}"'
                )
            return found.astype(np.float32)
        if set(self.reward) != {"last", "value", "other"}:
            raise DataError(f"data.reward={self.reward}: expected null or {{last: steps, value: .., other: ..}}")
        left = np.cumsum(taken[::-1])[::-1]  # steps from here to the end, this one included
        return np.where(left <= self.reward["last"], self.reward["value"], self.reward["other"]).astype(np.float32)

    def _condition(self, clip, n):
        tag, values = values_of(self.tasks)
        found = self.states.shards.entry(clip).meta["tags"].get(tag)
        if found not in values:
            raise DataError(f"{clip} has the tag {tag}={found}, which is not in data.tasks={self.tasks}; add it")
        return np.repeat(np.eye(len(values), dtype=np.float32)[[values.index(found)]], n, 0)


def values_of(tasks):
    """(tag, its values) of data.tasks={tag: [values]}."""
    if len(tasks) != 1:
        raise DataError(f"data.tasks={tasks}: expected one tag with its values, e.g. {{map: [0, 1, 2]}}")
    ((tag, values),) = tasks.items()
    return tag, list(values)


def returns(rewards, terminated, gamma):
    """Discounted sum of the rewards of an episode from each step on, float32 [n].

    One that was cut is taken to go on with its last reward (Cal-QL's release does so where no goal was reached).
    """
    if not len(rewards):
        return np.zeros(0, np.float32)
    tail = 0.0 if terminated[-1] else rewards[-1] / (1 - gamma)
    sums = accumulate(rewards[::-1].tolist(), lambda later, reward: reward + gamma * later, initial=tail)
    return np.array(list(sums)[:0:-1], np.float32)


class Steps(Dataset):
    """Item t = batch t, `rank`'s rows of the global one: OBSERVATION, NEXT_OBSERVATION uint8 [b h w c], ACTION int64,
    REWARD, RETURN float32, TERMINATED bool [b], and with tasks CONDITION float32 [b tasks].

    sources: the steps of data.train and, if there are some, of data.prior, of which every row is with probability
    `prior_share`; before step `mix_from`, all rows.
    """

    rank, world_size = 0, 1

    def __init__(self, sources, batch_size, key, prior_share=0.0, mix_from=0, shift=None, batches=None):
        self.sources, self.batch_size, self.key, self.batches = sources, batch_size, key, batches
        self.prior_share, self.mix_from, self.shift = prior_share, mix_from, shift
        self.sizes = np.array([len(source.steps) for source in sources])

    def __len__(self):
        return self.batches

    def load(self, cache_gb, spill):
        for i, source in enumerate(self.sources):
            source.load(cache_gb, Path(f"{spill}-{i}.npy"))
        return self

    def draw(self, generator, count, step):
        """(Which source, which of its steps), int [b] each."""
        share = 1.0 if step < self.mix_from else self.prior_share
        source = (generator.random(count) < share).astype(int) if len(self.sources) > 1 else np.zeros(count, int)
        return source, generator.integers(self.sizes[source])

    def __getitem__(self, step):
        generator = np.random.default_rng((*self.key, step))
        count = self.batch_size * self.world_size
        source, index = self.draw(generator, count, step)
        moved = self.shift.draw(generator, count) if self.shift else None
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        batch = self._gather(source[mine], index[mine])
        if moved is not None:
            for name in (schema.OBSERVATION, schema.NEXT_OBSERVATION):
                batch[name] = shifted(batch[name], moved[0, mine], self.shift.pad)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _gather(self, source, index):
        """The steps `index` of each row's source, in this order."""
        parts = []
        for i, one in enumerate(self.sources):
            own = index[source == i]
            batch = {
                schema.OBSERVATION: one.frames[one.steps[own]], schema.NEXT_OBSERVATION: one.frames[one.after[own]],
                schema.ACTION: one.action[own], schema.REWARD: one.rewards[own], schema.RETURN: one.returns[own],
                schema.TERMINATED: one.terminated[own],
            }  # fmt: skip
            parts.append(batch if one.condition is None else {**batch, schema.CONDITION: one.condition[own]})
        back = np.argsort(np.argsort(source, kind="stable"), kind="stable")
        return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
