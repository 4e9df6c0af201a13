"""Writing shards: one tar after another, atomic, deterministic, hashed while written. See `pipelines/shards.py`."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import uuid
import zlib
from pathlib import Path

import numpy as np

from pipelines import manifest as disk
from pipelines.schema import ARRAYS, META, DataError, SampleMeta, check_key

BLOCK, RECORD = 512, 10240  # bytes of a tar header, and of the unit a tar is padded to


class ShardWriter:
    """Writes samples into tars of `samples_per_shard`; leaving the `with` block normally commits the rest.

    Without `unit` every full shard is committed at once. With `unit` (the id of the work that makes these shards) all
    manifests appear together at the end, so that a killed writer leaves nothing behind that readers could see.
    `fingerprint` (of what made the data) and `counts` go into the manifests.
    """

    def __init__(self, root, prefix="clips", samples_per_shard=256, unit=None, fingerprint=None, counts=None):
        self.root, self.prefix, self.limit = Path(root), check_key(prefix), int(samples_per_shard)
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
        number = len(self.pending) + len(self.committed)
        self.pending.append(self.tar.finish(f"{self.prefix}-{number:05d}"))
        self.tar = None
        if self.unit is None:
            self._commit()

    def _commit(self):
        parts = len(self.pending) + len(self.committed)
        for manifest in self.pending:
            part = len(self.committed)
            whole = {**manifest, **self.facts, "part": part, **({"parts": parts} if self.unit is not None else {})}
            disk.write_atomic(self.root / f"{self.prefix}-{part:05d}.json", disk.to_json(whole))
            self.committed.append(whole)
        self.pending = []

    def close(self):
        """Commits what is left; returns all manifests of this writer."""
        if self.tar is not None:
            self._finish_tar()
        self._commit()
        if self.unit is not None:
            self._drop_leftovers()
        return self.committed

    def _drop_leftovers(self):
        """Parts of an earlier, longer version of the same unit."""
        number = len(self.committed)
        while (path := self.root / f"{self.prefix}-{number:05d}.json").exists():
            path.unlink()
            number += 1

    def abort(self):
        """Drops what is not committed."""
        if self.tar is not None:
            self.tar.abort()
        for manifest in self.pending:
            (self.root / manifest["file"]).unlink(missing_ok=True)
            disk.index_path(self.root / manifest["file"]).unlink(missing_ok=True)
        self.tar, self.pending = None, []

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is None:
            self.close()
        else:
            self.abort()


class TarFile:
    """One tar under a temporary name, hashed while it is written."""

    def __init__(self, root):
        self.root = root
        self.part = root / f".{os.getpid()}-{uuid.uuid4().hex[:12]}.tar.part"
        self.entries, self.members, self.offset, self.digest = [], {}, 0, hashlib.sha256()
        try:
            self.file = open(self.part, "wb")  # noqa: SIM115 closed by finish or abort
        except OSError as error:
            raise DataError(f"cannot write into {root} ({error.strerror}); choose another out=") from error

    def add(self, key, payloads, meta):
        for extension, data in payloads.items():
            info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, uid, gid 0; mode 0644
            info.size = len(data)
            self._put(info.tobuf(tarfile.GNU_FORMAT))
            self.members[info.name] = [self.offset, len(data), zlib.crc32(data)]
            self._put(data + b"\0" * (-len(data) % BLOCK))
        self.entries.append({"key": key, "meta": meta})

    def _put(self, data):
        try:
            self.file.write(data)
        except OSError as error:
            self.abort()
            raise DataError(f"cannot write into {self.root} ({error.strerror}); free space or change out=") from error
        self.digest.update(data)
        self.offset += len(data)

    def finish(self, stem):
        """Ends the tar and renames it to its content-addressed name; returns its manifest."""
        self._put(b"\0" * (2 * BLOCK + -(self.offset + 2 * BLOCK) % RECORD))
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        except OSError as error:
            self.abort()
            raise DataError(f"cannot write into {self.root} ({error.strerror}); free space or change out=") from error
        sha256 = self.digest.hexdigest()
        path = self.root / f"{stem}-{sha256[:12]}.tar"
        os.replace(self.part, path)
        disk.write_atomic(disk.index_path(path), disk.to_json({"sha256": sha256, "members": self.members}))
        return disk.new_manifest(path.name, self.offset, sha256, self.entries)

    def abort(self):
        with contextlib.suppress(OSError):  # closing flushes, and the disk that was full still is
            self.file.close()
        self.part.unlink(missing_ok=True)


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
