"""Units of ingest: which videos are one piece of work, found in folders, globs, lists and indexes.

A unit is one source video (or one stitched session). Its shards are named by the hash of its name, so neither the
number of workers nor their order can change a byte.
"""

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipelines import manifest as disk
from pipelines.clips import ClipSettings
from pipelines.contractor import ContractorOptions, read_index, sessions
from pipelines.folders import files_below
from pipelines.recordings import LogError, find_log, kind_of
from pipelines.schema import DataError

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".flv", ".mpg", ".mpeg", ".wmv"}
CODE_VERSION = 1  # of everything that turns the same input into other bytes


@dataclass(frozen=True)
class Unit:
    """Videos that make one timeline, in order of time; usually one."""

    name: str  # relative to the videos' root, any Unicode
    videos: tuple  # paths
    logs: tuple  # path or None for each
    duplicate_of: str = ""  # name of an earlier unit with the same bytes

    @property
    def hash(self):
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    @property
    def bytes(self):
        return sum(path.stat().st_size for path in self.videos if path.exists())


@dataclass(frozen=True)
class Job:
    """What is the same for all units of a run."""

    root: Path  # names are relative to it
    out: Path
    clips: ClipSettings
    contractor: ContractorOptions
    actions: str = "auto"
    samples_per_shard: int = 256
    retry: bool = False

    def settings(self):
        """What the stored bytes depend on, besides the input."""
        clips = {name: value for name, value in asdict(self.clips).items() if name != "max_pixels"}
        return {
            "version": CODE_VERSION, "actions": self.actions, "samples_per_shard": self.samples_per_shard,
            "clips": clips, "contractor": asdict(self.contractor),
        }  # fmt: skip

    def fingerprint(self):
        return hashlib.sha256(disk.to_json(self.settings())).hexdigest()[:16]

    def name(self, path):
        return str(Path(path).relative_to(self.root))

    def shown(self, path):
        """The name as text: bytes that are no UTF-8 are replaced. Not necessarily unique, `name` is."""
        return self.name(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# finding


def find_videos(videos, basedir=None):
    """(root folder, sorted paths) of a folder, glob, video, `.txt` list, contractor index, or a list of these."""
    if isinstance(videos, (str, Path)):
        videos = [videos]
    paths = sorted({Path(p).absolute() for entry in videos for p in expand(str(entry), basedir)})
    if not paths:
        raise DataError(f"no video at {', '.join(map(str, videos))}; known suffixes: {' '.join(sorted(SUFFIXES))}")
    folders = [Path(entry).absolute() for entry in videos if Path(entry).is_dir()]
    if len(folders) == 1 and len(videos) == 1:
        return folders[0], paths
    parents = [path.parent for path in paths]
    root = next(p for p in (parents[0], *parents[0].parents) if all(q.is_relative_to(p) for q in parents))
    return root, paths


def expand(entry, basedir):
    """Paths of one entry of `videos`."""
    path = Path(entry)
    if path.is_dir():
        return files_below(path, lambda name: Path(name).suffix.lower() in SUFFIXES)
    if path.is_file() and path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text().splitlines())
        return [path.parent / line for line in lines if line and not line.startswith("#")]
    if path.is_file() and path.suffix == ".json":
        return read_index(path, basedir)
    if path.is_file():
        return [path]
    if any(mark in entry for mark in "*?["):
        anchor = Path(path.anchor or ".")
        found = anchor.glob(str(path.relative_to(anchor)) if path.anchor else entry)
        return [p for p in found if p.is_file() and p.suffix.lower() in SUFFIXES]
    raise DataError(f"videos={entry} does not exist; give a folder, a glob, a video, a .txt list or a contractor index")


def find_units(job, paths, logs=None):
    """Units in order of name."""
    by_name = {job.name(path): path for path in paths}
    log_of = {name: find_log(path, job.root, logs) if job.actions != "none" else None for name, path in by_name.items()}
    groups = {name: [name] for name in by_name}
    if job.contractor.stitch:
        stems = {str(Path(name).with_suffix("")): name for name in by_name if is_contractor(job, log_of[name])}
        stitched = sessions(stems)
        groups = {name: [name] for name in by_name if str(Path(name).with_suffix("")) not in stems}
        groups |= {session: [stems[stem] for stem in group] for session, group in stitched.items()}
    return mark_duplicates([
        Unit(name, tuple(by_name[n] for n in group), tuple(log_of[n] for n in group))
        for name, group in sorted(groups.items())
    ])  # fmt: skip


def mark_duplicates(units):
    """Units with the bytes of an earlier one point to it: copies would leak between training and test sets.

    Only files of equal size are read.
    """
    sizes = [tuple(path.stat().st_size if path.exists() else -1 for path in unit.videos) for unit in units]
    often, seen, out = Counter(sizes), {}, []
    for unit, size in zip(units, sizes, strict=True):
        if often[size] > 1 and -1 not in size:
            digest = tuple(disk.file_sha256(path) for path in (*unit.videos, *filter(None, unit.logs)))
            unit = replace(unit, duplicate_of=seen.setdefault(digest, ""))
            seen[digest] = unit.duplicate_of or unit.name
        out.append(unit)
    return out


def is_contractor(job, log):
    if log is None or job.actions not in ("auto", "contractor"):
        return False
    try:
        return kind_of(log) == "contractor"
    except LogError:
        return False
