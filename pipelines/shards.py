"""Shards: WebDataset tars that any tool can read, written atomically and read at random.

    with ShardWriter(root, prefix="clips") as writer:
        writer.write(key, {"mp4": data, "npz": {"keys": keys}, "json": meta.to_dict()})
    shards = Shards(root)
    shards.arrays(shards.entries[0].key)["keys"]

Equal samples give equal bytes: members are sorted and carry no time, owner or host. See `pipelines/manifest.py` for
what is on disk beside the tars.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import uuid
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import manifest as disk
from pipelines.schema import ARRAYS, META, DataError, SampleMeta, check_key

BLOCK, RECORD = 512, 10240  # bytes of a tar header, and of the unit a tar is padded to
MAX_JSON_BYTES = 16 << 20
MAX_ARRAY_BYTES = 1 << 30  # of one sample, unpacked
OPEN_FILES = 128


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


@dataclass(frozen=True)
class Entry:
    """One sample of a dataset."""

    shard: str  # tar file name
    key: str
    meta: dict  # fields of SampleMeta


class Shards:
    """The samples of a folder of shards, by key. Checks that every shard is there and whole before the first read.

    Reads are `os.pread` through the index: no shared position, so threads and forked workers may share the object.
    Each member's crc32 is checked as it is read; `verify=True` also compares every file's sha256 now.
    """

    def __init__(self, root, verify=False, prefix=None):
        self.root = Path(root)
        self.manifests = disk.manifests(root, prefix)
        self._check_files(verify)
        self.entries = [Entry(m["file"], e["key"], e["meta"]) for m in self.manifests for e in m["entries"]]
        self._by_key = {entry.key: entry for entry in self.entries}
        if len(self._by_key) != len(self.entries):
            seen, twice = set(), set()
            for entry in self.entries:
                (twice if entry.key in seen else seen).add(entry.key)
            raise DataError(f"{root}: {len(twice)} sample keys occur twice, e.g. {min(twice)!r}; remove one copy")
        self._by_file = {m["file"]: m for m in self.manifests}
        self._indexes, self._handles = {}, OrderedDict()

    def _check_files(self, verify):
        missing, wrong = [], []
        for manifest in self.manifests:
            try:
                size = (self.root / manifest["file"]).stat().st_size
            except OSError:
                missing.append(manifest["file"])
                continue
            if size != manifest["bytes"]:
                wrong.append(f"{manifest['file']} ({size} of {manifest['bytes']} bytes)")
            elif verify:
                disk.check_sha256(self.root / manifest["file"], manifest["sha256"])
        if missing or wrong:
            raise DataError(
                f"{self.root}: {len(missing)} shards missing {missing[:3]}, {len(wrong)} cut or changed {wrong[:3]};"
                " re-run the command that made them (it redoes only these)"
            )
        if not self.manifests and (strays := list(self.root.glob("*.tar"))):
            raise DataError(
                f"{self.root} holds {len(strays)} tars but no manifest; shards made by other tools are taken in by"
                f" `python -m pipelines.peek shards={self.root} adopt=true`"
            )

    def __len__(self):
        return len(self.entries)

    def entry(self, key):
        """The Entry of `key`, or DataError."""
        try:
            return self._by_key[key]
        except KeyError:
            raise DataError(f"no sample {key!r} in {self.root} ({len(self)} samples)") from None

    def __contains__(self, key):
        return key in self._by_key

    def read(self, key, extension):
        """bytes of member `<key>.<extension>`."""
        entry = self.entry(key)
        index = self._index(entry.shard)
        name = f"{key}.{extension}"
        if name not in index:
            raise DataError(f"sample {key!r} of {entry.shard} has no .{extension} member")
        offset, size, crc = index[name]
        data = os.pread(self._handle(entry.shard), size, offset)
        if len(data) != size:
            raise DataError(f"{entry.shard} ends inside {name}: {len(data)} of {size} bytes at {offset}; make it again")
        if zlib.crc32(data) != crc:
            raise DataError(f"{entry.shard}: {name} at {offset} is damaged (crc32 differs); make the shard again")
        return data

    def arrays(self, key):
        """{name: array} of the npz member; sizes are checked before anything is allocated, pickles are refused."""
        return unpack(self.read(key, ARRAYS), f"{key}.{ARRAYS}")

    def json(self, key):
        """The json member as a dict."""
        data = self.read(key, META)
        if len(data) > MAX_JSON_BYTES:
            raise DataError(f"{key}.{META} has {len(data)} bytes, at most {MAX_JSON_BYTES} are read")
        return json.loads(data)

    def meta(self, key):
        """SampleMeta of the sample."""
        return SampleMeta.from_dict(self.json(key))

    def fingerprint(self):
        """Hash of the dataset's content: the same samples in the same shards give the same string."""
        names = sorted(f"{m['file']} {m['sha256']}" for m in self.manifests)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def _index(self, file):
        if file not in self._indexes:
            self._indexes[file] = disk.load_index(self.root / file, self._by_file[file])
        return self._indexes[file]

    def _handle(self, file):
        if file not in self._handles:
            if len(self._handles) >= OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[file] = os.open(self.root / file, os.O_RDONLY)
        return self._handles[file]

    def close(self):
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __getstate__(self):
        return {**self.__dict__, "_handles": OrderedDict()}  # descriptors belong to this process

    def __del__(self):
        if hasattr(self, "_handles"):
            self.close()


def unpack(data, name):
    """npz bytes -> {name: array}, refusing pickles and headers that promise more than is there."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > MAX_ARRAY_BYTES:
                raise DataError(f"{name} unpacks to more than {MAX_ARRAY_BYTES} bytes; refusing to allocate that")
            return {info.filename.removesuffix(".npy"): unpack_array(archive, info, name) for info in infos}
    except (zipfile.BadZipFile, ValueError, EOFError, zlib.error, KeyError) as error:
        raise DataError(f"{name} is not a readable npz ({error})") from error


def unpack_array(archive, info, name):
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise DataError(f"{name}: array {info.filename!r} is a pickle; it could run code, so it is refused")
        count = int(np.prod(shape, dtype=object))
        if count * dtype.itemsize != info.file_size - file.tell():
            raise DataError(f"{name}: the header of {info.filename!r} promises {count} x {dtype}, the data differ")
        array = np.frombuffer(bytearray(file.read()), dtype, count)
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
