"""Readers: random access to the frames of a video by row of its table. One interface, three decoders.

`pyav` is the default: ffmpeg's own speed, flat memory, and exact on every damaged or uneven file we know of.
`decord` is kept for those who expect it. Its defects: it decodes ahead without bound (90 s of 360p: 1 GB while idle),
returns silently wrong frames on files with lost key frames, drops the start time, refuses truncated files, and is
unmaintained. `torchcodec` needs system FFmpeg and a version that matches torch; we use its exact mode only.
A decoder that cannot honour the table raises FrameMismatch; none ever returns a neighbouring frame.
"""

import io

import numpy as np

from pipelines.schema import DataError
from pipelines.video import FrameMismatch, VideoError, av, clean_frames, label, opened

MAX_DECODED_BYTES = 4 << 30  # of one call
SEEK_TRIES = 3  # earlier key frames to try before decoding from the start
SEEKABLE = ("mov,mp4", "matroska")


class Reader:
    """Base: checks indices, decodes each wanted frame once, returns them in the order asked for."""

    expected = None  # (h, w) that every frame must have, or None

    def __init__(self, source, table, resizer):
        self.source, self.table, self.resizer = source, table, resizer

    def frames(self, indices):
        """Rows of the table, any order, repeats allowed -> uint8 [t h w c] RGB."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if len(indices) == 0:
            raise DataError("frames() needs at least one index")
        if indices.min() < 0 or indices.max() >= len(self.table):
            raise DataError(
                f"frames {indices.min()}..{indices.max()} asked of {label(self.source)}, which has {len(self.table)}"
            )
        wanted, back = np.unique(indices, return_inverse=True)
        out = None
        for row, image in enumerate(self.images(wanted)):
            if self.expected not in (None, image.shape[:2]):
                height, width = image.shape[:2]
                raise VideoError("size_change", f"{label(self.source)} shows {height}x{width}, its header less or more")
            if out is None:
                check_bytes(len(wanted) * image.nbytes, self.source)
                out = np.empty((len(wanted), *image.shape), np.uint8)
            if image.shape != out.shape[1:]:
                raise VideoError("size_change", f"frame size changes inside {label(self.source)}; pass size=(h, w)")
            out[row] = image
        return out if len(wanted) == len(indices) and (np.diff(indices) > 0).all() else out[back]  # t h w c

    def images(self, wanted):
        """Sorted unique rows -> uint8 [h w c] each."""
        raise NotImplementedError

    def mismatch(self, row, got):
        return FrameMismatch(f"row {row} of {label(self.source)} is pts {self.table.pts[row]}, the decoder gave {got}")

    def close(self):
        """Frees the decoder; the reader cannot be used afterwards."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __reduce__(self):
        raise TypeError("a reader holds an open decoder; open it inside the worker instead of sending it there")


def check_bytes(size, source):
    """DataError for more frames at once than anyone needs; a clip of a thousand bytes may promise them."""
    if size > MAX_DECODED_BYTES:
        raise DataError(f"{size} bytes of frames of {label(source)} at once are too many ({MAX_DECODED_BYTES} at most)")


class PyavReader(Reader):
    """Seek to the key frame at or before the target, decode forward, accept only the pts of the table."""

    def __init__(self, source, table, resizer):
        super().__init__(source, table, resizer)
        self.rows = {int(pts): row for row, pts in enumerate(table.pts)}
        self.key_rows = np.searchsorted(table.pts, table.keyframes)
        self._open()

    def _open(self):
        self.manager = opened(self.source)
        self.container, self.stream = self.manager.__enter__()
        if self.stream.time_base != self.table.time_base:
            raise FrameMismatch(f"the table counts in {self.table.time_base} s, {label(self.source)} does not")
        self.stream_frames = clean_frames(self.container, self.stream, self.table.reorder)
        self.position = -1  # row of the last frame that left the decoder

    def close(self):
        if self.manager is not None:
            self.manager.__exit__(None, None, None)
        self.manager = self.stream_frames = None

    def images(self, wanted):
        for row in wanted:
            yield self.resizer.rgb(self._frame(int(row)))

    def _frame(self, row):
        key = int(np.searchsorted(self.key_rows, row, side="right")) - 1
        start = int(self.key_rows[key]) if key >= 0 else 0
        ahead = row - self.position
        if 0 < ahead <= row - start + 1:  # standing before the target, no key frame would be nearer
            frame = self._forward(row)
            if frame is not None:
                return frame
        tries = SEEK_TRIES
        while True:
            self._seek(key)
            frame = self._forward(row)
            if frame is not None:
                return frame
            if key < 0 or tries == 0:
                return self._from_start(row)
            key, tries = key - 1, tries - 1  # landed past the target: packets may run ahead of their frames' times

    def _from_start(self, row):
        """For files that cannot be seeked: opens them again and decodes all the way."""
        self.close()
        self._open()
        frame = self._forward(row)
        if frame is None:
            raise self.mismatch(row, "no such frame, or a damaged one")
        return frame

    def _seek(self, key):
        time = int(self.table.keyframes[key]) if key >= 0 else int(self.table.pts[0])
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except av.error.FFmpegError as error:
            raise self.mismatch(int(np.searchsorted(self.table.pts, time)), f"a seek error ({error})") from error
        self.stream_frames = clean_frames(self.container, self.stream, self.table.reorder)
        self.position = -1

    def _forward(self, row):
        """Decodes up to `row`; None if the decoder is already past it or ends before it."""
        target = int(self.table.pts[row])
        for pts, frame in self.stream_frames:
            self.position = self.rows.get(pts, self.position)
            if pts == target:
                return frame
            if pts > target:
                return None
        return None


class DecordReader(Reader):
    """decord by index, accepted only if its frame count and its relative times equal those of the table."""

    def __init__(self, source, table, resizer):
        super().__init__(source, table, resizer)
        check_seekable(source, table, "decord")
        try:
            import decord
        except ImportError as error:
            raise DataError("decoder=decord needs `pip install decord` (x86_64 Linux); or use decoder=pyav") from error
        target = io_source(source)
        try:
            self.video = decord.VideoReader(target, ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError("unreadable", f"decord does not open {label(source)}; use decoder=pyav") from error
        if len(self.video) != len(table):
            raise FrameMismatch(
                f"decord sees {len(self.video)} frames in {label(source)}, the table {len(table)}; use decoder=pyav"
            )
        times = np.asarray(self.video.get_frame_timestamp(np.arange(len(table))))[:, 0]  # t seconds, from its own zero
        check_times(source, table, times - times[0])

    def images(self, wanted):
        for row in wanted:  # one by one: batches copy every frame twice
            yield scaled(self.resizer, self.video[int(row)].asnumpy())

    def close(self):
        self.video = None


class TorchcodecReader(Reader):
    """torchcodec in exact mode; each frame's own time is checked against the table."""

    def __init__(self, source, table, resizer):
        super().__init__(source, table, resizer)
        check_seekable(source, table, "torchcodec")
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            raise DataError(
                "decoder=torchcodec needs `pip install foundation-policy[torchcodec]` in a version that matches torch,"
                f" and system FFmpeg ({str(error).splitlines()[0]}); or use decoder=pyav"
            ) from error
        try:
            target = bytes(source) if isinstance(source, (bytearray, memoryview)) else source
            self.video = VideoDecoder(
                target if isinstance(target, bytes) else str(target),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (ValueError, RuntimeError) as error:
            raise VideoError("unreadable", f"torchcodec does not open {label(source)}; use decoder=pyav") from error
        if len(self.video) != len(table):
            raise FrameMismatch(
                f"torchcodec sees {len(self.video)} frames in {label(source)}, the table {len(table)}; use decoder=pyav"
            )

    def images(self, wanted):
        for row in wanted:
            try:
                frame = self.video.get_frame_at(int(row))
            except RuntimeError as error:
                raise VideoError("corrupt", f"torchcodec fails at row {row} of {label(self.source)}") from error
            expected = float(self.table.pts[row] * self.table.time_base)
            if abs(frame.pts_seconds - expected) > tolerance_seconds(self.table):
                raise self.mismatch(row, f"a frame of {frame.pts_seconds:.4f} s instead of {expected:.4f} s")
            yield scaled(self.resizer, frame.data.numpy())

    def close(self):
        self.video = None


def check_seekable(source, table, decoder):
    """Outside mp4 and Matroska the other decoders land on neighbours and do not say so; rotation they apply or not."""
    if not table.container.startswith(SEEKABLE) or "rotated" in table.notes:
        kind = "rotated video" if "rotated" in table.notes else table.container
        raise FrameMismatch(f"decoder={decoder} is not exact on {kind} ({label(source)}); use decoder=pyav")


def io_source(source):
    return io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else str(source)


def tolerance_seconds(table):
    """Half the shortest frame interval: nearer to this frame than to any other."""
    return 0.5 * float(np.diff(table.pts).min() * table.time_base) if len(table) > 1 else 0.01


def check_times(source, table, seconds):
    """FrameMismatch unless `seconds` [t] equals the table's times relative to its first frame."""
    expected = (table.pts - table.pts[0]) * float(table.time_base)
    wrong = np.flatnonzero(np.abs(seconds - expected) > tolerance_seconds(table))
    if len(wrong):
        raise FrameMismatch(f"{len(wrong)} frame times of {label(source)} differ from the table, first: row {wrong[0]}")


def scaled(resizer, image):
    """uint8 [h w c] -> the resizer's size, by the same scaler as the default decoder."""
    if resizer.size is None or image.shape[:2] == resizer.size:
        return image
    return resizer.rgb(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))


READERS = {"pyav": PyavReader, "decord": DecordReader, "torchcodec": TorchcodecReader}
