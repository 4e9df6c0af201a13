"""Shards: WebDataset tars that any tool can read, written atomically and read at random.

    with ShardWriter(root, prefix="clips") as writer:
        writer.write(key, {"mp4": data, "npz": {"keys": keys}, "json": meta.to_dict()})
    shards = Shards(root)
    shards.arrays(shards.entries[0].key)["keys"]

Equal samples give equal bytes: members are sorted and carry no time, owner or host. See `pipelines/manifest.py` for
what is on disk beside the tars.
"""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import manifest as disk
from pipelines.schema import ARRAYS, META, DataError, SampleMeta
from pipelines.shard_writer import ShardWriter

__all__ = ["Entry", "ShardWriter", "Shards", "unpack"]

MAX_JSON_BYTES = 16 << 20
MAX_ARRAY_BYTES = 1 << 30  # of one sample, unpacked
OPEN_FILES = 128


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
