"""Episodes of vectors -> batches of windows for the sequence models, as one LightningDataModule."""

from collections import Counter
from functools import partial

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.trajectories import Trajectories
from pipelines.trajectory_windows import (
    EpisodeWindows,
    Normalizer,
    WindowSampler,
    as_is,
    episode_weights,
    returns_of,
    split,
    tag_of,
)

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class TrajectoryData(L.LightningDataModule):
    """Windows of episodes in an order that depends on (seed, step) alone; options as in configs/data/trajectories.yaml.

    `validation` (EpisodeWindows or None) holds out whole episodes; statistics come from the others only.
    """

    def __init__(self, train, where, episodes, validation, on_damage, batch_size, workers, length, sampling, alpha, top,
                 condition, return_scale, gamma, normalise, steps, seed):  # fmt: skip
        super().__init__()
        if not train:
            raise DataError(
                "data.train is not set; give a folder of trajectory shards (`python -m foundation.collect"
                " task=metaworld` makes them)"
            )
        self.batch_size, self.workers, self.steps, self.seed = batch_size, workers, steps, seed
        self.named, self.condition, self.length = {"train": train, "validation": validation}, condition, length
        self.shards = Shards(train, on_damage=on_damage)
        self.set_aside = Counter({f"data/set_aside_{n}": k for n, k in self.shards.set_aside.items() if k})
        self.load = partial(Trajectories.load, where=where, on_damage=on_damage)
        data, held_out = self._divided(self.load(train), validation, seed)
        self.data = data = some(data, episodes, seed)
        self.spaces, self.fps, self.frames = data.spaces, data.fps, len(data.reward)
        by = None if normalise in (None, "all") else normalise
        self.normalizer = None if normalise is None else Normalizer.of(data, by)
        self.returns = self._returns(data, return_scale)
        self.weights = episode_weights(data, sampling, alpha, top, gamma)
        if held_out is not None and held_out.spaces != data.spaces:
            raise DataError(f"data.validation has {held_out.spaces}, data.train {data.spaces}; collect them alike")
        self.held_out, self.options = held_out, {"length": length, "condition": condition, "gamma": gamma}
        self._cut()

    def _divided(self, data, validation, seed):
        """(train, held out or None)"""
        if isinstance(validation, float):
            return split(data, validation, seed)
        return data, self.load(validation) if validation else None

    def _returns(self, data, scale):
        """Entries of the statistics about the returns."""
        return describe_returns(data, scale)

    def _cut(self):
        """Windows of the episodes, with the statistics as they stand."""
        parts = []
        for data in (self.data, self.held_out):
            scale = data and [returns_of(tags, self.returns)["returns_scale"] for tags in data.tags]
            parts.append(data and EpisodeWindows(data, normalizer=self.normalizer, scale=scale, **self.options))
        self.dataset, self.validation = parts

    def inherit(self, statistics, config=None):
        """Goes on with the statistics of the policy that training starts from: it takes its inputs in their unit.

        Where they are kept per task, the tasks of the data that are new to it are added.
        config: the policy's, for data that must fit more than the statistics.
        """
        before = Normalizer.from_dict(statistics) if "state_mean" in statistics else None
        theirs = (before and (before.by or "all"), statistics.get("returns_by"))
        ours = (self.normalizer and (self.normalizer.by or "all"), self.returns.get("returns_by"))
        if theirs != ours:
            kinds = [
                f"data.normalise={by or 'null'} and {'a number' if tag is None else tag} as data.return_scale"
                for by, tag in (theirs, ours)
            ]
            raise DataError(f"the policy of init= was trained with {kinds[0]}, this run has {kinds[1]}; set them alike")
        self.normalizer = before and before.joined(self.normalizer)
        self.returns = rescaled(self.returns, statistics)
        if theirs[1]:
            tasks = self.returns["tasks"]
            known = {
                name: rescaled(tasks[name], old) if name in tasks else old for name, old in statistics["tasks"].items()
            }
            self.returns["tasks"] = {**tasks, **known}
        self._cut()

    def derive(self, net):
        """The network's config with what follows from the data filled in."""
        known = {
            "state_dim": self.spaces.state_dim, "action_dim": self.spaces.action_dim,
            "n_actions": self.spaces.n_actions, "max_timestep": int(self.data.lengths.max()),
        }  # fmt: skip
        return {name: known.get(name) if value is None else value for name, value in net.items()}

    def contract(self):
        """What whoever uses the network has to know: entries of the hub folder's config.yaml."""
        return {"spaces": self.spaces.to_dict(), "fps": self.fps, "condition": self.condition}

    def statistics(self):
        """Normaliser, scale and quantiles of the returns: what is needed to ask for a return."""
        values = {} if self.normalizer is None else self.normalizer.to_dict()
        return {**values, **self.returns, "context_size": self.length}

    def words(self):
        action = f"{self.spaces.action_dim}-dimensional" if self.spaces.n_actions is None else "discrete"
        return f"{self.spaces.state_dim}-dimensional states and {action} actions at {self.fps:g} Hz"

    def provenance(self):
        """Where the data came from: {fact: value}."""
        values = {name: sorted({str(t[name]) for t in self.data.tags if name in t}) for name in ("task", "behaviour")}
        return {
            "training shards": f"{self.named['train']}, fingerprint {self.shards.fingerprint()}",
            "episodes": len(self.data), "steps": self.frames,
            "return": f"mean {self.data.returns.mean():.4g}, best {self.data.returns.max():.4g}",
            **{name: found for name, found in values.items() if found},
            "held out": str(self.named["validation"]),
        }  # fmt: skip

    def setup(self, stage):
        """DataError where the network of init= does not fit these data."""
        net = self.trainer.lightning_module.net
        for name in ("state_dim", "action_dim"):
            if getattr(net, name) != getattr(self.spaces, name):
                raise DataError(f"the policy has {name}={getattr(net, name)}, the data {getattr(self.spaces, name)}")
        if net.max_timestep < self.data.lengths.max():
            raise DataError(
                f"an episode has {self.data.lengths.max()} steps, the policy knows {net.max_timestep}; pretrain it with"
                " method.net.max_timestep=<longest>"
            )

    def train_dataloader(self):
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        sampler = WindowSampler(
            self.weights, self.data.offsets, self.batch_size, self.steps * self.trainer.accumulate_grad_batches,
            self.seed, start, self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip
        return DataLoader(self.dataset, batch_sampler=sampler, collate_fn=as_is, num_workers=self.workers)

    def val_dataloader(self):
        if self.validation is None:
            return []
        windows = self.validation.cover()
        batches = np.array_split(windows, -(-len(windows) // 256))
        return DataLoader(self.validation, batch_sampler=batches, collate_fn=as_is)


def some(data, episodes, seed):
    """`episodes` of the data, drawn at random; None = all."""
    if episodes is None:
        return data
    if not 1 <= episodes <= len(data):
        raise DataError(f"data.episodes={episodes}: the data hold {len(data)}")
    return data.select(np.sort(np.random.default_rng((seed, 1)).permutation(len(data))[:episodes]))


def describe(returns, scale=None):
    """Entries of the statistics about some returns: what they are divided by, quantiles, mean."""
    quantiles = {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(returns, QUANTILES), strict=True)}
    scale = float(scale or np.abs(returns).max() or 1.0)
    return {"returns_scale": scale, "returns": quantiles, "returns_mean": float(returns.mean())}


def describe_returns(data, scale):
    """`describe` of all returns and, if `scale` is the name of a tag, of those with each of its values."""
    if not isinstance(scale, str):
        return describe(data.returns, scale)
    names = np.array([tag_of(tags, scale) for tags in data.tags])
    tasks = {str(name): describe(data.returns[names == name]) for name in np.unique(names)}
    return {**describe(data.returns), "returns_by": scale, "tasks": tasks}


def rescaled(returns, before):
    """The description with the scale of another one."""
    return {**returns, "returns_scale": before.get("returns_scale", returns["returns_scale"])}
