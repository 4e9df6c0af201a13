"""What readers of other tools' files yield, and how rows without marks between them become episodes."""

from dataclasses import asdict, dataclass, field

import numpy as np

from pipelines.recordings import LogError
from pipelines.schema import ACTION, FINAL_OBSERVATION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from pipelines.shards import MAX_ARRAY_BYTES
from pipelines.trajectories import Spaces

JUMP = 1e-6  # distance between a step's next observation and the following observation that begins another episode
BLOCK_BYTES = 16 << 20  # read at once
REPEATED = "final_observation_repeated"
OUTSIDE = "actions_outside_bounds"
DROPPED = "last_step_dropped"
UNSET = (("ends", None), ("last", "repeat"))


class FormatError(LogError):
    """A file, or one episode of it, that cannot be used; `code` is one of the words of `rejected.jsonl`."""


@dataclass(frozen=True)
class Options:
    """What a file does not say itself."""

    fps: float | None = None  # steps per second
    low: tuple | float | None = None  # bounds of the actions: one for all dimensions, or one each
    high: tuple | float | None = None
    observation: tuple = ()  # parts of the observation to keep, in this order; () = all
    task: str | None = None
    ends: str | None = None  # D4RL: "timeouts" = nothing else ends an episode
    last: str = "repeat"  # of files without next observations: what becomes of an episode's last step, repeat | drop

    def to_dict(self):
        found = asdict(self)  # what later versions added only where it is set: folders made before then still fit
        return {name: value for name, value in found.items() if (name, value) not in UNSET}

    def bounds(self, action_dim, found=None):
        """(low, high) tuples: as given, else as `found` in the file, else [-1, 1]."""
        given = (self.low, self.high) if self.low is not None and self.high is not None else None
        sides = []
        for side in given or found or (-1.0, 1.0):
            values = np.asarray(side, np.float64).reshape(-1)
            if len(values) not in (1, action_dim):
                raise FormatError("bounds", f"{len(values)} bounds for actions of {action_dim} dimensions")
            sides.append(np.broadcast_to(values, action_dim))
        low, high = sides
        if not np.isfinite(sides).all() or (low >= high).any():
            raise FormatError("bounds", "actions have no finite bounds low < high; set low= and high=")
        return tuple(low.tolist()), tuple(high.tolist())


@dataclass
class Episode:
    """One episode for `pipelines.trajectories.write_episode`."""

    arrays: dict
    spaces: Spaces
    fps: float
    tags: dict = field(default_factory=dict)
    notes: tuple = ()


def box(columns, options, found=None):
    """Spaces of continuous actions."""
    state_dim, action_dim = columns[OBSERVATION].shape[1], columns[ACTION].shape[1]
    low, high = options.bounds(action_dim, found)
    return Spaces(state_dim, action_dim, low=low, high=high)


def cut(blocks):
    """Blocks of consecutive rows -> columns of one episode after another.

    Columns: OBSERVATION [n s], ACTION, REWARD, TERMINATED and, if the file has them, TRUNCATED and NEXT_OBSERVATION.
    Rows that end neither way belong to the episode that follows, and at the end of the file to one that was cut there.
    """
    rest = None
    for block in blocks:
        rest = block if rest is None else {name: np.concatenate([rest[name], block[name]]) for name in block}
        start = 0
        for end in np.flatnonzero(last_steps(rest)) + 1:
            yield {name: value[start:end] for name, value in rest.items()}
            start = end
        rest = {name: value[start:] for name, value in rest.items()}
        if sum(value.nbytes for value in rest.values()) > MAX_ARRAY_BYTES:
            raise FormatError("no_boundaries", f"{len(rest[REWARD])} steps without the end of an episode")
    if rest is not None and len(rest[REWARD]):
        yield rest


def last_steps(columns):
    """bool [n]: the step ends an episode. Where no time limits are marked, the next observation gives them away."""
    ends = columns[TERMINATED].copy()
    if TRUNCATED in columns:
        return ends | columns[TRUNCATED]
    if NEXT_OBSERVATION in columns:
        gap = columns[OBSERVATION][1:].astype(np.float64) - columns[NEXT_OBSERVATION][:-1]
        ends[:-1] |= np.linalg.norm(gap, axis=1) > JUMP
    return ends


def finish(columns, spaces, options, tags=None, fps=None, known=False):
    """Episode of the columns of `cut`; known: the file itself says what bounds the actions have.

    With bounds that were only assumed, an episode whose actions leave them is a FormatError.

    What ends without being terminal was cut: by a time limit, or where the recording stops. Files without next
    observations do not say what the last action led to: the last observation stands in for it, or, with
    `options.last` = drop, the step is left out and its observation is the final one. A note says so.
    """
    notes, final = [], columns.get(NEXT_OBSERVATION, columns[OBSERVATION])[-1]
    if NEXT_OBSERVATION not in columns:
        notes.append(DROPPED if options.last == "drop" else REPEATED)
        if options.last == "drop":
            columns = {name: value[:-1] for name, value in columns.items()}
    if not len(columns[REWARD]):
        return FormatError("episode", "one step alone, and last=drop leaves it out")
    arrays = {name: columns[name] for name in (OBSERVATION, ACTION, REWARD, TERMINATED)}
    truncated = columns.get(TRUNCATED, np.zeros(len(arrays[REWARD]), bool)).copy()
    truncated[-1] |= not arrays[TERMINATED][-1]
    if spaces.n_actions is None and outside(arrays[ACTION], spaces):
        if options.low is None and not known:
            size = float(np.abs(arrays[ACTION]).max())
            return FormatError("bounds", f"actions reach {size:g}, beyond [-1, 1]; set low= and high=")
        notes.append(OUTSIDE)
    arrays |= {TRUNCATED: truncated, FINAL_OBSERVATION: final}
    return Episode(arrays, spaces, options.fps or fps or 1.0, dict(tags or {}), tuple(notes))


def outside(action, spaces, tolerance=1e-3):
    """Whether an action leaves the bounds by more than a thousandth of their distance."""
    low, high = np.array(spaces.low), np.array(spaces.high)
    margin = tolerance * (high - low)
    return bool(((action < low - margin) | (action > high + margin)).any())


def rows_per_block(columns):
    """How many rows are read at once; columns: [(shape, dtype)], FormatError unless all have as many rows."""
    lengths = {shape[0] if shape else 0 for shape, _ in columns}
    if len(lengths) != 1:
        raise FormatError("lengths", f"the arrays have {sorted(lengths)} rows; expected one number")
    row = sum(int(np.prod(shape[1:], dtype=object)) * np.dtype(dtype).itemsize for shape, dtype in columns)
    if row > BLOCK_BYTES:
        raise FormatError("too_large", f"one step has {row} bytes; expected vectors")
    return max(1, BLOCK_BYTES // max(row, 1))


def vectors(array):
    """[n ...] -> float32 [n s]; a buffer of one environment [n 1 s] is one too."""
    if array.ndim > 3 or (array.ndim == 3 and array.shape[1] != 1):
        raise FormatError("shape", f"rows of shape {list(array.shape[1:])}; expected vectors of one environment")
    return np.ascontiguousarray(array.reshape(len(array), -1), np.float32)


def scalars(array, kind):
    """[n] or [n 1] -> kind [n]"""
    if array.size != len(array):
        raise FormatError("shape", f"rows of shape {list(array.shape[1:])}; expected one number a step")
    return array.reshape(-1).astype(kind)
