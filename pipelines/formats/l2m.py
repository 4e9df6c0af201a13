"""The data of L2M on the hub: npz files of Meta-World and DMControl.

    2M/<task>.npz                   observations, next_observations, actions, rewards, dones of a whole replay buffer
    2M_separate/<task>/<any>.npz    states (or observations), actions, rewards, dones of one trajectory

Neither benchmark has terminal states: `dones` marks time limits. Files are read front to back, a block at a time.
"""

import tokenize
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from pipelines.formats.episodes import FormatError, box, cut, finish, rows_per_block, scalars, vectors
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from pipelines.shards import ODD

NAMES = {
    OBSERVATION: ("observations", "states"), ACTION: ("actions",), REWARD: ("rewards",), TRUNCATED: ("dones",),
    NEXT_OBSERVATION: ("next_observations",),
}  # fmt: skip
DAMAGE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, *ODD)


def units(root, options):
    """[(name, files)]: a file of its own, or all trajectories in a folder below `root`."""
    if root.is_file():
        return [(root.name, (root,))]
    groups = {}
    for path in sorted(root.rglob("*.npz")):
        name = path.relative_to(root)
        groups.setdefault(str(name if path.parent == root else name.parent), []).append(path)
    return [(name, tuple(paths)) for name, paths in groups.items()]


def read(path, options, task):
    with zipped(path) as archive:
        there = {info.filename: info for info in archive.infolist()}
        columns = {}
        for ours, theirs in NAMES.items():
            name = next((name for name in theirs if f"{name}.npy" in there), None)
            if name:
                columns[ours] = Column(archive, there[f"{name}.npy"])
            elif ours != NEXT_OBSERVATION:
                raise FormatError("missing", f"no array {theirs[0]}.npy; the file has {', '.join(sorted(there))[:200]}")
        single = columns[TRUNCATED].shape in ((), (1,)) and columns[REWARD].shape[:1] != (1,)  # one flag for all of it
        if single:
            del columns[TRUNCATED]
        spaces = None
        for episode in cut(blocks(columns, single)):
            spaces = spaces or box(episode, options)
            yield finish(episode, spaces, options, {"task": task})


@contextmanager
def zipped(path):
    """The archive; what is damaged in it is a FormatError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FormatError:
        raise
    except DAMAGE as error:
        raise FormatError("unreadable", f"not a whole npz file ({type(error).__name__}: {error})") from error


class Column:
    """One array of an npz, read front to back; its header is checked before anything is allocated."""

    def __init__(self, archive, info):
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError("dtype", f"{info.filename} is compressed in a way that numpy does not use")
        self.file = archive.open(info)
        version = np.lib.format.read_magic(self.file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = header(self.file)
        if self.dtype.kind not in "fiub":
            raise FormatError("dtype", f"{info.filename} is {self.dtype}; expected numbers (pickles are refused)")
        if fortran and len(self.shape) > 1:
            raise FormatError("dtype", f"{info.filename} is stored by columns; save np.ascontiguousarray of it")
        self.row = int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize
        if int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize != info.file_size - self.file.tell():
            raise FormatError("unreadable", f"the header of {info.filename} promises {self.shape}, the data differ")

    def take(self, n):
        """The next n rows."""
        data = self.file.read(n * self.row)
        if len(data) != n * self.row:
            raise FormatError("unreadable", "the file ends inside an array")
        return np.frombuffer(data, self.dtype).reshape(n, *self.shape[1:])


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
