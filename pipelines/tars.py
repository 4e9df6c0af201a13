"""Inside a tar: its index, its checksum, and taking in tars that other tools wrote.

`<tar stem>.index` lists the members of a shard, {name: [offset, size, crc32]}. It can always be rebuilt from the tar.
"""

import hashlib
import re
import tarfile
import zlib
from pathlib import Path, PurePath

from pipelines import manifest as disk
from pipelines.schema import ARRAYS, META, VIDEO, DataError, SampleMeta, check_key
from pipelines.storage import LocalFolder, ShardError

BLOCK = 512  # of a tar
MAX_META_BYTES = 1 << 20  # of one sample
EXTENSION = re.compile(r"[A-Za-z0-9_.-]+")


def index_name(tar):
    return PurePath(tar).with_suffix(".index").name


def load_index(folder, manifest):
    """{member name: [offset, size, crc32]} of a shard, from its side file or, failing that, from the tar itself."""
    try:
        index = read_index(folder, manifest)
        if index is not None:
            return index
    except (OSError, DataError):
        pass  # a lost or damaged index costs time, not data
    members, sha256 = scan(folder, manifest["file"], manifest["bytes"])
    check_sha256(folder, manifest, sha256)  # the crc of a rebuilt index would bless damage
    return check_index(members, folder, manifest)


def read_index(folder, manifest):
    """The members in the side file, or None if it belongs to another tar."""
    name = index_name(manifest["file"])
    index = disk.parse_json(folder.read(name), f"{folder.root}/{name}")
    if not isinstance(index, dict) or index.get("sha256") != manifest["sha256"]:
        return None
    return check_index(index.get("members"), folder, manifest)


def check_index(members, folder, manifest):
    """The members, once they are known to lie in the tar and to have the manifest's keys."""
    tar, size = f"{folder.root}/{manifest['file']}", manifest["bytes"]
    try:
        inside = all(0 <= offset <= offset + length <= size for offset, length, _ in members.values())
        keys = {name.split(".", 1)[0] for name in members}
    except (AttributeError, TypeError, ValueError) as error:
        raise ShardError(f"the index of {tar} is damaged; delete it, it will be rebuilt") from error
    if not inside or keys != {entry["key"] for entry in manifest["entries"]}:
        raise ShardError(f"{tar} holds {len(keys)} samples, its manifest {manifest['samples']}; make the shard again")
    return members


def check_sha256(folder, manifest, got=None):
    """ShardError unless the bytes of the tar are those that the manifest was written for."""
    if got is None:
        digest = hashlib.sha256()
        for block in folder.blocks(manifest["file"], manifest["bytes"]):
            digest.update(block)
        got = digest.hexdigest()
    if got != manifest["sha256"]:
        tar, shown = f"{folder.root}/{manifest['file']}", f"{got[:12]}, its manifest says {manifest['sha256'][:12]}"
        raise ShardError(f"{tar} is damaged: its sha256 is {shown}; make it again")


class Stream:
    """Blocks of bytes as a file that tarfile can stream; hashes what passes."""

    def __init__(self, blocks):
        self.blocks, self.rest, self.digest = blocks, memoryview(b""), hashlib.sha256()

    def read(self, size):
        if not self.rest:
            self.rest = memoryview(next(self.blocks, b""))
            self.digest.update(self.rest)
        data, self.rest = self.rest[:size], self.rest[size:]
        return bytes(data)

    def drain(self):
        while self.read(1 << 20):
            pass
        return self.digest.hexdigest()


def build_index(tar):
    """Index of any local tar whose members follow the key grammar; DataError naming the offset where it breaks."""
    tar = Path(tar)
    return scan(LocalFolder(tar.parent), tar.name, tar.stat().st_size)[0]


def scan(folder, file, size):
    """(members, sha256) of a tar, read once from start to end."""
    stream, members, end = Stream(folder.blocks(file, size)), {}, 0
    tar = f"{folder.root}/{file}"
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
            for info in archive:
                check_member(info, members, tar, size)
                members[info.name] = [info.offset_data, info.size, crc(archive, info)]
                end = info.offset_data + info.size + -info.size % BLOCK
                archive.members.clear()  # or it remembers every header
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ShardError(f"{tar} is not a readable tar ({error}); copy or make it again") from error
    if not members:
        raise ShardError(f"{tar} holds no sample")
    if any(folder.range(file, end, min(BLOCK, max(0, size - end)))):  # tarfile takes a broken header for the end
        raise ShardError(f"{tar} is not a readable tar (broken header at {end}); copy or make it again")
    return members, stream.drain()


def check_member(info, members, tar, size):
    """ShardError unless the member is a plain file of a sample, and all there."""
    if not info.isreg() or info.issparse():
        raise ShardError(f"{tar} holds {info.name!r}, which is no regular file")
    if not 0 <= info.size <= size - info.offset_data:
        raise ShardError(f"{tar} ends inside {info.name!r} at {info.offset_data}; copy or make it again")
    key, _, extension = info.name.partition(".")
    check_key(key)
    if not EXTENSION.fullmatch(extension) or info.name in members:
        raise ShardError(f"{tar}: member {info.name!r} at {info.offset} is a duplicate or has no plain extension")


def crc(archive, info):
    file, value = archive.extractfile(info), 0
    while block := file.read(1 << 20):
        value = zlib.crc32(block, value)
    return value


def adopt(root):
    """Writes manifests for the tars in `root` that have none: shards of stock webdataset become readable here.

    Every sample needs a `<key>.json` that follows the schema. Returns the number of adopted tars.
    """
    folder = LocalFolder(root)
    known = {m["file"] for m in disk.manifests(root)}
    adopted = 0
    for tar in sorted(Path(root).glob("*.tar")):
        if tar.name in known:
            continue
        members, sha256 = scan(folder, tar.name, tar.stat().st_size)
        keys = sorted({name.partition(".")[0] for name in members})
        entries = [{"key": key, "meta": member_json(folder, tar.name, members, key)} for key in keys]
        manifest = disk.new_manifest(tar.name, tar.stat().st_size, sha256, entries)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", tar.stem)
        disk.write_atomic(tar.with_name(index_name(tar)), disk.sealed({"sha256": sha256, "members": members}))
        disk.write_atomic(tar.with_name(f"{stem}-00000.json"), disk.sealed(manifest))
        adopted += 1
    return adopted


def member_json(folder, tar, members, key):
    name = f"{key}.{META}"
    if name not in members or not any(f"{key}.{ext}" in members for ext in (VIDEO, ARRAYS)):
        raise DataError(f"{tar}: sample {key} needs {name} beside its data; see pipelines/schema.py for its fields")
    offset, size, _ = members[name]
    if size > MAX_META_BYTES:
        raise DataError(f"{tar}: {name} has {size} bytes, at most {MAX_META_BYTES} are read")
    meta = disk.parse_json(folder.range(tar, offset, size), f"{tar}: {name}")
    SampleMeta.from_dict(meta)
    return meta
