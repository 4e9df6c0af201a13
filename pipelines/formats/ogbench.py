"""OGBench's npz files (arXiv:2410.20092): observations, actions and terminals of trajectories one after another.

Three forms are told apart by the arrays that are there. In all, the last state of a trajectory becomes the episode's
final observation, so that it can be a goal, which the package's own regular form does not allow.

    as distributed    t + 1 rows a trajectory; `terminals` is 1 on the last state, whose action led nowhere
    compact           the same with `valids`, 0 on the last state; there `terminals` is 1 on the last two rows
    regular           t rows with `next_observations`; `terminals` is 1 on the last step

No state is terminal, only the recording stops, and there are no rewards: 0 stands in for them,
and the tag `rewards` is none. `qpos`, `qvel` and
`button_states` are left where they are.
"""

import numpy as np

from pipelines.folders import files_below
from pipelines.formats import npz
from pipelines.formats.episodes import FormatError, box, cut, finish, rows_per_block, scalars, vectors
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED

VALID = "valids"
NAMES = {
    OBSERVATION: ("observations",), ACTION: ("actions",), TRUNCATED: ("terminals",),
    NEXT_OBSERVATION: ("next_observations",), VALID: (VALID,),
}  # fmt: skip
FLAGS = (TRUNCATED, VALID)


def units(root, options):
    """[(name, files)]: one file each."""
    files = [root] if root.is_file() else files_below(root, npz.is_npz)
    return [(path.name if path == root else str(path.relative_to(root)), (path,)) for path in files]


def read(path, options, task):
    with npz.zipped(path) as archive:
        tags = {"task": task, "rewards": "none"}
        found, spaces = npz.columns(archive, NAMES, optional=(NEXT_OBSERVATION, VALID)), None
        for rows in cut(blocks(found)):
            if NEXT_OBSERVATION not in rows and len(rows[REWARD]) < 2:
                yield FormatError("episode", "a trajectory of one state, without a step")
                continue
            spaces = spaces or box(rows, options)
            yield finish(rows if NEXT_OBSERVATION in rows else steps(rows), spaces, options, tags)


def blocks(found):
    """Consecutive rows of all columns, with the last of each trajectory marked."""
    size = rows_per_block([(column.shape, column.dtype) for column in found.values()])
    length = found[OBSERVATION].shape[0]
    for start in range(0, length, size):
        n = min(size, length - start)
        raw = {name: column.take(n) for name, column in found.items()}
        block = {name: vectors(values) for name, values in raw.items() if name not in FLAGS}
        last = ~scalars(raw[VALID], bool) if VALID in raw else scalars(raw[TRUNCATED], bool)
        yield {**block, REWARD: np.zeros(n, np.float32), TERMINATED: np.zeros(n, bool), TRUNCATED: last}


def steps(rows):
    """t + 1 rows of states -> columns of t steps."""
    return {**{name: values[:-1] for name, values in rows.items()}, NEXT_OBSERVATION: rows[OBSERVATION][1:]}
