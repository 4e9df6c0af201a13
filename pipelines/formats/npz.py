"""npz files from elsewhere: plain numbers, read front to back a block at a time. Pickles are refused, never opened."""

import tokenize
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from pipelines.formats.episodes import FormatError
from pipelines.shards import MAX_ARRAY_BYTES, ODD

DAMAGE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, *ODD)


def is_npz(name):
    """Whether a file is one, by its name."""
    return name.endswith(".npz")


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


def columns(archive, names, optional=()):
    """{ours: Column} of names {ours: (theirs, or theirs, ...)}; FormatError where one that is not optional is missing.

    Nothing is read yet but the headers.
    """
    there, found = {info.filename: info for info in archive.infolist()}, {}
    for ours, theirs in names.items():
        name = next((name for name in theirs if f"{name}.npy" in there), None)
        if name:
            found[ours] = Column(archive, there[f"{name}.npy"])
        elif ours not in optional:
            raise FormatError("missing", f"no array {theirs[0]}.npy; the file has {', '.join(sorted(there))[:200]}")
    return found


class Column:
    """One array of an npz, read front to back; its header is checked before anything is allocated."""

    def __init__(self, archive, info):
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError("dtype", f"{info.filename} is compressed in a way that numpy does not use")
        self.name, self.file = info.filename, archive.open(info)
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

    def whole(self):
        """All rows of a column of one episode."""
        if not self.shape or self.shape[0] * self.row > MAX_ARRAY_BYTES:
            raise FormatError("too_large", f"{self.name} of shape {self.shape} is no column of one episode")
        return self.take(self.shape[0])
