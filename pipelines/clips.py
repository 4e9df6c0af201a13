"""Video file (+ action log) -> clips of scaled frames on an even timeline, with the actions of each.

The timeline is planned from packet times before anything is decoded; decoding then fills it. Where frames turn out to
be lost, the clip ends and the next one starts at the right place of the timeline: indices are times, not counts.
"""

from dataclasses import dataclass, field

import numpy as np

from pipelines import schema
from pipelines.pixels import Encoder, Resizer, frame_rate, luma_array
from pipelines.recordings import LogError, aggregate
from pipelines.video import MAX_FRAMES, MAX_PIXELS, VideoError, decode, frame_notes, losses, probe, scan

MAX_FPS = 10_000  # a file that claims more has broken time stamps
FROZEN_LEVELS = 0.25  # mean absolute brightness change, of 255, below which two frames count as the same picture


@dataclass(frozen=True)
class ClipSettings:
    """How video becomes clips; part of a dataset's identity."""

    size: tuple = (64, 80)  # (h, w) stored
    fps: float | str = "source"  # frames per second stored; "source" keeps every frame of evenly timed files
    clip_frames: int = 512  # frames per clip
    min_frames: int = 16  # shorter rests are dropped
    interpolation: str = "bilinear"
    crf: int = 22
    gop: int = 16
    preset: str = "veryfast"
    tolerance_frames: int = 1  # by how much an action log may be longer or shorter than its video
    max_pixels: int = MAX_PIXELS


@dataclass
class Clip:
    """Frames [start, start + count) of the timeline, encoded."""

    start: int
    rows: np.ndarray  # int64 [t] source frame shown by each stored frame
    pts: np.ndarray  # int64 [t] its presentation time
    data: bytes
    height: int
    width: int
    frozen: float  # share of frames that repeat the picture before them

    def __len__(self):
        return len(self.rows)


@dataclass
class Report:
    """What happened to one video."""

    frames: int = 0
    clips: int = 0
    dropped: int = 0  # decoded frames in rests shorter than min_frames
    lost: int = 0  # frames that the file promises and that cannot be decoded
    notes: list = field(default_factory=list)

    def note(self, *names):
        self.notes += [name for name in names if name not in self.notes]


@dataclass
class Timeline:
    """Stored frame k shows source frame `rows[k]`."""

    rows: np.ndarray  # int64 [n], non-decreasing
    fps: float
    stride: int  # source frames that the last stored frame stands for

    def following(self, start, stop):
        """First source frame that is no longer part of stored frames [start, stop): int64."""
        return np.append(self.rows, self.rows[-1] + self.stride)[start + 1 : stop + 1]


def source_table(path, max_pixels):
    """Times of all frames from the packets; by decoding where packet times cannot be used (field pairs, AVI)."""
    try:
        return scan(path, max_pixels)
    except VideoError as error:
        if error.code != "timestamps":
            raise
        return probe(path, max_pixels)


def plan(table, fps, log=None):
    """Timeline at the wanted rate by nearest presentation time.

    With `fps="source"`, frames of evenly timed files map one to one, and so do frames with an action log, which has
    one line per frame. Uneven files without a log are put on an even grid at their median rate.
    """
    source_fps, even = source_rate(table), "vfr" not in table.notes
    if fps == "source":
        fps = source_fps
        one_to_one = even or log is not None
    else:
        fps = float(frame_rate(fps))
        one_to_one = even and abs(fps / source_fps - 1) < 1e-3
    if one_to_one:
        rows, stride = np.arange(len(table)), 1
    else:
        rows, stride = nearest(table, fps), max(1, round(source_fps / fps))
    if log is not None:
        rows = rows[rows < len(log)]
        if log.keep is not None:
            rows = rows[log.keep[rows]]
        if len(rows) == 0:
            raise LogError("bad_log", "no frame of the video has a usable log line")
    return Timeline(rows, float(frame_rate(fps)), stride)


def source_rate(table):
    """Frames per second of the file; VideoError where they cannot be."""
    if not 1e-3 < table.mean_fps < MAX_FPS:
        raise VideoError("timestamps", f"{table.mean_fps:g} frames/s by its time stamps; remux the file first")
    return table.mean_fps


def nearest(table, fps):
    """int64 [n]: for each tick of an even grid from the first frame on, the frame nearest in time."""
    seconds = (table.pts - table.pts[0]) * float(table.time_base)  # t
    if seconds[-1] * fps > MAX_FRAMES:  # two frames a year apart would be repeated until the disk is full
        raise VideoError("too_long", f"{seconds[-1]:.0f} s at {fps:g} frames/s are more than {MAX_FRAMES} frames")
    ticks = np.arange(int(seconds[-1] * fps + 1e-6) + 1) / fps
    right = np.searchsorted(seconds, ticks).clip(1, max(1, len(seconds) - 1))
    if len(seconds) == 1:
        return np.zeros(len(ticks), np.int64)
    before_is_nearer = ticks - seconds[right - 1] <= seconds[right] - ticks
    return np.where(before_is_nearer, right - 1, right)


def align(table, log, tolerance):
    """Notes about log length against video length; LogError `misaligned` beyond the tolerance (frames)."""
    lengths = [len(table)] + ([table.claimed] if "truncated" in table.notes else [])
    off = min((len(log) - length for length in lengths), key=abs)
    if abs(off) > tolerance:
        raise LogError(
            "misaligned", f"{len(log)} log lines for {len(table)} frames; more than tolerance_frames={tolerance} apart"
        )
    if log.fps and "vfr" not in table.notes and abs(log.fps / table.mean_fps - 1) > 0.01:
        return ["log_rate", *(["log_off_by_one"] if off else [])]
    return ["log_off_by_one"] if off else []


def make_clips(path, settings, report, table, timeline, edit=None):
    """Yields Clip after Clip; `report` counts what was lost. `edit(row, frame) -> frame` may draw on source frames."""
    builder = Builder(settings, timeline)
    row_of = {int(pts): row for row, pts in enumerate(table.pts)}
    tick, seen = 0, []
    for pts, frame in decode(path, table, settings.max_pixels):
        row = row_of.get(pts)
        if row is None or (seen and pts <= seen[-1]):
            raise VideoError("timestamps", f"frame at pts {pts} is not where its packet said; remux the file first")
        if not seen:
            report.note(*frame_notes(frame), *(["leading_loss"] if row > 0 else []))
        while tick < len(timeline.rows) and timeline.rows[tick] < row:  # that source frame was lost
            yield from finished(builder, report)
            report.note(*(["corrupt"] if seen else []))
            tick += 1
        seen.append(pts)
        if tick == len(timeline.rows) or timeline.rows[tick] > row:
            continue
        frame = builder.scale(edit(row, frame) if edit else frame)
        while tick < len(timeline.rows) and timeline.rows[tick] == row:
            builder.add(tick, pts, frame)
            tick += 1
            if builder.full:
                yield from finished(builder, report)
    yield from finished(builder, report)
    report.lost = table.lost + len(table) - len(seen)
    report.note(*losses(table.pts, np.array(seen, np.int64)) if seen else ["corrupt"])


def finished(builder, report):
    """The builder's clip, if it is long enough to keep."""
    clip = builder.finish()
    if clip is None:
        report.dropped += builder.dropped
        return
    report.clips += 1
    report.frames += len(clip)
    yield clip


class Builder:
    """Collects frames of one clip after another into an encoder."""

    def __init__(self, settings, timeline):
        self.settings, self.timeline = settings, timeline
        self.resizer = Resizer(settings.size, settings.interpolation)
        self.encoder = self.last = None
        self.ticks, self.pts, self.repeats, self.dropped = [], [], 0, 0

    @property
    def full(self):
        return len(self.ticks) >= self.settings.clip_frames

    def scale(self, frame):
        return self.resizer.planar(frame)

    def add(self, tick, pts, frame):
        if self.encoder is None:
            settings = self.settings
            self.encoder = Encoder(self.timeline.fps, gop=settings.gop, crf=settings.crf, preset=settings.preset)
            self.last = None
        if not self.pts or pts != self.pts[-1]:
            luma = luma_array(frame).astype(np.int16)
            same = self.last is not None and np.abs(luma - self.last).mean() < FROZEN_LEVELS
            self.repeats, self.last = self.repeats + same, luma
        self.encoder.add(frame)
        self.ticks.append(tick)
        self.pts.append(pts)

    def finish(self):
        """The clip so far, or None if it is shorter than the minimum (then `dropped` says how long it was)."""
        ticks, pts, repeats, encoder = self.ticks, self.pts, self.repeats, self.encoder
        self.ticks, self.pts, self.repeats, self.encoder = [], [], 0, None
        self.dropped = len(ticks) if len(ticks) < self.settings.min_frames else 0
        if encoder is None:
            return None
        if self.dropped:
            encoder.abort()
            return None
        size = encoder.stream.height, encoder.stream.width
        rows = self.timeline.rows[ticks[0] : ticks[-1] + 1]
        share = repeats / max(1, len(set(pts)) - 1)
        return Clip(ticks[0], rows, np.array(pts, np.int64), encoder.close(), *size, round(share, 3))


def members(clip, timeline, log, meta):
    """Members of the clip's sample: video, arrays, metadata."""
    arrays = {schema.PTS: clip.pts}
    if log is not None:
        following = timeline.following(clip.start, clip.start + len(clip))
        arrays |= aggregate(log, clip.rows, clip.rows + 1 if log.keep is not None else following)
    return {schema.VIDEO: clip.data, schema.ARRAYS: arrays, schema.META: meta}
