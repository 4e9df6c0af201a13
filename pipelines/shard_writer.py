"""Writing shards: one tar after another, atomic, deterministic, hashed while written. See `pipelines/shards.py`."""

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import tarfile
import time
import uuid
import zlib

import numpy as np

from pipelines import manifest as disk
from pipelines import storage, tars
from pipelines.schema import ARRAYS, META, DataError, SampleMeta, check_key

BLOCK, RECORD = 512, 10240  # bytes of a tar header, and of the unit a tar is padded to
ATTEMPTS = 20  # to commit a unit that another process commits as well


class ShardWriter:
    """Writes samples into tars of `samples_per_shard`; leaving the `with` block normally commits the rest.

    Without `unit` every full shard is committed at once. With `unit` (the id of the work that makes these shards) all
    parts keep temporary names until the end and are committed together, so that a killed writer leaves nothing behind
    that readers could see, and one that fails removes its own files only: equal work of another process has the same
    final names.
    `fingerprint` (of what made the data) and `counts` go into the manifests.
    """

    def __init__(self, root, prefix="clips", samples_per_shard=256, unit=None, fingerprint=None, counts=None):
        self.root, self.prefix, self.limit = storage.local(root, "out"), check_key(prefix), int(samples_per_shard)
        self.unit, self.facts = unit, {"unit": unit, "fingerprint": fingerprint, "counts": dict(counts or {})}
        if self.limit < 1:
            raise DataError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make the folder {root} ({error.strerror}); choose another out=") from error
        if unit is None and (self.root / f"{prefix}-00000.json").exists():
            raise DataError(f"{root} already holds {prefix!r} shards; choose another folder or another prefix")
        self.tar, self.keys, self.pending, self.committed = None, set(), [], []
        self.before = None if unit is None else disk.finished(self.root, prefix, unit)

    def write(self, key, members):
        """members: {"mp4": bytes, "npz": {name: array}, "json": dict}, any extension; bytes are stored as they are."""
        if check_key(key) in self.keys:
            raise DataError(f"sample key {key!r} is written twice to {self.root}")
        meta = members.get(META, {})
        meta = meta.to_dict() if isinstance(meta, SampleMeta) else meta
        payloads = {name: payload(name, meta if name == META else value) for name, value in sorted(members.items())}
        if self.tar is None:
            self.tar = TarFile(self.root)
        self.keys.add(key)
        self.tar.add(key, payloads, json.loads(disk.to_json(meta)))
        if len(self.tar.entries) >= self.limit:
            self._finish_tar()

    def _finish_tar(self):
        self.pending.append(self.tar)
        self.tar = None
        self.pending[-1].finish()
        if self.unit is None:
            self._commit()

    def _commit(self):
        """Publishes what is pending, manifests last."""
        first = len(self.committed)
        made = [tar.publish(f"{self.prefix}-{first + i:05d}") for i, tar in enumerate(self.pending)]
        made = [{**manifest, **self.facts, "part": first + i} for i, manifest in enumerate(made)]
        if self.unit is not None:
            made = [{**manifest, "parts": len(made), "set": _set(made)} for manifest in made]
        self._write(made)
        for tar in self.pending:
            tar.close()
        self.committed, self.pending = self.committed + made, []

    def _write(self, manifests):
        for manifest in [*manifests[1:], *manifests[:1]]:  # part 0 last: it commits the unit
            disk.write_atomic(self.root / f"{self.prefix}-{manifest['part']:05d}.json", disk.sealed(manifest))

    def close(self):
        """Commits what is left; returns all manifests of this writer."""
        if self.tar is not None:
            self._finish_tar()
        if self.unit is None:
            self._commit()
            return self.committed
        there = disk.finished(self.root, self.prefix, self.unit)
        if there and self.pending and there != self.before:  # another process was faster
            self.abort()
            self.committed = there
        else:
            self._commit()
            self._settle()
        self._drop_leftovers()
        return self.committed

    def _settle(self):
        """Processes that commit one unit at once, with other bytes, mix their parts: they repeat until one is whole.

        The same loop notices that files were deleted meanwhile: the folder, say.
        """
        for attempt in range(ATTEMPTS if self.committed else 0):
            there = disk.finished(self.root, self.prefix, self.unit)
            if there:
                self.committed = there
                return
            time.sleep(0.01 * attempt * (1 + os.getpid() % 7))
            self._write(self.committed)
        if self.committed:
            raise DataError(f"shards were deleted from {self.root} while they were written; run the same command again")

    def _drop_leftovers(self):
        """Parts of an earlier, longer version of the same unit, the committing one first.

        Parts are committed in ascending order and dropped in descending order, so there are no gaps to look behind:
        listing the folder for every unit would cost the square of their number.
        """
        first, paths = len(self.committed), []
        for number in itertools.count(max(1, first)):
            path = self.root / f"{self.prefix}-{number:05d}.json"
            if not path.exists():
                break
            paths.append(path)
        for path in [*([] if first else [self.root / f"{self.prefix}-00000.json"]), *reversed(paths)]:
            path.unlink(missing_ok=True)

    def abort(self):
        """Drops what is not committed."""
        for tar in (*self.pending, *([self.tar] if self.tar else [])):
            tar.abort()
        self.tar, self.pending = None, []

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


def _set(manifests):
    """What parts that were committed together have in common: parts of two racing writers never mix."""
    return hashlib.sha256(" ".join(m["sha256"] for m in manifests).encode()).hexdigest()[:16]


class TarFile:
    """One tar under a temporary name, hashed while it is written; locked, so that `pipelines.gc` lets it be."""

    def __init__(self, root):
        self.root = root
        self.part = root / f".{os.getpid()}-{uuid.uuid4().hex[:12]}.tar.part"
        self.entries, self.members, self.offset, self.digest = [], {}, 0, hashlib.sha256()
        try:
            self.file = open(self.part, "wb")  # noqa: SIM115 closed by close or abort
        except OSError as error:
            raise DataError(f"cannot write into {root} ({error.strerror}); choose another out=") from error
        with contextlib.suppress(OSError):  # a file system without locks: the age of the file has to do
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def add(self, key, payloads, meta):
        for extension, data in payloads.items():
            info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, uid, gid 0; mode 0644
            info.size = len(data)
            self._put(info.tobuf(tarfile.GNU_FORMAT))
            self.members[info.name] = [self.offset, len(data), zlib.crc32(data)]
            self._put(data + b"\0" * (-len(data) % BLOCK))
        self.entries.append({"key": key, "meta": meta})

    def _put(self, data):
        with self._told():
            self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def finish(self):
        """Ends the tar, still under its temporary name."""
        self._put(b"\0" * (2 * BLOCK + -(self.offset + 2 * BLOCK) % RECORD))
        with self._told():
            self.file.flush()
            os.fsync(self.file.fileno())

    def publish(self, stem):
        """Renames the tar to its content-addressed name, writes its index; returns its manifest."""
        sha256 = self.digest.hexdigest()
        path = self.root / f"{stem}-{sha256[:12]}.tar"
        with self._told():
            os.utime(self.part)  # it may have waited for the other parts of its unit
            os.replace(self.part, path)
        index = {"sha256": sha256, "members": self.members}
        disk.write_atomic(path.with_name(tars.index_name(path)), disk.sealed(index))
        return disk.new_manifest(path.name, self.offset, sha256, self.entries)

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"{self.part} was deleted while it was written; run the same command again") from error
        except OSError as error:
            self.abort()
            raise DataError(f"cannot write into {self.root} ({error.strerror}); free space or change out=") from error

    def close(self):
        with contextlib.suppress(OSError):  # closing flushes, and the disk that was full still is
            self.file.close()

    def abort(self):
        self.close()
        with contextlib.suppress(OSError):
            self.part.unlink()


def payload(extension, value):
    """Bytes of a member: arrays as npz, dicts as canonical JSON, bytes as they are."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if extension == META:
        return disk.to_json(value)
    if extension == ARRAYS:
        arrays = {name: np.asarray(array) for name, array in value.items()}
        if bad := [name for name, array in arrays.items() if array.dtype.hasobject]:
            raise DataError(f"arrays {bad} hold Python objects; shards store numbers only")
        target = io.BytesIO()
        np.savez_compressed(target, **arrays)
        return target.getvalue()
    raise DataError(f"member .{extension} must be bytes, got {type(value).__name__}")
