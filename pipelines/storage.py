"""Where shards are read from: a local folder, or any address that fsspec understands.

    open_folder("data/clips")   open_folder("http://host/clips")   open_folder("s3://bucket/clips")
    open_folder("simplecache::s3://bucket/clips")   open_folder("zip://clips::/data/clips.zip")

Local folders are read by `os.pread`, others by range requests. Shards are written to local folders only: a rename is
what commits a shard, and object stores have none.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.schema import DataError

LISTING = "listing.txt"  # file names one a line, for servers that cannot list a folder
BLOCK = 8 << 20  # bytes read at once of a file that is read as a whole
OPEN_FILES = 128
PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt
THREADS = 16
LOCAL = ("file://", "local://")


class ShardError(DataError):
    """A file of shards cannot be read or is damaged: nothing is known about the samples in it."""


def is_remote(address):
    text = str(address)
    return ("://" in text or "::" in text) and not text.startswith(LOCAL)


def local(address, what):
    """Path of a folder that is to be written; DataError for addresses of other machines."""
    if is_remote(address):
        raise DataError(
            f"{what}={address}: shards are written to a local folder; copy it when it is done (any tool will do, the"
            " files never change), it can then be read from there"
        )
    return Path(bare(address))


def bare(address):
    """A local address without its protocol."""
    text = str(address)
    return next((text[len(start) :] for start in LOCAL if text.startswith(start)), text)


def open_folder(address):
    return RemoteFolder(address) if is_remote(address) else LocalFolder(bare(address))


UNKNOWN = -1  # size of a file that is there


class LocalFolder:
    """A folder of this machine. Reads share no position, so threads and forked workers may share the object."""

    def __init__(self, root):
        self.root, self._handles = Path(root), {}

    def names(self):
        """Sorted names of the files."""
        if not self.root.is_dir():
            made = "pipelines.ingest makes one of videos, foundation.collect of play, pipelines.exchange of other data"
            raise DataError(f"no folder of shards at {self.root}; {made}")
        return sorted(os.listdir(self.root))

    def sizes(self, names):
        """{name: bytes, or None where there is no such file}"""
        return {name: self._size(name) for name in names}

    def _size(self, name):
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return None

    def read(self, name):
        return (self.root / name).read_bytes()

    def read_many(self, names):
        """Yields (name, bytes or exception), in order."""
        for name in names:
            try:
                yield name, self.read(name)
            except OSError as error:
                yield name, error

    def range(self, name, offset, size):
        """bytes [offset, offset + size) of a file, fewer where it ends."""
        handle = self._handles.get(name)
        try:
            if handle is not None:
                return os.pread(handle, size, offset)
            handle = os.open(self.root / name, os.O_RDONLY)
            data = os.pread(handle, size, offset)
        except OSError as error:
            raise ShardError(f"cannot read {self.root / name} ({error.strerror})") from error
        # Only files beyond the first OPEN_FILES are closed again: closing one that a thread reads would be a race.
        if len(self._handles) >= OPEN_FILES or self._handles.setdefault(name, handle) != handle:
            os.close(handle)
        return data

    def blocks(self, name, size):
        """Yields the first `size` bytes of a file piece by piece."""
        for offset in range(0, size, BLOCK):
            yield self.range(name, offset, min(BLOCK, size - offset))

    def close(self):
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __getstate__(self):
        return {**self.__dict__, "_handles": {}}  # descriptors belong to this process

    def __del__(self):
        if hasattr(self, "_handles"):
            self.close()


class RemoteFolder:
    """A folder at an fsspec address."""

    def __init__(self, address):
        self.root = str(address)
        self._fs = self._path = self._pid = None
        self.fs.invalidate_cache()

    @property
    def fs(self):
        if self._pid != os.getpid():  # connections and their threads do not survive a fork
            self._fs, path = connect(self.root)
            self._path, self._pid = path.rstrip("/"), os.getpid()
        return self._fs

    def path(self, name):
        return f"{self._path}/{name}" if self._path else name

    def names(self):
        """Sorted names of the files: as the server lists them or, where it cannot, as `listing.txt` does."""
        try:
            listed = [str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self._path or "", detail=False)]
            reason = "lists no manifest there"
        except Exception as error:  # every protocol has errors of its own
            listed, reason = [], f"cannot list it ({type(error).__name__}: {error})"
        if any(name.endswith(".json") for name in listed):
            return sorted(set(listed))
        try:
            return sorted(set(self.read(LISTING).decode("utf-8").split()))
        except FileNotFoundError:
            raise DataError(
                f"no shards found at {self.root}: the server {reason}, and there is no {LISTING}. If the shards are"
                f" there, write one beside them: `cd <folder> && ls > {LISTING}`"
            ) from None

    def sizes(self, names):
        """{name: bytes, or None where there is no such file}. A size the server does not tell is not checked."""
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(names, pool.map(self._size, names), strict=True))

    def _size(self, name):
        try:
            size = self._tried(name, lambda: self.fs.info(self.path(name)).get("size"))
        except FileNotFoundError:
            return None
        return UNKNOWN if size is None else size

    def read(self, name):
        return self._tried(name, lambda: self.fs.cat_file(self.path(name)))

    def read_many(self, names):
        """Yields (name, bytes or exception), in order, several requests at a time."""
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(names), 4 * THREADS):  # bounds what waits in memory
                part = names[start : start + 4 * THREADS]
                yield from zip(part, pool.map(self._attempt, part), strict=True)

    def _attempt(self, name):
        try:
            return self.read(name)
        except (OSError, DataError) as error:
            return error

    def range(self, name, offset, size):
        """bytes [offset, offset + size) of a file, fewer where it ends."""
        if not size:
            return b""
        try:
            data = self._tried(name, lambda: self.fs.cat_file(self.path(name), start=offset, end=offset + size))
        except FileNotFoundError as error:
            raise ShardError(f"{self.root}/{name} is not there any more") from error
        if len(data) > size:
            raise ShardError(
                f"the server of {self.root} sends whole files where a part is asked for; read through a local copy"
                f" with simplecache::{self.root}, or use a server with range requests"
            )
        return data

    blocks = LocalFolder.blocks

    def _tried(self, name, call):
        for pause in (*PAUSES, None):
            try:
                return call()
            except FileNotFoundError:
                raise
            except Exception as error:  # every protocol has errors of its own
                if pause is None:
                    reason = f"{type(error).__name__}: {error}"
                    raise ShardError(f"cannot read {self.root}/{name}, tried three times ({reason})") from error
                time.sleep(pause)

    def close(self):
        pass

    def __getstate__(self):
        return {**self.__dict__, "_fs": None, "_pid": None}


def connect(address):
    """(file system, path) of an fsspec address."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise DataError(f"{address} needs a package that is not installed ({error})") from error
    except (ValueError, OSError) as error:
        raise DataError(f"cannot open {address} ({error}); expected a folder or an address fsspec knows") from error
