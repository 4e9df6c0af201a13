"""Units of ingest: which videos are one piece of work, found in folders, globs, lists and indexes.

A unit is one source video (or one stitched session). Its shards are named by the hash of its name, so neither the
number of workers nor their order can change a byte.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines import manifest as disk
from pipelines.clips import ClipSettings
from pipelines.contractor import ContractorOptions, read_index, sessions
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
        return {
            "version": CODE_VERSION, "actions": self.actions, "samples_per_shard": self.samples_per_shard,
            "clips": asdict(self.clips), "contractor": asdict(self.contractor),
        }

    def fingerprint(self):
        return hashlib.sha256(disk.to_json(self.settings())).hexdigest()[:16]

    def name(self, path):
        return str(Path(path).relative_to(self.root))


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
        return [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
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
    return [
        Unit(name, tuple(by_name[n] for n in group), tuple(log_of[n] for n in group))
        for name, group in sorted(groups.items())
    ]


def is_contractor(job, log):
    if log is None or job.actions not in ("auto", "contractor"):
        return False
    try:
        return kind_of(log) == "contractor"
    except LogError:
        return False
