"""The data of L2M on the hub: npz files of Meta-World and DMControl.

    2M/<task>.npz                   observations, next_observations, actions, rewards, dones of a whole replay buffer
    2M_separate/<task>/<any>.npz    states (or observations), actions, rewards, dones of one trajectory

Neither benchmark has terminal states: `dones` marks time limits. Files are read front to back, a block at a time.
"""

import numpy as np

from pipelines.folders import files_below
from pipelines.formats import npz
from pipelines.formats.episodes import box, cut, finish, rows_per_block, scalars, vectors
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED

NAMES = {
    OBSERVATION: ("observations", "states"), ACTION: ("actions",), REWARD: ("rewards",), TRUNCATED: ("dones",),
    NEXT_OBSERVATION: ("next_observations",),
}  # fmt: skip


def units(root, options):
    """[(name, files)]: a file of its own, or all trajectories in a folder below `root`."""
    if root.is_file():
        return [(root.name, (root,))]
    groups = {}
    for path in files_below(root, npz.is_npz):
        name = path.relative_to(root)
        groups.setdefault(str(name if path.parent == root else name.parent), []).append(path)
    return [(name, tuple(paths)) for name, paths in groups.items()]


def read(path, options, task):
    with npz.zipped(path) as archive:
        columns = npz.columns(archive, NAMES, optional=(NEXT_OBSERVATION,))
        single = columns[TRUNCATED].shape in ((), (1,)) and columns[REWARD].shape[:1] != (1,)  # one flag for all of it
        if single:
            del columns[TRUNCATED]
        spaces = None
        for episode in cut(blocks(columns, single)):
            spaces = spaces or box(episode, options)
            yield finish(episode, spaces, options, {"task": task})


def blocks(columns, single):
    """Consecutive rows of all columns; `single`: the file is one trajectory."""
    size = rows_per_block([(column.shape, column.dtype) for column in columns.values()])
    length = columns[REWARD].shape[0]
    for start in range(0, length, size):
        n = min(size, length - start)
        raw = {name: column.take(n) for name, column in columns.items()}
        block = {name: vectors(a) for name, a in raw.items() if name not in (REWARD, TRUNCATED)}
        ends = np.zeros(n, bool) if single else scalars(raw[TRUNCATED], bool)
        yield {**block, REWARD: scalars(raw[REWARD], "f4"), TERMINATED: np.zeros(n, bool), TRUNCATED: ends}
