"""Removes what killed writers left in a folder of shards: `python -m pipelines.gc shards=data/clips dry_run=false`.

Garbage are temporary files, tars and indexes that no manifest names, and manifests that a later version of their unit
has replaced. What a manifest names that readers follow is never touched, nor is a file of a living writer: it holds a
lock on it, and where the file system has no locks, files younger than the age limit are left alone.
"""

import fcntl
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipelines import manifest as disk
from pipelines import storage, tars
from pipelines.command import command
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")


@dataclass(frozen=True)
class Garbage:
    path: Path
    kind: str  # temporary | orphan | leftover
    stat: os.stat_result
    age: float  # seconds


def find(root, older_than_seconds=3600.0):
    """Garbage in a local folder of shards, oldest first; DataError where a manifest is damaged."""
    root = storage.local(root, "shards")
    now, survey = clock(root), disk.survey(storage.LocalFolder(root))
    broken = [damage for damage in survey.damage if damage.samples is None]
    if broken:  # nobody knows which files it names
        raise DataError(f"{broken[0].reason}; make it again first, then clean up")
    leftovers = {manifest["path"].name for manifest in survey.leftovers}
    wanted = named(root, leftovers)
    found = []
    for path in [*root.iterdir(), *root.glob("units/.*.part")]:
        kind = kind_of(path.name, wanted, leftovers)
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if kind and now - stat.st_mtime >= older_than_seconds and not in_use(path):
            found.append(Garbage(path, kind, stat, now - stat.st_mtime))
    return sorted(found, key=lambda item: -item.age)


def clock(root):
    """The file server's idea of now, in which ages of files have to be counted."""
    probe = root / f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError as error:
        if not root.is_dir():
            raise DataError(f"no folder of shards at {root}") from error
        return time.time()  # a folder that can only be read
    finally:
        probe.unlink(missing_ok=True)


def named(root, leftovers):
    """Files that manifests refer to, except those in `leftovers`; manifests of unfinished units count as well."""
    names = (path.name for path in root.iterdir() if disk.MANIFEST_NAME.fullmatch(path.name))
    files = {disk.read_manifest(root / name)["file"] for name in names if name not in leftovers}
    return files | {tars.index_name(file) for file in files}


def kind_of(name, wanted, leftovers):
    """temporary, orphan, leftover, or None for what is not garbage."""
    if name.startswith(".") and name.endswith(".part"):
        return "temporary"
    if name in leftovers:
        return "leftover"
    return "orphan" if disk.OUR_NAME.fullmatch(name) and name not in wanted else None


def in_use(path):
    """Whether a living process holds the lock of a temporary file or of a tar not yet committed."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def remove(root, garbage):
    """Deletes garbage, leftover manifests before what they name; returns what was deleted."""
    gone = [item for item in garbage if item.kind == "leftover" and delete(item)]
    wanted = named(root, ())  # by now
    return gone + [g for g in garbage if g.kind != "leftover" and g.path.name not in wanted and delete(g)]


def delete(item):
    """Deletes a file that nobody has replaced or locked since it was found; True if it went."""
    try:
        stat = item.path.stat()
        if (stat.st_ino, stat.st_mtime_ns) != (item.stat.st_ino, item.stat.st_mtime_ns) or in_use(item.path):
            return False
        item.path.unlink()
    except FileNotFoundError:
        return False
    return True


def collect(root, older_than_seconds=3600.0):
    """Deletes the garbage of a folder; returns how many files went."""
    root = storage.local(root, "shards")
    return len(remove(root, find(root, older_than_seconds)))


@command("gc")
def main(cfg):
    """Lists garbage or deletes it; returns counts and bytes per kind."""
    root = storage.local(cfg.shards, "shards")
    garbage = find(root, 60 * cfg.older_than_minutes)
    for item in garbage:
        print(f"{item.kind:9}  {item.stat.st_size:>12,} bytes  {item.age / 3600:8.1f} h old  {item.path}")
    gone = [] if cfg.dry_run else remove(root, garbage)
    size = sum(item.stat.st_size for item in garbage)
    log.info(
        "%d files, %.1f MiB that no reader follows%s", len(garbage), size / 2**20,
        "; dry_run=false deletes them" if cfg.dry_run and garbage else f"; {len(gone)} deleted",
    )  # fmt: skip
    kinds = {f"gc/{kind}": sum(g.kind == kind for g in garbage) for kind in ("temporary", "orphan", "leftover")}
    return {**kinds, "gc/bytes": size, "gc/deleted": len(gone)}


if __name__ == "__main__":
    main()
