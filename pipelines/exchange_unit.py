"""One unit of exchange: files of another tool -> episode shards, and the record that says it is done.

As in `pipelines.ingest_unit`, whose records these are ("clips" are episodes here, "frames" steps).
"""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from pipelines import manifest as disk
from pipelines.formats.episodes import FormatError, Options
from pipelines.ingest_unit import blank_record, digest, identity, read_record, reusable, stands, write_record
from pipelines.schema import REWARD, DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import check, write_episode
from pipelines.units import Unit

FORMATS = ("minari", "lerobot", "d4rl", "l2m", "ogbench", "exorl")
CODE_VERSION = 1  # of everything that turns the same input into other bytes


@dataclass(frozen=True)
class Job:
    """What is the same for all units of a run."""

    root: Path  # names are relative to it
    out: Path
    format: str
    options: Options
    tags: dict  # given to every episode
    samples_per_shard: int = 256
    retry: bool = False

    def settings(self):
        """What the stored bytes depend on, besides the input."""
        return {
            "version": CODE_VERSION, "format": self.format, "options": self.options.to_dict(), "tags": self.tags,
            "samples_per_shard": self.samples_per_shard,
        }  # fmt: skip

    def fingerprint(self):
        return hashlib.sha256(disk.to_json(self.settings())).hexdigest()[:16]

    def reader(self):
        return importlib.import_module(f"pipelines.formats.{self.format}")

    def shown(self, path):
        """Name of a file in `rejected.jsonl`."""
        path = path.relative_to(self.root) if path != self.root else path.name
        return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def find_units(job):
    """Units of the reader, in order of name."""
    found = job.reader().units(job.root, job.options)
    units = [Unit(name, tuple(files), (None,) * len(files)) for name, files in found]
    if not units:
        raise DataError(f"no {job.format} files in {job.root}")
    return sorted(units, key=lambda unit: unit.name)


def process(task):
    """(Job, Unit) -> record of the unit; written to disk as well."""
    job, unit = task
    old, files = read_record(job, unit), identity(unit)
    if old and stands(job, unit, old, files):
        return {**old, "skipped": True}
    hashes = [disk.file_sha256(path) for path in unit.videos]
    work = digest(job.fingerprint(), unit.name, hashes)[:16]
    if old and old["unit"] == work and reusable(job, unit, old):
        return {**write_record(job, unit, {**old, "files": files}), "skipped": True}
    total = {"clips": 0, "frames": 0, "notes": {}, "rejected": []}
    with ShardWriter(
        job.out, f"clips-{unit.hash}", job.samples_per_shard, unit=work, fingerprint=job.fingerprint()
    ) as writer:
        for path in unit.videos:
            add_file(job, unit, path, writer, total)
    outcome = {"unit": work, "fingerprint": job.fingerprint(), "shards": len(writer.committed), **total}
    return write_record(job, unit, blank_record(unit, files, outcome))


def add_file(job, unit, path, writer, total):
    """Episodes of one file into `writer`; what cannot be used is counted, what came before it stays."""
    before = total["frames"]
    for item in items(job, unit, path):
        key = f"{unit.hash}-{total['clips'] + len(total['rejected']):08d}"
        error = item if isinstance(item, FormatError) else fault(key, item)
        if error is None:
            tags = {**item.tags, **job.tags}
            write_episode(writer, key, item.arrays, item.spaces, item.fps, job.shown(path), tags)
            count(item, total)
        else:
            reject(job, path, error, total, total["frames"] - before)


def items(job, unit, path):
    """What the reader yields: Episodes, and FormatErrors in place of what cannot be used."""
    try:
        yield from job.reader().read(path, job.options, job.options.task or task_of(unit))
    except FormatError as error:
        yield error
    except (DataError, OSError) as error:
        yield FormatError("unreadable", str(error))


def fault(key, item):
    """FormatError of an episode that breaks the contract of shards, or None."""
    try:
        check(key, item.arrays, item.spaces)
    except DataError as error:
        return FormatError("episode", str(error))


def count(item, total):
    total["clips"] += 1
    total["frames"] += len(item.arrays[REWARD])
    for note in item.notes:
        total["notes"][note] = total["notes"].get(note, 0) + 1


def reject(job, path, error, total, kept):
    """One line of `rejected.jsonl`; `kept` steps of the file were used nevertheless."""
    row = {"file": job.shown(path), "code": error.code, "detail": error.detail, "frames": kept}
    total["rejected"].append(row)


def task_of(unit):
    """The task that a unit's name stands for: a file's stem or a folder's name."""
    name = Path(unit.name)
    return name.stem if len(unit.videos) == 1 and unit.videos[0].name == name.name else name.name
