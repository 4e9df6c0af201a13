"""D4RL's HDF5 files: observations, actions, rewards, terminals, timeouts and, in some, next_observations.

Terminals and timeouts stay apart, and the last step of every episode is kept. Old files have no timeouts: there an
episode also ends where the next observation is not the observation that follows.
"""

from pipelines.formats.episodes import box, cut, finish, rows_per_block, scalars, vectors
from pipelines.formats.hdf5 import column, library, opened
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED

NAMES = {
    OBSERVATION: "observations", ACTION: "actions", REWARD: "rewards", TERMINATED: "terminals",
    TRUNCATED: "timeouts", NEXT_OBSERVATION: "next_observations",
}  # fmt: skip
OPTIONAL = (TRUNCATED, NEXT_OBSERVATION)
SUFFIXES = (".hdf5", ".h5")


def units(root, options):
    """[(name, files)]: one file each."""
    library()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES)
    return [(path.name if path == root else str(path.relative_to(root)), (path,)) for path in files]


def read(path, options, task):
    with opened(path) as file:
        found = {name: column(file, theirs, optional=name in OPTIONAL) for name, theirs in NAMES.items()}
        found = {name: node for name, node in found.items() if node is not None}
        spaces = None
        for columns in cut(blocks(found)):
            spaces = spaces or box(columns, options)
            yield finish(columns, spaces, options, {"task": task})


def blocks(found):
    """Consecutive rows of all columns."""
    size = rows_per_block([(node.shape, node.dtype) for node in found.values()])
    for start in range(0, len(found[REWARD]), size):
        yield typed({name: node[start : start + size] for name, node in found.items()})


def typed(columns):
    """Columns in our shapes and types."""
    kinds = {REWARD: "f4", TERMINATED: bool, TRUNCATED: bool}
    return {name: scalars(a, kinds[name]) if name in kinds else vectors(a) for name, a in columns.items()}
