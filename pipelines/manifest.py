"""What makes a tar a shard: its manifest and its index.

`<prefix>-NNNNN.json` is the manifest; renaming it into place is the commit point. It names a content-addressed tar
`<prefix>-NNNNN-<sha12>.tar` and repeats every sample's metadata, so that a data set can be listed without opening a
tar. A dataset is the set of manifests of a folder: a tar without one does not exist. `<tar stem>.index` lists the
members (offset, size, crc32); it can always be rebuilt from the tar.
"""

import hashlib
import json
import os
import re
import tarfile
import time
import uuid
import zlib
from pathlib import Path

from pipelines.schema import ARRAYS, META, SCHEMA_VERSION, VIDEO, DataError, check_key

MANIFEST_NAME = re.compile(r"(?P<prefix>[A-Za-z0-9_-]+)-(?P<number>\d{5})\.json")
FIELDS = {"schema", "file", "bytes", "sha256", "samples", "entries"}
MAX_MANIFEST_BYTES = 1 << 30


def write_atomic(path, data):
    """Writes bytes under a temporary name, fsyncs, renames: readers see the old file or the new one, never a part."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"cannot write {path} ({error.strerror}); free space or choose another folder") from error
    fsync_folder(path.parent)


def fsync_folder(folder):
    """Makes renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(value):
    """Canonical bytes: equal values give equal files."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()


def read_json(path, limit=MAX_MANIFEST_BYTES):
    """Parsed JSON of a bounded file; DataError if it is no JSON."""
    path = Path(path)
    if path.stat().st_size > limit:
        raise DataError(f"{path} has {path.stat().st_size} bytes, at most {limit} are read")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete it and re-run what wrote it") from error


def manifests(root, prefix=None):
    """Manifests in `root` by name, each with its path under "path". DataError for damaged ones."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no folder of shards at {root}; `python -m pipelines.ingest out={root} videos=...` makes one")
    names = [(m, path) for path in sorted(root.iterdir()) if (m := MANIFEST_NAME.fullmatch(path.name))]
    return [read_manifest(path) for match, path in names if prefix is None or match["prefix"] == prefix]


def read_manifest(path):
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not manifest.keys() >= FIELDS:
        raise DataError(f"{path} is not a shard manifest (needs {sorted(FIELDS)}); is it in the wrong folder?")
    if manifest["schema"] != SCHEMA_VERSION:
        raise DataError(f"{path} has schema {manifest['schema']!r}, this version reads {SCHEMA_VERSION}")
    if Path(manifest["file"]).name != manifest["file"]:
        raise DataError(f"{path} points outside its folder ({manifest['file']!r})")
    if len(manifest["entries"]) != manifest["samples"]:
        raise DataError(f"{path} lists {len(manifest['entries'])} samples and counts {manifest['samples']}")
    return {**manifest, "path": Path(path)}


def finished(root, prefix, unit):
    """Manifests of a committed unit of work in order of part, or None if any of it is missing or cut short."""
    path = Path(root) / f"{prefix}-00000.json"
    try:
        first = read_manifest(path)
        rest = range(1, first.get("parts", 1))
        parts = [first, *(read_manifest(Path(root) / f"{prefix}-{number:05d}.json") for number in rest)]
        whole = all(p.get("unit") == unit and (Path(root) / p["file"]).stat().st_size == p["bytes"] for p in parts)
    except (OSError, DataError):
        return None
    return parts if whole else None


def garbage(root, older_than_seconds=3600.0):
    """Files no manifest refers to: temporary files and tars of killed or losing writers, older than their lease."""
    root = Path(root)
    wanted = {m["file"] for m in manifests(root)}
    wanted |= {index_path(name).name for name in wanted}
    suspects = [p for p in root.iterdir() if p.suffix in (".tar", ".index", ".part") and p.name not in wanted]
    return [p for p in suspects if time.time() - p.stat().st_mtime >= older_than_seconds]


def collect_garbage(root, older_than_seconds=3600.0):
    """Deletes `garbage(root)`; returns how many files went."""
    files = garbage(root, older_than_seconds)
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


# index


def index_path(tar):
    return Path(tar).with_suffix(".index")


def load_index(tar, manifest):
    """{member name: [offset, size, crc32]} of a shard, from its side file or, failing that, from the tar itself."""
    try:
        index = read_json(index_path(tar))
        if index["sha256"] == manifest["sha256"]:
            return check_index(index["members"], tar, manifest)
    except (OSError, DataError, KeyError, TypeError):
        pass  # a lost or foreign index costs time, not data
    check_sha256(tar, manifest["sha256"])  # the crc of a rebuilt index would bless damage
    return check_index(build_index(tar), tar, manifest)


def check_index(members, tar, manifest):
    """The index, once its keys are known to be the manifest's."""
    keys = {name.split(".", 1)[0] for name in members}
    if keys != {entry["key"] for entry in manifest["entries"]}:
        raise DataError(f"{tar} holds {len(keys)} samples, its manifest {manifest['samples']}; make the shard again")
    return members


def build_index(tar):
    """Index of any tar whose members follow the key grammar; DataError naming the offset where it breaks."""
    members = {}
    try:
        with tarfile.open(tar, "r:") as archive, open(tar, "rb") as raw:
            for info in archive:
                if not info.isreg():
                    raise DataError(f"{tar} holds {info.name!r}, which is no regular file")
                key, _, extension = info.name.partition(".")
                check_key(key)
                if not re.fullmatch(r"[A-Za-z0-9_.-]+", extension) or info.name in members:
                    what = f"{info.name!r} at {info.offset}"
                    raise DataError(f"{tar}: member {what} is a duplicate or has no plain extension")
                raw.seek(info.offset_data)
                payload = raw.read(info.size)
                if len(payload) != info.size:
                    raise DataError(f"{tar} ends inside {info.name!r} at {info.offset_data}; copy or make it again")
                members[info.name] = [info.offset_data, info.size, zlib.crc32(payload)]
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{tar} is not a readable tar ({error}); copy or make it again") from error
    if not members:
        raise DataError(f"{tar} holds no sample")
    return members


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()  # Python 3.10
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_sha256(tar, expected):
    got = file_sha256(tar)
    if got != expected:
        raise DataError(f"{tar} is damaged: its sha256 is {got[:12]}, the manifest says {expected[:12]}; make it again")


def adopt(root):
    """Writes manifests for the tars in `root` that have none: shards of stock webdataset become readable here.

    Every sample needs a `<key>.json` that follows the schema. Returns the number of adopted tars.
    """
    known = {m["file"] for m in manifests(root)}
    adopted = 0
    for tar in sorted(Path(root).glob("*.tar")):
        if tar.name in known:
            continue
        members, sha256 = build_index(tar), file_sha256(tar)
        keys = sorted({name.partition(".")[0] for name in members})
        entries = [{"key": key, "meta": member_json(tar, members, key)} for key in keys]
        manifest = new_manifest(tar.name, tar.stat().st_size, sha256, entries)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", tar.stem)
        write_atomic(index_path(tar), to_json({"sha256": sha256, "members": members}))
        write_atomic(tar.with_name(f"{stem}-00000.json"), to_json(manifest))
        adopted += 1
    return adopted


def member_json(tar, members, key):
    name = f"{key}.{META}"
    if name not in members or not any(f"{key}.{ext}" in members for ext in (VIDEO, ARRAYS)):
        raise DataError(f"{tar}: sample {key} needs {name} beside its data; see pipelines/schema.py for its fields")
    with open(tar, "rb") as file:
        file.seek(members[name][0])
        return json.loads(file.read(members[name][1]))


def new_manifest(file, size, sha256, entries, **facts):
    frames = sum(e["meta"]["frames"][1] - e["meta"]["frames"][0] for e in entries if "frames" in e["meta"])
    return {
        "schema": SCHEMA_VERSION, "file": file, "bytes": size, "sha256": sha256, "samples": len(entries),
        "frames": frames, "entries": entries, **facts,
    }
