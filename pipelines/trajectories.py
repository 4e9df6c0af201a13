"""Episodes of vectors: states, actions and rewards as trajectory shards, and as flat arrays in memory.

    collect, Minari, LeRobot, HDF5 --write_episode--> shards --Trajectories.load--> flat arrays --> windows

One sample is one episode of t steps (or the part of it that was recorded): `observation[i]` is what `action[i]` was
chosen on, `reward[i]` what it brought, and `final_observation` what the last one led to. `terminated[-1]` says that the
episode came to its own end; cut by a time limit it is `truncated[-1]`, and its last state still has a future.

Two arrays are optional. `optimal_action[i]` is what the best policy at hand (a scripted player, the label of a world)
would have done on `observation[i]`, whoever chose `action[i]`. `next_observation[i]` is what `action[i]` led to, given
where that is not `observation[i + 1]`: in contexts of single transitions.
"""

from dataclasses import asdict, dataclass

import numpy as np

from pipelines import schema
from pipelines.schema import DataError, SampleMeta
from pipelines.shards import Shards

STEPWISE = {  # arrays of a sample with a row per step -> dtype
    schema.OBSERVATION: np.float32, schema.ACTION: None, schema.REWARD: np.float32,
    schema.TERMINATED: np.bool_, schema.TRUNCATED: np.bool_,
}  # fmt: skip
OPTIONAL = {schema.OPTIMAL_ACTION: None, schema.NEXT_OBSERVATION: np.float32}  # the same, not in every sample


@dataclass(frozen=True)
class Spaces:
    """What an environment shows and takes: observations [state_dim], actions [action_dim] in [low, high] or 0..n-1."""

    state_dim: int
    action_dim: int
    n_actions: int | None = None  # of a discrete action, whose action_dim is 1
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """DataError unless the values, from a file, describe spaces."""
        try:
            spaces = cls(**{**values, "low": tuple(values.get("low", ())), "high": tuple(values.get("high", ()))})
            sizes = (spaces.state_dim, spaces.action_dim)
            fit = spaces.n_actions is not None or len(spaces.low) == len(spaces.high) == spaces.action_dim
            if min(sizes) < 1 or not fit:
                raise ValueError(f"sizes {sizes}, {len(spaces.low)} lower and {len(spaces.high)} upper bounds")
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"the spaces of a trajectory are damaged ({error}); write it again") from error
        return spaces

    @property
    def action_kind(self):
        """dtype of stored actions."""
        return np.float32 if self.n_actions is None else np.int64

    def to_unit(self, action):
        """Actions in [low, high] -> [-1, 1], float32; what lies outside is clipped. Discrete ones stay as they are."""
        if self.n_actions is not None:
            return np.asarray(action, np.int64)
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return (2 * (np.clip(action, low, high) - low) / (high - low) - 1).astype(np.float32)

    def from_unit(self, action):
        """The inverse: what the environment takes; [-1, 1] is enforced."""
        if self.n_actions is not None:
            return np.asarray(action, np.int64)
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return low + (np.clip(np.asarray(action, np.float32), -1, 1) + 1) / 2 * (high - low)


def write_episode(writer, key, arrays, spaces, fps, source, tags=None, provenance=schema.RECORDED):
    """Adds one episode to a ShardWriter. arrays: STEPWISE and OPTIONAL [t ...], `final_observation` [s]; tags: plain.

    Raises DataError for arrays of different lengths, of another size than `spaces`, or with NaN.
    """
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    check(key, arrays, spaces)
    n = len(arrays[schema.REWARD])
    kinds = {**STEPWISE, schema.FINAL_OBSERVATION: np.float32}
    kinds |= {name: kind for name, kind in OPTIONAL.items() if name in arrays}
    kinds = {name: kind or spaces.action_kind for name, kind in kinds.items()}
    members = {name: arrays[name].astype(kind) for name, kind in kinds.items()}
    meta = SampleMeta(
        key=key, source=source, source_sha256="", frames=(0, n), fps=float(fps), provenance=provenance,
        tags=dict(tags or {}), spaces=spaces.to_dict(),
    )  # fmt: skip
    writer.write(key, {schema.ARRAYS: members, schema.META: meta})


def check(key, arrays, spaces):
    n = len(arrays.get(schema.REWARD, ()))
    action = (n, spaces.action_dim) if spaces.n_actions is None else (n,)
    expected = {
        schema.OBSERVATION: (n, spaces.state_dim), schema.ACTION: action, schema.REWARD: (n,),
        schema.TERMINATED: (n,), schema.TRUNCATED: (n,), schema.FINAL_OBSERVATION: (spaces.state_dim,),
    }  # fmt: skip
    optional = {schema.OPTIMAL_ACTION: action, schema.NEXT_OBSERVATION: (n, spaces.state_dim)}
    expected |= {name: shape for name, shape in optional.items() if name in arrays}
    for name, shape in expected.items():
        if name not in arrays or arrays[name].shape != shape:
            came = arrays[name].shape if name in arrays else "nothing"
            raise DataError(f"episode {key}: expected {name} of shape {shape}, got {came}")
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"episode {key}: {name} holds NaN or infinity; leave the episode out")
        if spaces.n_actions is not None and name in (schema.ACTION, schema.OPTIMAL_ACTION):
            lost = arrays[name][(arrays[name] < 0) | (arrays[name] >= spaces.n_actions)]
            if len(lost):
                raise DataError(
                    f"episode {key}: {name} {lost[0]}: expected 0 to {spaces.n_actions - 1}, as its spaces say"
                )
    if not n:
        raise DataError(f"episode {key} has no steps")


@dataclass(frozen=True)
class Trajectories:
    """E episodes of N steps together. Steps of episode e are rows offsets[e]:offsets[e + 1] of the flat arrays."""

    observation: np.ndarray  # float32 [N s]
    action: np.ndarray  # float32 [N a] in [-1, 1], or int64 [N]
    reward: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N]
    truncated: np.ndarray  # bool [N]
    final_observation: np.ndarray  # float32 [E s]
    offsets: np.ndarray  # int64 [E+1]
    tags: tuple  # of dicts, one per episode
    spaces: Spaces
    fps: float
    optimal_action: np.ndarray | None = None  # as action; None unless every episode has it
    next_observation: np.ndarray | None = None  # float32 [N s]; None unless any episode has it

    @classmethod
    def load(cls, root, where=None, on_damage="stop"):
        """All episodes of a folder of shards whose tags have the values of `where`, in the order of their keys."""
        shards = Shards(root, on_damage=on_damage)
        entries = sorted((e for e in shards.entries if has_tags(e.meta, where)), key=lambda e: e.key)
        if not entries:
            raise DataError(f"{root} holds no episodes{f' with {dict(where)}' if where else ''}; see pipelines.peek")
        spaces, fps = common(root, entries)
        samples = [shards.arrays(entry.key) for entry in entries]
        for entry, arrays in zip(entries, samples, strict=True):
            check(entry.key, arrays, spaces)
        flat = joined(samples)
        for name in {schema.ACTION, schema.OPTIMAL_ACTION} & flat.keys():
            flat[name] = spaces.to_unit(flat[name])
        return cls(
            **flat,
            final_observation=np.stack([arrays[schema.FINAL_OBSERVATION] for arrays in samples]),
            offsets=np.cumsum([0, *(len(arrays[schema.REWARD]) for arrays in samples)]),
            tags=tuple(entry.meta.get("tags", {}) for entry in entries), spaces=spaces, fps=fps,
        )  # fmt: skip

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def stepwise(self):
        """The arrays with a row per step that there are, by name."""
        found = {name: getattr(self, name) for name in (*STEPWISE, *OPTIONAL)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def lengths(self):
        """Steps per episode, int [E]."""
        return np.diff(self.offsets)

    @property
    def returns(self):
        """Undiscounted return per episode, float64 [E]."""
        return np.add.reduceat(self.reward.astype(np.float64), self.offsets[:-1])

    def returns_to_go(self, gamma=1.0):
        """sum_k gamma^k r_{t+k} to the episode's end, float32 [N]; nothing is added beyond a time limit."""
        result, total = np.zeros(len(self.reward), np.float64), 0.0
        last = np.zeros(len(self.reward), bool)
        last[self.offsets[1:] - 1] = True
        if gamma == 1.0:
            after = np.repeat(self.returns, self.lengths)
            before = np.cumsum(self.reward, dtype=np.float64)
            starts = np.concatenate([[0.0], before])[self.offsets[:-1]]
            return (after - (before - self.reward - np.repeat(starts, self.lengths))).astype(np.float32)
        for i in range(len(result) - 1, -1, -1):
            total = self.reward[i] + (0.0 if last[i] else gamma * total)
            result[i] = total
        return result.astype(np.float32)

    def following(self, rows):
        """What the actions of the steps `rows`, int [...], led to, [... s]; at an episode's end `final_observation`."""
        if self.next_observation is not None:
            return self.next_observation.take(rows, 0)
        episode = np.searchsorted(self.offsets, rows, side="right") - 1
        last = rows == self.offsets[episode + 1] - 1
        found = self.observation.take(np.where(last, rows, rows + 1), 0)
        found[last] = self.final_observation[episode[last]]
        return found

    def select(self, episodes):
        """The episodes in `episodes` (bool or int [m]), in that order."""
        episodes = np.arange(len(self))[episodes]
        rows = np.concatenate([np.arange(*self.offsets[e : e + 2]) for e in episodes]) if len(episodes) else []
        flat = {name: value[rows] for name, value in self.stepwise.items()}
        return Trajectories(
            **flat, final_observation=self.final_observation[episodes], fps=self.fps, spaces=self.spaces,
            offsets=np.cumsum([0, *self.lengths[episodes]]), tags=tuple(self.tags[e] for e in episodes),
        )  # fmt: skip


def joined(samples):
    """Arrays of episodes one after another, those of OPTIONAL that all of them have included.

    Where some say what each action led to, in the others that is the observation after it.
    """
    if any(schema.NEXT_OBSERVATION in arrays for arrays in samples):
        samples = [{schema.NEXT_OBSERVATION: after(arrays), **arrays} for arrays in samples]
    names = [*STEPWISE, *(name for name in OPTIONAL if all(name in arrays for arrays in samples))]
    return {name: np.concatenate([arrays[name] for arrays in samples]) for name in names}


def after(arrays):
    """The observations after those of an episode, [t s]."""
    return np.concatenate([arrays[schema.OBSERVATION][1:], arrays[schema.FINAL_OBSERVATION][None]])


def has_tags(meta, where):
    tags = meta.get("tags") or {}
    return all(tags.get(name) == value for name, value in (where or {}).items())


def common(root, entries):
    """(Spaces, steps per second) that all entries share."""
    found = {}
    for entry in entries:
        if entry.meta.get("spaces") is None:
            raise DataError(
                f"{root}: {entry.key} is no episode of vectors; frames are given actions by `python -m pipelines.label`"
                " and trained on with method=vpt, vectors come from `python -m foundation.collect` or an import"
            )
        found.setdefault((str(entry.meta["spaces"]), entry.meta["fps"]), entry)
    if len(found) > 1:
        kinds = [f"{entry.key}: {spaces} at {fps:g}/s" for (spaces, fps), entry in found.items()]
        raise DataError(f"{root} mixes spaces or rates ({'; '.join(kinds[:3])}); choose some with data.where")
    ((_, fps), entry) = found.popitem()
    return Spaces.from_dict(entry.meta["spaces"]), fps
