"""Scaling and encoding of frames through libswscale and x264: one path for stored video and for live observations."""

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from pipelines.schema import DataError

INTERPOLATIONS = {
    "bilinear": Interpolation.BILINEAR,  # triangle filter, widened when shrinking: smooth under sub-pixel motion
    "area": Interpolation.AREA,  # box filter: a little faster and sharper, more aliasing of moving edges
    "bicubic": Interpolation.BICUBIC,
}

STORED_COLOUR = {"dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}  # what untagged H.264 means


class Resizer:
    """Scales and converts frames with one scaling context.

    PyAV builds a new context for every `frame.reformat` or `frame.to_ndarray`, which nearly doubles the cost of
    decoding; one `VideoReformatter` per reader avoids that. `size` is (h, w), or None to keep the frame's own.
    """

    def __init__(self, size=None, interpolation="bilinear"):
        if interpolation not in INTERPOLATIONS:
            raise DataError(f"interpolation is one of {sorted(INTERPOLATIONS)}, got {interpolation!r}")
        self.size = None if size is None else check_size(size)
        self.mode = INTERPOLATIONS[interpolation]
        self.reformatter = VideoReformatter()
        self.rotated = None  # a second context, made only if a file asks for rotation

    def rgb(self, frame):
        """av.VideoFrame -> uint8 [h w c], a new array."""
        turns = quarter_turns(frame)
        height, width = self.size or upright_size(frame)
        if turns % 2:
            height, width = width, height
        image = plane_array(self._convert(self.reformatter, frame, height, width, "rgb24"))
        return np.rot90(image, turns).copy()  # h w c

    def planar(self, frame):
        """av.VideoFrame -> av.VideoFrame in limited-range BT.601 yuv420p: what the encoder stores, no RGB detour."""
        if quarter_turns(frame):
            frame = av.VideoFrame.from_ndarray(self.rgb(frame), format="rgb24")
            self.rotated = self.rotated or VideoReformatter()
            return self._convert(self.rotated, frame, *even(frame.height, frame.width), "yuv420p")
        height, width = self.size or (frame.height, frame.width)
        return self._convert(self.reformatter, frame, *even(height, width), "yuv420p")

    def _convert(self, reformatter, frame, height, width, pixel_format):
        target = {} if pixel_format == "rgb24" else STORED_COLOUR
        return reformatter.reformat(
            frame, width=width, height=height, format=pixel_format, interpolation=self.mode, threads=1, **target
        )


def plane_array(frame):
    """Packed RGB av.VideoFrame -> uint8 [h w c] view; rows of a plane are padded to `line_size` bytes."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width * 3]
    return rows.reshape(frame.height, frame.width, 3)


def luma_array(frame):
    """Planar YUV av.VideoFrame -> uint8 [h w] view of its brightness."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def quarter_turns(frame):
    """Counter-clockwise quarter turns that the file's display matrix asks a player to make."""
    return round(frame.rotation / 90) % 4 if frame.rotation else 0


def upright_size(frame):
    size = frame.height, frame.width
    return size[::-1] if quarter_turns(frame) % 2 else size


def even(height, width):
    """4:2:0 chroma has no half samples: odd sizes lose their last row or column."""
    return height - height % 2, width - width % 2


def check_size(size):
    """(h, w) as a tuple of two positive ints, or DataError."""
    size = tuple(int(n) for n in size)
    if len(size) != 2 or min(size) < 2:
        raise DataError(f"size is [height, width] with both at least 2, got {list(size)}")
    return size


def resize_frames(frames, size, interpolation="bilinear"):
    """uint8 [t h w c] RGB -> uint8 [t h' w' c] by the scaler `ingest` uses, so that live frames match stored ones."""
    frames = np.ascontiguousarray(frames, dtype=np.uint8)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise DataError(f"resize_frames expects uint8 frames [t h w 3], got shape {list(frames.shape)}")
    size = check_size(size)
    if frames.shape[1:3] == size:
        return frames.copy()
    resizer = Resizer(size, interpolation)
    out = np.empty((len(frames), *size, 3), np.uint8)
    for index, frame in enumerate(frames):
        out[index] = resizer.rgb(av.VideoFrame.from_ndarray(frame, format="rgb24"))
    return out  # t h' w' c


class Encoder:
    """H.264 at constant frame rate from time 0; equal frames and settings give equal bytes.

    A key frame every `gop` frames keeps random windows cheap (GOP about equal to the window is best for 16-64
    frames). No B-frames: decoding order is display order, so no frame of a stored clip depends on a later one.
    One thread: x264's result is then independent of the machine's core count. No macroblock tree: at small sizes its
    vector code reads memory that nothing has written, and equal frames gave different files in 36 of 60 trials.
    """

    def __init__(self, fps, path=None, gop=16, crf=22, preset="veryfast", container=None):
        self.rate = frame_rate(fps)
        self.path = None if path is None else Path(path)
        self.part = None if path is None else self.path.with_name(self.path.name + ".part")
        self.target = io.BytesIO() if path is None else str(self.part)
        suffix = self.path.suffix.lstrip(".").lower() if path is not None else "mp4"
        self.format = container or {"mkv": "matroska"}.get(suffix, "mp4")
        self.options = {
            "preset": preset,
            "crf": str(crf),
            "g": str(gop),
            "keyint_min": str(gop),
            "bf": "0",
            "sc_threshold": "0",
            "x264-params": "threads=1:rc-lookahead=0:mbtree=0",
        }
        self.resizer = Resizer()
        self.output = self.stream = None
        self.count = 0

    def add(self, frame):
        """uint8 [h w c] RGB array or a yuv420p av.VideoFrame of even size."""
        if not isinstance(frame, av.VideoFrame):
            image = np.ascontiguousarray(frame, dtype=np.uint8)
            if image.ndim != 3 or image.shape[-1] != 3:
                raise DataError(f"encode expects uint8 frames [h w 3], got shape {list(image.shape)}")
            height, width = even(*image.shape[:2])
            image = np.ascontiguousarray(image[:height, :width])
            frame = self.resizer.planar(av.VideoFrame.from_ndarray(image, format="rgb24"))
        if self.stream is None:
            self._open(frame)
        if (frame.height, frame.width) != (self.stream.height, self.stream.width):
            raise DataError(
                f"frame {self.count}: {frame.height}x{frame.width}, clip: {self.stream.height}x{self.stream.width};"
                " one file holds one size"
            )
        frame.pts, frame.time_base = self.count, 1 / self.rate
        frame.pict_type = 0  # the source's own picture types would force key frames
        self.output.mux(self.stream.encode(frame))
        self.count += 1

    def _open(self, frame):
        self.output = av.open(self.target, "w", format=self.format, options={"fflags": "+bitexact"})
        self.stream = self.output.add_stream("libx264", rate=self.rate, options=self.options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = frame.width, frame.height, "yuv420p"
        self.stream.codec_context.thread_count = 1

    def close(self):
        """Finishes the file; returns its bytes, or its path (renamed into place only now)."""
        if self.stream is None:
            raise DataError("encode got no frames; a video needs at least one")
        self.output.mux(self.stream.encode(None))
        self.output.close()
        if self.path is None:
            return self.target.getvalue()
        os.replace(self.part, self.path)
        return self.path

    def abort(self):
        """Drops what was written."""
        if self.output is not None:
            self.output.close()
        if self.part is not None:
            self.part.unlink(missing_ok=True)


def encode(frames, fps, path=None, **settings):
    """Iterable of uint8 [h w c] -> MP4 bytes, or the written path. `settings`: gop, crf, preset (see Encoder)."""
    encoder = Encoder(fps, path, **settings)
    try:
        for frame in frames:
            encoder.add(frame)
        return encoder.close()
    except BaseException:
        encoder.abort()
        raise


def frame_rate(fps):
    """A frame rate as an exact fraction; DataError unless it is finite and positive."""
    try:
        rate = Fraction(fps).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"frame rate must be a positive number, got {fps!r}") from error
    if rate <= 0:
        raise DataError(f"frame rate must be a positive number, got {fps!r}")
    return rate
