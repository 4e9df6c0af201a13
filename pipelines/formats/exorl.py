"""ExORL's data (arXiv:2201.13425): a folder of npz files, one episode of dm_control each.

    walker/rnd/buffer/episode_000000_1000.npz    observation, action, reward, discount, physics: t + 1 rows each

Row i holds what the action of the same row led to: its observation, reward and discount. Row 0 is the reset, its action
a dummy. A discount of 0 is a terminal state; episodes that end with another were cut by time. `physics`, from which the
rewards of other tasks are computed, is left where it is.
"""

import numpy as np

from pipelines.folders import files_below
from pipelines.formats import npz
from pipelines.formats.episodes import FormatError, box, finish, scalars, vectors
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED

DISCOUNT = "discount"
NAMES = {name: (name,) for name in (OBSERVATION, ACTION, REWARD, DISCOUNT)}
FILES = 250  # of a unit: a folder has thousands
BUFFER = "buffer"  # the last folder's usual name, which says nothing


def units(root, options):
    """[(name, files)]: a file of its own, or the files of every folder, `FILES` at a time."""
    if root.is_file():
        return [(root.name, (root,))]
    folders = {}
    for path in files_below(root, npz.is_npz):
        folders.setdefault(path.parent, []).append(path)
    return [
        (f"{folder.relative_to(root)}/{start // FILES:05d}", tuple(paths[start : start + FILES]))
        for folder, paths in folders.items()
        for start in range(0, len(paths), FILES)
    ]


def read(path, options, task):
    with npz.zipped(path) as archive:
        found = {name: column.whole() for name, column in npz.columns(archive, NAMES).items()}
    steps = shifted(found)
    yield finish(steps, box(steps, options), options, {"task": options.task or name_of(path.absolute().parent)})


def shifted(rows):
    """t + 1 rows of a file -> columns of t steps."""
    lengths = {len(values) for values in rows.values()}
    if len(lengths) != 1 or lengths <= {0, 1}:
        raise FormatError("lengths", f"the arrays have {sorted(lengths)} rows; expected one number of at least 2")
    observation, ended = vectors(rows[OBSERVATION]), scalars(rows[DISCOUNT][1:], np.float64) == 0
    if ended[:-1].any():
        raise FormatError("episode", f"the discount is 0 in row {ended.argmax() + 1}, and the file goes on")
    return {
        OBSERVATION: observation[:-1], NEXT_OBSERVATION: observation[1:], ACTION: vectors(rows[ACTION][1:]),
        REWARD: scalars(rows[REWARD][1:], "f4"), TERMINATED: ended,
    }  # fmt: skip


def name_of(folder):
    """rnd of .../rnd/buffer, else the folder's own name."""
    return (folder.parent if folder.name == BUFFER else folder).name
