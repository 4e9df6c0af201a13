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
import logging
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pipelines import manifest as disk
from pipelines import storage, tars
from pipelines.manifest import Damage
from pipelines.schema import ARRAYS, META, DataError, SampleMeta
from pipelines.shard_writer import ShardWriter
from pipelines.storage import ShardError

__all__ = ["Entry", "ShardError", "ShardWriter", "Shards", "unpack"]

ODD = (ValueError, EOFError, KeyError, OverflowError, RuntimeError, SyntaxError, MemoryError, TypeError, IndexError)
MAX_JSON_BYTES = 16 << 20
MAX_ARRAY_BYTES = 1 << 30  # of one sample, unpacked
SHOWN = 3  # damaged shards named in one message
GO_ON = "go on without what is damaged where the command has on_damage=set_aside (in training data.on_damage)"
REMEDY = f"make the shard again, or {GO_ON}"
log = logging.getLogger("foundation-policy")


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a dataset."""

    shard: str  # tar file name
    key: str
    meta: dict  # fields of SampleMeta


class Shards:
    """The samples of a folder of shards, by key. Checks that every shard is there and whole before the first read.

    root: a local folder or any address that fsspec understands, see `pipelines/storage.py`; threads and forked workers
    may share the object. Each member's crc32 is checked as it is read; `verify=True` also compares every file's sha256
    now. on_damage: "stop" raises DataError, "set_aside" leaves out the samples of damaged shards and lists these in
    `damage`; as the order of training samples follows from what is there, it verifies now unless `verify=False`.
    """

    def __init__(self, root, verify=None, prefix=None, on_damage="stop"):
        if on_damage not in ("stop", "set_aside"):
            raise DataError(f"on_damage={on_damage!r}: expected stop or set_aside")
        self.folder = storage.open_folder(root)
        self.root = self.folder.root
        found = disk.survey(self.folder, prefix)
        verify = on_damage == "set_aside" if verify is None else verify
        self.damage = [*found.damage, *damaged_files(self.folder, found.manifests, verify)]
        bad = {damage.shard for damage in self.damage}
        self.manifests = [manifest for manifest in found.manifests if manifest["file"] not in bad]
        self._tell(on_damage, found)
        self.entries = [Entry(m["file"], e["key"], e["meta"]) for m in self.manifests for e in m["entries"]]
        self._by_key = {entry.key: entry for entry in self.entries}
        if len(self._by_key) != len(self.entries):
            seen, twice = set(), set()
            for entry in self.entries:
                (twice if entry.key in seen else seen).add(entry.key)
            raise DataError(f"{root}: {len(twice)} sample keys occur twice, e.g. {min(twice)!r}; remove one copy")
        self._by_file = {m["file"]: m for m in self.manifests}
        self._indexes = {}

    def _tell(self, on_damage, found):
        if self.damage:
            shown = "; ".join(damage.reason for damage in self.damage[:SHOWN])
            more = f"; and {len(self.damage) - SHOWN} more" if len(self.damage) > SHOWN else ""
            message = f"{self.root}: {len(self.damage)} shards are damaged: {shown}{more}"
            if on_damage == "stop":
                raise DataError(
                    f"{message}. Delete them and re-run the command that made them, it redoes only these (`python -m"
                    f" pipelines.verify shards={self.root}` lists all), or {GO_ON}"
                )
            log.warning("%s. Set aside with %d samples", message, self.set_aside["samples"])
        if found.open:
            message = "%s: %d parts of unfinished units are left out; re-run the command that makes them"
            log.warning(message, self.root, len(found.open))
        if not self.manifests and not self.damage:
            self._refuse_foreign()

    def _refuse_foreign(self):
        """DataError for tars of other tools: reading none of them would look like success."""
        if strays := [n for n in self.folder.names() if n.endswith(".tar") and not disk.OUR_NAME.fullmatch(n)]:
            raise DataError(
                f"{self.root} holds {len(strays)} tars but no manifest; shards made by other tools are taken in by"
                f" `python -m pipelines.peek shards={self.root} adopt=true`"
            )

    @property
    def set_aside(self):
        """{"shards": damaged ones, "samples": of those whose manifest could be read}"""
        return {"shards": len(self.damage), "samples": sum(damage.samples or 0 for damage in self.damage)}

    def check(self, file):
        """ShardError unless the bytes of a shard are those that its manifest was written for."""
        tars.check_sha256(self.folder, self._by_file[file])

    def check_frames(self):
        """DataError for episodes of vectors where video is expected."""
        vectors = next((entry.key for entry in self.entries if entry.meta.get("spaces")), None)
        if vectors is not None:
            raise DataError(
                f"{self.root} holds trajectories of vectors, e.g. {vectors}, where video is expected; they have their"
                " actions, and `python -m foundation.pretrain method=dt` (or lamo, mddt) trains on them"
            )

    def __len__(self):
        return len(self.entries)

    def entry(self, key):
        """The Entry of `key`, or DataError."""
        try:
            return self._by_key[key]
        except KeyError:
            raise DataError(f"no sample {key!r} in {self.root} ({len(self)} samples)") from None

    def in_shard(self, file):
        """Entries of one shard."""
        keys = (entry["key"] for entry in self._by_file[file]["entries"])
        return [self._by_key[key] for key in keys if key in self._by_key]

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
        data = self.folder.range(entry.shard, offset, size)
        if len(data) != size:
            raise ShardError(f"{entry.shard} ends inside {name}: {len(data)} of {size} bytes at {offset}; {REMEDY}")
        if zlib.crc32(data) != crc:
            raise ShardError(f"{entry.shard}: {name} at {offset} is damaged (crc32 differs); {REMEDY}")
        return data

    def arrays(self, key):
        """{name: array} of the npz member; sizes are checked before anything is allocated, pickles are refused."""
        return unpack(self.read(key, ARRAYS), f"{key}.{ARRAYS}")

    def json(self, key):
        """The json member as a dict."""
        return disk.parse_json(self.read(key, META), f"{key}.{META}", MAX_JSON_BYTES)

    def meta(self, key):
        """SampleMeta of the sample."""
        return SampleMeta.from_dict(self.json(key))

    def fingerprint(self):
        """Hash of the dataset's content: the same samples in the same shards give the same string."""
        names = sorted(f"{m['file']} {m['sha256']}" for m in self.manifests)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def _index(self, file):
        if file not in self._indexes:
            self._indexes[file] = tars.load_index(self.folder, self._by_file[file])
        return self._indexes[file]

    def forget(self, file):
        """Frees the index of a shard that will not be read again soon."""
        self._indexes.pop(file, None)

    def close(self):
        self.folder.close()


def damaged_files(folder, manifests, verify):
    """Damage of shards that are missing, of another size or, with `verify`, of another sha256."""
    sizes = folder.sizes([manifest["file"] for manifest in manifests])
    total = sum(manifest["bytes"] for manifest in manifests)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verify", disable=None if verify else True) as bar:
        for manifest in manifests:
            reason = file_damage(folder, manifest, sizes[manifest["file"]], verify)
            if reason:
                yield Damage(manifest["file"], reason, manifest["samples"])
            bar.update(manifest["bytes"])


def file_damage(folder, manifest, size, verify):
    """What is wrong with the tar of a manifest, or None."""
    if size is None:
        return f"{manifest['file']} is missing"
    if size not in (manifest["bytes"], storage.UNKNOWN):
        return f"{manifest['file']} is cut or changed ({size} of {manifest['bytes']} bytes)"
    try:
        if verify:
            tars.check_sha256(folder, manifest)
    except ShardError as error:
        return str(error)
    return None


def unpack(data, name):
    """npz bytes -> {name: array}, refusing pickles and headers that promise more than is there."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > MAX_ARRAY_BYTES:
                raise DataError(f"{name} unpacks to more than {MAX_ARRAY_BYTES} bytes; refusing to allocate that")
            return {info.filename.removesuffix(".npy"): unpack_array(archive, info, name) for info in infos}
    except (zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, *ODD) as error:
        raise DataError(f"{name} is not a readable npz ({error})") from error


def unpack_array(archive, info, name):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a limit
        raise DataError(f"{name}: {info.filename!r} is compressed in a way that numpy does not use; refused")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise DataError(f"{name}: array {info.filename!r} is a pickle; it could run code, so it is refused")
        count = int(np.prod(shape, dtype=object))
        if count * dtype.itemsize != info.file_size - file.tell():
            raise DataError(f"{name}: the header of {info.filename!r} promises {count} x {dtype}, the data differ")
        array = np.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype, count)
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
