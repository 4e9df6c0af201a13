"""One unit of ingest: its videos and logs -> shards, and the record that says it is done.

`units/<hash>.json` records the outcome, rejections included. It is written after the shards' manifests; a unit is
finished when both are there, so a killed run redoes at most the units it was working on.
"""

import hashlib
from dataclasses import dataclass, field

from pipelines import manifest as disk
from pipelines.clips import Report, align, make_clips, members, plan, source_table
from pipelines.contractor import continues, cursor_editor, cursor_picture, read_contractor
from pipelines.recordings import ActionLog, LogError, kind_of, read_recording
from pipelines.schema import FIRST, NONE, RECORDED, DataError, SampleMeta
from pipelines.shards import ShardWriter
from pipelines.units import Job, Unit
from pipelines.video import VideoError

FOLDER = "units"
COUNTS = {"clips": 0, "frames": 0, "dropped": 0, "lost": 0}  # of a Report
RETRIED = {"crash", "timeout", "error"}  # may be the machine's fault: tried again by the next run


def process(task):
    """(Job, Unit) -> record of the unit: a dict that says what came of it; written to disk as well."""
    job, unit = task
    old, files = read_record(job, unit), identity(unit)  # before reading: a file may change while it is read
    if old and stands(job, unit, old, files):
        return {**old, "skipped": True}
    videos, logs = ([sha256_or_none(path) for path in paths] for paths in (unit.videos, unit.logs))
    work = digest(job.fingerprint(), unit.name, unit.duplicate_of, videos, logs)[:16]
    if old and old["unit"] == work and reusable(job, unit, old):
        return {**write_record(job, unit, {**old, "files": files}), "skipped": True}
    source = videos[0] if len(videos) == 1 else digest(videos)  # a session's pieces are one source
    timeline = UnitTimeline(job, unit, source or "")
    with ShardWriter(
        job.out, f"clips-{unit.hash}", job.samples_per_shard, unit=work, fingerprint=job.fingerprint()
    ) as writer:
        if unit.duplicate_of:
            timeline.reject(unit.videos[0], "duplicate", f"the same bytes as {unit.duplicate_of}")
        for video, log in zip(unit.videos, unit.logs, strict=True):
            if not unit.duplicate_of:
                timeline.add(video, log, writer)
    outcome = {"unit": work, "fingerprint": job.fingerprint(), "shards": len(writer.committed), **timeline.total}
    return write_record(job, unit, blank_record(unit, files, outcome))


def digest(*values):
    return hashlib.sha256(repr(values).encode("utf-8", "surrogateescape")).hexdigest()


def sha256_or_none(path):
    return disk.file_sha256(path) if path is not None and path.exists() else None


@dataclass
class UnitTimeline:
    """Lays the videos of a unit one after another; counts what came of them."""

    job: Job
    unit: Unit
    source_sha256: str
    offset: int = 0  # where the next video starts
    before: ActionLog | None = None  # log of the video before, if it was used
    total: dict = field(default_factory=lambda: {**COUNTS, "notes": {}, "rejected": []})

    def add(self, video, log_path, writer):
        """Clips of one video into `writer`, or one rejection."""
        report, log = Report(), None
        try:
            log = read_log(self.job, log_path)
            table, timeline, edit = self._open(video, log, report)
            for clip in make_clips(video, self.job.clips, report, table, timeline, edit):
                meta = self._meta(video, clip, table, timeline, log, report)
                writer.write(meta["key"], members(clip, timeline, log, meta))
            self.offset += len(timeline.rows)
            if not report.clips:
                raise nothing_left(report, self.job.clips)
        except (VideoError, LogError) as error:
            self.reject(video, error.code, error.detail, report.frames)
            self.offset += 1  # a gap: what follows does not continue what came before
            log = None
        self.before = log
        self._count(report, log)

    def reject(self, video, code, detail, frames=0):
        """One line of `rejected.jsonl`; `frames` were kept nevertheless."""
        row = {"file": self.job.shown(video), "code": code, "detail": detail, "frames": frames}
        self.total["rejected"].append(row)

    def _open(self, video, log, report):
        """(table, timeline, edit) of a video that fits its log."""
        if not video.exists():
            raise VideoError("missing", f"{video} does not exist")
        table = source_table(video, self.job.clips.max_pixels)
        report.note(*table.notes)
        if log is None:
            return table, plan(table, self.job.clips.fps), None
        report.note(*align(table, log, self.job.clips.tolerance_frames))
        if continues(self.before, log):
            log.events[FIRST][0] = False
        edit = None if log.cursor is None else cursor_editor(log, cursor_picture(self.job.contractor.cursor_image))
        return table, plan(table, self.job.clips.fps, log), edit

    def _meta(self, video, clip, table, timeline, log, report):
        """Fields of SampleMeta."""
        start = clip.start + self.offset
        tags = {
            "time_base": str(table.time_base), "start_seconds": round(table.start_seconds, 6), "frozen": clip.frozen,
            "source_fps": round(table.mean_fps, 4), "source_size": [table.height, table.width],
        }  # fmt: skip
        notes = [*report.notes, *(log.notes if log else []), *(["frozen"] if clip.frozen > 0.9 else [])]
        return SampleMeta(
            key=f"{self.unit.hash}-{start:08d}", source=self.job.shown(video), source_sha256=self.source_sha256,
            frames=(start, start + len(clip)), fps=timeline.fps, height=clip.height, width=clip.width,
            provenance=RECORDED if log else NONE, actions=log.spec if log else None, notes=tuple(notes),
            tags={**(log.tags if log else {}), **tags},
        ).to_dict()  # fmt: skip

    def _count(self, report, log):
        for name in COUNTS:
            self.total[name] += getattr(report, name)
        for note in [*report.notes, *(log.notes if log else [])]:
            self.total["notes"][note] = self.total["notes"].get(note, 0) + 1


def read_log(job, path):
    """ActionLog, or None where there is none."""
    if job.actions == "none" or (job.actions == "auto" and path is None):
        return None
    if path is None:
        raise LogError("missing_log", f"actions={job.actions} needs a .jsonl beside the video")
    kind = kind_of(path) if job.actions == "auto" else job.actions
    return read_contractor(path, job.contractor) if kind == "contractor" else read_recording(path)


def nothing_left(report, settings):
    """Why a video that opened gave no clip."""
    damage = [note for note in report.notes if note in ("corrupt", "leading_loss", "truncated")]
    if damage:
        return VideoError(damage[0], f"no run of {settings.min_frames} frames decodes ({report.dropped} frames do)")
    return VideoError("too_short", f"{report.dropped} frames, min_frames is {settings.min_frames}")


def identity(unit):
    """[[size, mtime] ..., duplicate of]: cheap signs that a unit is still the one that was hashed."""
    stats = [path.stat() if path and path.exists() else None for path in (*unit.videos, *unit.logs)]
    return [*([stat.st_size, stat.st_mtime_ns] if stat else None for stat in stats), unit.duplicate_of]


def record_path(job, unit):
    return job.out / FOLDER / f"{unit.hash}.json"


def read_record(job, unit):
    """The record of a unit; None where there is none, or a damaged one."""
    try:
        record = disk.read_json(record_path(job, unit))
    except (OSError, DataError):
        return None
    known = isinstance(record, dict) and {"unit", "files", "rejected", "shards", "videos"} <= record.keys()
    return {"fingerprint": "", "lost": 0, **record} if known else None  # earlier versions wrote neither


def write_record(job, unit, record):
    path = record_path(job, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomic(path, disk.sealed(record))
    return record


def stands(job, unit, record, files):
    """Whether a record is of these settings and files, by size and time, and need not be made again."""
    return record["fingerprint"] == job.fingerprint() and record["files"] == files and reusable(job, unit, record)


def reusable(job, unit, record):
    """Whether the outcome on record stands: shards all there, and not a rejection that is to be tried again."""
    codes = {rejection["code"] for rejection in record["rejected"]}
    if codes and (job.retry or codes & RETRIED):
        return False
    return record["shards"] == 0 or disk.finished(job.out, f"clips-{unit.hash}", record["unit"]) is not None


def failed_record(job, unit, failure):
    """Record of a unit whose worker crashed, hung or met an unforeseen error; a racing worker may have had success."""
    old, files = read_record(job, unit), identity(unit)
    if old and stands(job, unit, old, files):
        return {**old, "skipped": True}
    rejected = [{"file": job.shown(unit.videos[0]), "code": failure.code, "detail": failure.detail, "frames": 0}]
    return write_record(job, unit, blank_record(unit, files, {"rejected": rejected}))


def blank_record(unit, files, outcome):
    """Record of a unit that was made of `files` (its `identity` by then); without `outcome` it has none."""
    return {
        "unit": "", "fingerprint": "", "source": unit.name.encode("utf-8", "replace").decode(), "files": files,
        "videos": len(unit.videos), "bytes": unit.bytes,
        **COUNTS, "notes": {}, "rejected": [], "shards": 0, **outcome,
    }  # fmt: skip
