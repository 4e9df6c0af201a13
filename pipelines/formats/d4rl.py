"""D4RL's HDF5 files: observations, actions, rewards, terminals, timeouts and, in some, next_observations.

Terminals and timeouts stay apart, and the last step of every episode is kept. Old files have no timeouts: there an
episode also ends where the next observation is not the observation that follows.

In antmaze a terminal says that the goal was reached, and the recording goes on: `ends=timeouts`. Where `infos/goal` is
one goal all through an episode, it becomes the tag `goal`. Kitchen's observations are 30 numbers and then the goal:
`observation=["observations[:30]"]`.
"""

import re

import numpy as np

from pipelines.folders import files_below
from pipelines.formats.episodes import FormatError, box, cut, finish, rows_per_block, scalars, vectors
from pipelines.formats.hdf5 import column, find, library, opened
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED

NAMES = {
    ACTION: "actions", REWARD: "rewards", TERMINATED: "terminals", TRUNCATED: "timeouts",
    NEXT_OBSERVATION: "next_observations",
}  # fmt: skip
STATE = "observations"
OPTIONAL = (TRUNCATED, NEXT_OBSERVATION)
SUFFIXES = (".hdf5", ".h5")
PART = re.compile(r"([\w/]+)(?:\[(\d*):(\d*)\])?")  # observations, observations[:30], infos/goal
GOAL, MAX_GOAL = "goal", 128  # numbers of a goal that is a tag


def units(root, options):
    """[(name, files)]: one file each."""
    library()
    files = [root] if root.is_file() else files_below(root, lambda name: name.endswith(SUFFIXES))
    return [(path.name if path == root else str(path.relative_to(root)), (path,)) for path in files]


def read(path, options, task):
    chosen = parts(options)
    with opened(path) as file:
        found = {i: column(file, *name.split("/")) for i, (name, _) in enumerate(chosen)}
        found |= {name: column(file, theirs, optional=name in OPTIONAL) for name, theirs in NAMES.items()}
        if any(name != STATE for name, _ in chosen):
            found[NEXT_OBSERVATION] = None  # of the other parts nobody knows it
        found[GOAL] = goals(file)
        found = {name: node for name, node in found.items() if node is not None}
        if options.ends == "timeouts" and not {TRUNCATED, NEXT_OBSERVATION} & found.keys():
            raise FormatError("missing", "ends=timeouts needs an array 'timeouts' or 'next_observations'")
        spaces = None
        for columns in cut(blocks(found, chosen, options)):
            spaces = spaces or box(columns, options)
            yield finish(columns, spaces, options, {"task": task, **goal_of(columns)})


def parts(options):
    """[(name of an array, slice of its numbers)] of what makes the state."""
    found = []
    for part in options.observation or (STATE,):
        match = PART.fullmatch(part)
        if not match:
            raise FormatError("observation", f"{part!r}: expected a name such as observations, or observations[:30]")
        name, start, stop = match.groups()
        found.append((name, slice(int(start or 0), int(stop) if stop else None)))
    return found


def goals(file):
    """The goals of every step, or None where there are none that fit a tag."""
    node = find(file, "infos", GOAL)
    fits = node is not None and getattr(node, "ndim", 0) == 2 and 0 < node.shape[1] <= MAX_GOAL
    return column(file, "infos", GOAL) if fits else None


def goal_of(columns):
    """{"goal": [...]} if the episode has one, and only one."""
    rows = columns.get(GOAL)
    one = rows is not None and (rows == rows[0]).all() and np.isfinite(rows[0]).all()
    return {GOAL: rows[0].tolist()} if one else {}


def blocks(found, chosen, options):
    """Consecutive rows of all columns."""
    size = rows_per_block([(node.shape, node.dtype) for node in found.values()])
    for start in range(0, len(found[REWARD]), size):
        yield typed({name: node[start : start + size] for name, node in found.items()}, chosen, options)


def typed(raw, chosen, options):
    """Columns in our shapes and types."""
    kinds = {REWARD: "f4", TERMINATED: bool, TRUNCATED: bool}
    columns = {name: scalars(raw[name], kind) for name, kind in kinds.items() if name in raw}
    columns |= {name: vectors(raw[name]) for name in (ACTION, GOAL) if name in raw}
    columns[OBSERVATION] = joined([raw[i] for i in range(len(chosen))], chosen)
    if NEXT_OBSERVATION in raw:
        columns[NEXT_OBSERVATION] = joined([raw[NEXT_OBSERVATION]] * len(chosen), chosen)
    if options.ends == "timeouts":
        columns[TERMINATED] = np.zeros_like(columns[TERMINATED])
    return columns


def joined(arrays, chosen):
    """float32 [n s]: the chosen numbers of arrays [n ...] side by side."""
    found = []
    for array, (name, which) in zip(map(vectors, arrays), chosen, strict=True):
        n = array.shape[1]
        if not which.start < (n if which.stop is None else which.stop) <= n:
            asked = f"{name}[{which.start or ''}:{which.stop or ''}]"
            raise FormatError("observation", f"{asked} is no part of its {n} numbers; set observation=")
        found.append(array[:, which])
    return np.concatenate(found, 1)
