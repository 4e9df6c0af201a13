"""What makes a tar a shard: its manifest.

`<prefix>-NNNNN.json` is the manifest; renaming it into place is the commit point. It names a content-addressed tar
`<prefix>-NNNNN-<sha12>.tar` and repeats every sample's metadata, so that a data set can be listed without opening a
tar. A dataset is the set of manifests of a folder: a tar without one does not exist. Manifests carry a checksum of
themselves. The parts of one unit of work are renamed into place part 0 last, which commits all of them.
"""

import hashlib
import json
import os
import re
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipelines.schema import SCHEMA_VERSION, DataError
from pipelines.storage import open_folder

MANIFEST_NAME = re.compile(r"(?P<prefix>[A-Za-z0-9_-]+)-(?P<number>\d{5})\.json")
TAR_NAME = re.compile(r"[^/\\\0]+\.tar")
OUR_NAME = re.compile(r"[A-Za-z0-9_-]+-\d{5}-[0-9a-f]{12}\.(tar|index)")  # others are tars of other tools
FIELDS = {"schema", "file", "bytes", "sha256", "samples", "entries"}
MAX_MANIFEST_BYTES = 1 << 28
MAX_SIDE, MAX_FPS = 1 << 14, 1e6  # pixels, frames/s
CHECK = "check"  # field with the checksum of all others
REPEATED = {"actions", "counts", "fingerprint", "labeller", "notes", "provenance", "tags"}  # the same in many samples


# files


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
        fsync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"cannot write {path} ({error.strerror}); free space or choose another folder") from error


def write_once(path, data):
    """Like `write_atomic`, but a file that is there stays; of several writers at the same time the first one wins."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    write_atomic(part, data)
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            write_atomic(path, data)
    finally:
        part.unlink(missing_ok=True)


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


def checksum(values):
    return hashlib.sha256(to_json({k: v for k, v in values.items() if k != CHECK})).hexdigest()[:16]


def sealed(values):
    """Bytes of a JSON object that carries its own checksum."""
    return to_json({**values, CHECK: checksum(values)})


def read_json(path, limit=MAX_MANIFEST_BYTES):
    """Parsed JSON of a bounded file; DataError if it is no JSON, or not what was sealed."""
    path = Path(path)
    if path.stat().st_size > limit:
        raise DataError(f"{path} has {path.stat().st_size} bytes, at most {limit} are read")
    return parse_json(path.read_bytes(), path, limit)


def parse_json(data, where, limit=MAX_MANIFEST_BYTES):
    """`where`: how errors name what the bytes were read from."""
    if len(data) > limit:
        raise DataError(f"{where} has {len(data)} bytes, at most {limit} are read")
    try:
        value = json.loads(data)
        intact = not isinstance(value, dict) or CHECK not in value or value[CHECK] == checksum(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON ({error}); delete it and re-run what wrote it") from error
    if not intact:
        raise DataError(f"{where} is damaged (its checksum differs); delete it and re-run what wrote it")
    return value


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()  # Python 3.10
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# manifests


def new_manifest(file, size, sha256, entries, **facts):
    frames = sum(e["meta"]["frames"][1] - e["meta"]["frames"][0] for e in entries if "frames" in e["meta"])
    return {
        "schema": SCHEMA_VERSION,
        "file": file,
        "bytes": size,
        "sha256": sha256,
        "samples": len(entries),
        "frames": frames,
        "entries": entries,
        **facts,
    }


def read_manifest(path):
    return check_manifest(read_json(path), path)


def check_manifest(manifest, path):
    """The manifest, with its path under "path"; DataError for what is none."""
    if not isinstance(manifest, dict) or not manifest.keys() >= FIELDS or not _typed(manifest):
        raise DataError(f"{path} is not a shard manifest (needs {sorted(FIELDS)}); is it in the wrong folder?")
    if manifest["schema"] != SCHEMA_VERSION:
        raise DataError(f"{path} has schema {manifest['schema']!r}, this version reads {SCHEMA_VERSION}")
    if PurePath(manifest["file"]).name != manifest["file"] or not TAR_NAME.fullmatch(manifest["file"]):
        raise DataError(f"{path} points outside its folder ({manifest['file']!r})")
    if len(manifest["entries"]) != manifest["samples"]:
        raise DataError(f"{path} lists {len(manifest['entries'])} samples and counts {manifest['samples']}")
    return {**manifest, "path": PurePath(path)}  # not part of the file


def _typed(manifest):
    kinds = {"file": str, "sha256": str, "bytes": int, "entries": list, "frames": int, "parts": int, "part": int}
    return all(type(manifest.get(name, kind())) is kind for name, kind in kinds.items()) and all(
        isinstance(e, dict) and isinstance(e.get("key"), str) and isinstance(e.get("meta"), dict) and _sane(e["meta"])
        for e in manifest["entries"]
    )


def _sane(meta):
    """Whether the numbers of a sample, where given, are such as can be counted and multiplied."""
    frames, fps = meta.get("frames", (0, 1)), meta.get("fps", 1.0)
    sides = [meta.get(name, 1) for name in ("height", "width")]
    smallest = 0 if meta.get("spaces") else 1  # pixels; an episode of vectors has none
    return (
        len(frames) == 2 and all(type(n) is int for n in (*frames, *sides)) and 0 <= frames[0] <= frames[1] < 1 << 48
        and all(smallest <= side <= MAX_SIDE for side in sides) and type(fps) in (int, float) and 0 < fps < MAX_FPS
    ) if isinstance(frames, list | tuple) else False  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """Something that readers cannot use."""

    shard: str  # name of the file
    reason: str
    samples: int | None = None  # that are lost with it; None = nobody knows


@dataclass
class Survey:
    """What the manifests of a folder say."""

    manifests: list = field(default_factory=list)  # what readers follow, by name
    damage: list = field(default_factory=list)  # manifests that cannot be used
    open: list = field(default_factory=list)  # manifests of units whose first part was never committed
    leftovers: list = field(default_factory=list)  # manifests that a later version of their unit has replaced


def manifests(root, prefix=None):
    """Manifests that readers of `root` follow, by name, each with its path under "path". DataError for damage."""
    found = survey(open_folder(root), prefix)
    if found.damage:
        raise DataError(found.damage[0].reason)
    return found.manifests


def survey(folder, prefix=None):
    """Survey of a `pipelines.storage` folder; reads every manifest."""
    names = [n for n in folder.names() if (m := MANIFEST_NAME.fullmatch(n)) and prefix in (None, m["prefix"])]
    found, units, pool = Survey(), {}, {}
    for name, data in folder.read_many(names):
        where = f"{folder.root}/{name}"
        try:
            if isinstance(data, Exception):
                raise DataError(f"{where} cannot be read ({data})")
            manifest = lean(check_manifest(parse_json(data, where), where), pool)
        except DataError as error:
            found.damage.append(Damage(name, str(error)))
            continue
        if "parts" in manifest:
            match = MANIFEST_NAME.fullmatch(name)
            units.setdefault(match["prefix"], {})[int(match["number"])] = manifest
        else:
            found.manifests.append(manifest)
    for unit, parts in units.items():
        settle(unit, parts, found)
    found.manifests.sort(key=lambda manifest: manifest["path"].name)
    return found


def lean(values, pool):
    """An equal manifest, or part of one, in which names and what many samples have in common are objects of `pool`.

    Ten thousand manifests take a third of the memory so, 2.3 kB for each.
    """
    small = {}
    for name, value in values.items():
        if name in REPEATED:
            value = pool.setdefault(repr(value), value)
        elif name == "entries":
            value = [lean(entry, pool) for entry in value]
        elif name == "meta":
            value = lean(value, pool)
        small[sys.intern(name)] = value
    return small


def settle(unit, parts, found):
    """Sorts the parts of one unit, {number: manifest}, into the fields of a Survey."""
    if 0 not in parts:
        found.open += parts.values()
        return
    whole = whole_unit(parts)
    if whole is None:
        samples = sum(part["samples"] for part in parts.values())
        reason = f"unit {unit} is not whole: not all of its {parts[0]['parts']} parts were made together"
        found.damage.append(Damage(parts[0]["path"].name, reason, samples))
        found.open += [part for number, part in parts.items() if number]
        return
    found.manifests += whole
    found.leftovers += [part for number, part in parts.items() if number >= len(whole)]


def whole_unit(parts):
    """[part 0, part 1, ...] if all parts are there and were committed together, else None."""
    first = parts[0]
    chain = [parts.get(number) for number in range(min(first.get("parts", 1), len(parts)))]
    same = all(p is not None and all(p.get(k) == first.get(k) for k in ("unit", "parts", "set")) for p in chain)
    placed = same and all(part.get("part", number) == number for number, part in enumerate(chain))
    return chain if placed and len(chain) == first.get("parts", 1) else None


def finished(root, prefix, unit):
    """Manifests of a committed unit of work in order of part, or None if any of it is missing or cut short."""
    root = Path(root)
    try:
        first = read_manifest(root / f"{prefix}-00000.json")
        rest = {n: read_manifest(root / f"{prefix}-{n:05d}.json") for n in range(1, min(first.get("parts", 1), 10**5))}
        parts = whole_unit({0: first, **rest})
        whole = parts and first.get("unit") == unit and all(
            (root / part["file"]).stat().st_size == part["bytes"] for part in parts
        )  # fmt: skip
    except (OSError, DataError):
        return None
    return parts if whole else None
