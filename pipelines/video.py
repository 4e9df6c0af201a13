"""Video files: what they really contain, and which frame is which.

Frames are addressed by their presentation time stamp (PTS), never by index / rate: on files with variable rate, a
start offset or a cut, rates point at the wrong frame. A `VideoTable` lists the PTS of every frame; readers seek to
a key frame, decode forward and check each frame they return against the table.

`scan` makes the table from packet headers (fast), `probe` by decoding everything (sees damage), `decode` streams.
"""

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines import containers
from pipelines.pixels import Encoder, Resizer, encode, resize_frames, upright_size
from pipelines.schema import DataError

__all__ = [
    "Encoder",
    "FrameMismatch",
    "Resizer",
    "VideoError",
    "VideoTable",
    "decode",
    "encode",
    "open_clip",
    "open_reader",
    "probe",
    "resize_frames",
    "scan",
]

av.logging.set_level(None)  # the demuxers' complaints come back as typed errors and notes
MAX_PIXELS = 3840 * 2160
MAX_FRAMES = 1 << 22  # of one file: 19 hours at 60 frames/s
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # values of the H.273 transfer characteristics field


class VideoError(DataError):
    """A video that cannot be used as asked; `code` is one of the words of `rejected.jsonl`."""

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    def __reduce__(self):
        return type(self), (self.code, self.detail)


class FrameMismatch(VideoError):
    """The decoder delivered another frame than the table promises."""

    def __init__(self, detail, code="frame_mismatch"):
        super().__init__(code, detail)

    def __reduce__(self):
        return type(self), (self.detail,)


@dataclass(frozen=True, eq=False)
class VideoTable:
    """Which frames a file holds, in presentation order."""

    pts: np.ndarray  # int64 [t], strictly increasing, in units of time_base
    time_base: Fraction  # seconds
    keyframes: np.ndarray  # int64 [k] pts of the frames that decoding can start from
    height: int
    width: int
    mean_fps: float
    notes: tuple = ()  # vfr, offset, truncated, leading_loss, corrupt, rotated, ...
    claimed: int = 0  # frames the file's header promises; 0 where the container has no such field
    reorder: int = 0  # most frames that are displayed before, though decoded after, some other frame
    codec: str = ""
    container: str = ""  # the demuxer's name
    lost: int = 0  # frames that the header or the packets promise and that are not in `pts`

    def __len__(self):
        return len(self.pts)

    @property
    def start_seconds(self):
        return float(self.pts[0] * self.time_base)


@contextmanager
def opened(source, max_pixels=MAX_PIXELS):
    """Yields (container, video stream) of a path or bytes; every failure is a VideoError."""
    try:
        container = containers.open_video(source)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError("unreadable", f"no demuxer opens {label(source)} ({reason(error)})") from error
    try:
        if not container.streams.video:
            raise VideoError("no_video_stream", f"{label(source)} holds no video track")
        stream = container.streams.video[0]
        check_header(stream, label(source), max_pixels)
        stream.thread_type = "NONE"  # parallelise over files: threads inside a small decode only add cost
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}  # for pictures larger than the header says
        yield container, stream
    finally:
        container.close()


def check_header(stream, name, max_pixels):
    """Refuses, before a frame is allocated, what the header already rules out."""
    context = stream.codec_context
    if context is None:
        raise VideoError("unreadable", f"no decoder for the video track of {name}")
    if context.width * context.height > max_pixels:
        raise VideoError("too_large", f"{name} is {context.width}x{context.height}, max_pixels is {max_pixels}")
    if context.color_trc in HDR_TRANSFERS:
        kind = HDR_TRANSFERS[context.color_trc]
        raise VideoError("pixel_format", f"{name} is HDR ({kind}); convert it to 8-bit SDR with ffmpeg first")


def label(source):
    return f"{len(source)} bytes" if isinstance(source, (bytes, bytearray, memoryview)) else repr(Path(source).name)


def reason(error):
    return getattr(error, "strerror", None) or str(error)


def scan(source, max_pixels=MAX_PIXELS):
    """Table from packet headers, without decoding: what the file claims. `probe` or `decode` tell what can be had."""
    notes, entries, complete = [], [], True
    with opened(source, max_pixels) as (container, stream):
        claimed, seen, damaged = stream.frames, 0, 0
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                seen += 1
                if seen > MAX_FRAMES:
                    raise VideoError("too_long", f"{label(source)} has more than {MAX_FRAMES} frames; cut it up first")
                damaged += packet.is_corrupt
                if not packet.is_discard and not packet.is_corrupt:
                    entries.append((packet.pts, packet.is_keyframe))
        except (av.error.FFmpegError, OSError):
            complete = False
        if not complete or 0 < seen < claimed or ends_early(container, stream, entries):
            notes.append("truncated")
        table = build_table(entries, stream, notes, claimed, container.format.name)
        return replace(table, lost=max(claimed - seen, 0) + damaged)


def ends_early(container, stream, entries):
    """Containers without a frame count (Matroska) still state a duration; a second less than that is a cut file."""
    if stream.frames or container.duration is None or len(container.streams) > 1 or not entries:
        return False
    last = max((pts for pts, _ in entries if pts is not None), default=0)
    missing = container.duration / av.time_base - float(last * stream.time_base)  # seconds
    return missing > 1.0 + 2 / float(stream.average_rate or 1)


def build_table(entries, stream, notes, claimed, container):
    """(pts, is key frame) in decoding order -> VideoTable; VideoError where time stamps cannot be trusted."""
    if not entries:
        code = "truncated" if "truncated" in notes else "unreadable"
        raise VideoError(code, "the file holds no complete video frame")
    if any(pts is None for pts, _ in entries):
        raise VideoError("timestamps", "frames without presentation time; remux the file into mp4 or mkv first")
    decoding = np.array([pts for pts, _ in entries], np.int64)  # t
    pts = np.sort(decoding)
    if (np.diff(pts) <= 0).any():
        raise VideoError("timestamps", "two frames share one presentation time; remux the file first")
    keys = np.array(sorted(p for p, key in entries if key), np.int64)
    time_base, context = stream.time_base, stream.codec_context
    fps, regular = rate_of(pts, time_base, stream.average_rate)
    notes = [*notes, *([] if regular else ["vfr"])]
    if abs(float(pts[0] * time_base)) > 0.5 / fps:
        notes.append("offset")
    return VideoTable(
        pts, time_base, keys, context.height, context.width, fps, tuple(dict.fromkeys(notes)), claimed,
        reorder=int((np.searchsorted(pts, decoding) - np.arange(len(pts))).max(initial=0)), codec=context.name,
        container=container,
    )  # fmt: skip


def rate_of(pts, time_base, header_rate):
    """(frames per second, whether frames are evenly spaced).

    Even spacing forgives rounding of one tick (Matroska counts milliseconds) or 5 %. Uneven files get the rate of
    their median interval: screen recorders skip unchanged frames, so the mean would slow motion down.
    """
    if len(pts) < 2:
        return float(header_rate or 1), True
    steps = np.diff(pts)
    median = float(np.median(steps))
    if (np.abs(steps - median) <= max(1.0, 0.05 * median)).all():
        mean = float((len(pts) - 1) / ((pts[-1] - pts[0]) * time_base))
        close = header_rate and abs(float(header_rate) / mean - 1) < 0.005
        return float(header_rate) if close else mean, True
    return float(1 / (median * time_base)), False


def decode(source, table=None, max_pixels=MAX_PIXELS):
    """Yields (pts, av.VideoFrame) in presentation order: only frames that decode without damage."""
    table = table or scan(source, max_pixels)
    with opened(source, max_pixels) as (container, stream):
        yield from clean_frames(container, stream, table.reorder)


def clean_frames(container, stream, reorder):
    """Yields (pts, av.VideoFrame) from where the container stands: whole GOPs up to their first damage.

    After an error, output stops until the next key frame: what lies between refers to damaged pictures. Frames that
    leave the decoder early (B-frames) may refer to a picture whose damage shows only later, so as many frames as the
    file reorders are held back and dropped with it. A decoder that falls out of order has lost a reference picture.
    H.264 has no checksum: on files with flipped bits about 4 % of the frames kept here carry damage that the decoder
    did not notice.
    """
    held, newest = deque(), -(2**63)  # newest: pts of the last good frame out of the decoder
    key = clean_from = None  # pts of the last key frame sent; pts from which output can be trusted, None: not at all
    for packet in packets(container, stream):
        if packet.is_keyframe and packet.pts is not None:
            key = packet.pts
            clean_from = key if clean_from is None else clean_from
        frames, failed = decoded(packet)
        for frame in frames:
            if clean_from is None or frame.pts is None or frame.pts < clean_from:
                continue
            if frame.is_corrupt or frame.pts <= newest:
                held.clear()
                clean_from = key if key > frame.pts else None
            else:
                held.append(frame)
                newest = frame.pts
        if failed or packet.is_corrupt:
            held.clear()
            clean_from = None
        while len(held) > reorder:
            frame = held.popleft()
            yield frame.pts, frame
    for frame in held:
        yield frame.pts, frame


def packets(container, stream):
    """Packets up to the first demuxing error, then the empty one that drains the decoder."""
    try:
        yield from container.demux(stream)
    except (av.error.FFmpegError, OSError):
        yield av.Packet(0)


def decoded(packet):
    """(frames, whether decoding failed)"""
    try:
        return packet.decode() if packet.stream is not None else [], False
    except av.error.FFmpegError as error:
        return [], not isinstance(error, av.error.EOFError)


def probe(source, max_pixels=MAX_PIXELS):
    """Table of the frames that really decode, with notes on what was lost. Decodes the whole file once."""
    claimed = scan(source, max_pixels)
    rows, size, notes = [], None, []
    for pts, frame in decode(source, claimed, max_pixels):
        rows.append(pts)
        size = size or upright_size(frame)
        notes += frame_notes(frame) if len(rows) == 1 else []
    if not rows:
        raise VideoError("corrupt", f"no frame of {label(source)} decodes")
    pts = np.array(rows, np.int64)
    known = np.isin(pts, claimed.pts)
    if (np.diff(pts) <= 0).any() or not known.all():
        raise VideoError("timestamps", f"decoded frames of {label(source)} are out of order; remux the file first")
    notes = tuple(dict.fromkeys([*claimed.notes, *notes, *losses(claimed.pts, pts)]))
    return VideoTable(
        pts, claimed.time_base, claimed.keyframes[np.isin(claimed.keyframes, pts)], *size, claimed.mean_fps, notes,
        claimed.claimed, claimed.reorder, claimed.codec, claimed.container, claimed.lost + len(claimed) - len(pts),
    )  # fmt: skip


def losses(claimed, kept):
    """Where frames of the header's table are missing among the decoded ones: start, middle or end."""
    if len(kept) == len(claimed):
        return []
    first, last = np.searchsorted(claimed, [kept[0], kept[-1]])
    middle = last - first + 1 > len(kept)
    return [
        note
        for note, missing in (("leading_loss", first > 0), ("corrupt", middle), ("truncated", last < len(claimed) - 1))
        if missing
    ]


def frame_notes(frame):
    """Properties of the picture that were converted away."""
    depth = max(component.bits for component in frame.format.components)
    found = {"rotated": frame.rotation, "deep_colour": depth > 8, "interlaced": frame.interlaced_frame}
    return [note for note, present in found.items() if present]


def open_reader(source, table=None, decoder="pyav", size=None, interpolation="bilinear"):
    """Random access to a path or bytes: `reader.frames(indices) -> uint8 [t h w c]`, indices being rows of `table`.

    Without a table the packet headers give one; that is exact for clips that we stored. `size` is (h, w) or None.
    Open readers inside the worker that uses them: they are never pickled and never cross a fork.
    """
    from pipelines.decoders import READERS

    if decoder not in READERS:
        raise DataError(f"decoder is one of {sorted(READERS)}, got {decoder!r}")
    return READERS[decoder](source, table or scan(source), Resizer(size, interpolation))


def open_clip(data, meta):
    """Reader of a stored clip; VideoError where the video is not what its metadata say, before frames are allocated."""
    reader = open_reader(data)
    length, size = meta["frames"][1] - meta["frames"][0], (meta["height"], meta["width"])
    found = f"{reader.table.height}x{reader.table.width}"
    if len(reader.table) != length:
        raise VideoError("mismatch", f"video has {len(reader.table)} frames, its metadata says {length}")
    if (reader.table.height, reader.table.width) != size:
        raise VideoError("mismatch", f"video is {found}, its metadata says {size[0]}x{size[1]}")
    reader.expected = size
    return reader
