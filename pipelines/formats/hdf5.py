"""HDF5 files from elsewhere: plain numbers that lie in the file itself, read a bounded piece at a time."""

from contextlib import contextmanager

import numpy as np

from pipelines.formats.episodes import FormatError
from pipelines.schema import DataError
from pipelines.shards import MAX_ARRAY_BYTES


def library():
    try:
        import h5py
    except ImportError as error:
        raise DataError('HDF5 files need h5py: pip install "foundation-policy[hdf5]"') from error
    return h5py


@contextmanager
def opened(path):
    """The file; what cannot be opened or is damaged inside is a FormatError."""
    h5py = library()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FormatError("unreadable", f"not a whole HDF5 file ({error})") from error


def find(group, *names):
    """The node at a path of names, or None. Links to elsewhere are not followed: they could name any file."""
    for name in names:
        links = group.id.links if isinstance(group, library().Group) else None
        if links is None or not links.exists(name.encode()):
            return None
        if links.get_info(name.encode()).type != library().h5l.TYPE_HARD:
            raise FormatError("link", f"{name} is a link to another place; copy the data into one file")
        group = group[name]
    return group


def column(group, *names, optional=False):
    """A dataset of numbers with a row per step; nothing is read yet."""
    node = find(group, *names)
    if node is None and optional:
        return None
    name = "/".join(names)
    if not isinstance(node, library().Dataset):
        there = ", ".join(sorted(group.keys())[:12])
        raise FormatError("missing", f"expected an array {name!r}, the file has: {there}")
    if node.external or node.is_virtual:
        raise FormatError("link", f"{name} keeps its values in another file; copy them into one")
    if node.dtype.kind not in "fiub" or not node.shape:
        raise FormatError("dtype", f"{name} is {node.dtype} {list(node.shape)}; expected numbers, a row per step")
    if node.chunks and int(np.prod(node.chunks, dtype=object)) * node.dtype.itemsize > MAX_ARRAY_BYTES:
        raise FormatError("too_large", f"{name} is stored in pieces of {list(node.chunks)}")
    return node


def whole(node):
    """All rows of a column of one episode."""
    if node.size * node.dtype.itemsize > MAX_ARRAY_BYTES:
        raise FormatError("too_large", f"{node.name} of shape {list(node.shape)} is more than one episode can have")
    return node[()]
