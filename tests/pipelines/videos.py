"""Fixture videos: good ones, and one small generator per fault of real collections."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.video import encode

HEIGHT, WIDTH = 72, 96


def scene(count, height=HEIGHT, width=WIDTH, seed=0):
    """Yields uint8 [h w c]: a texture that slides by several pixels a frame, so that no two frames are alike."""
    texture = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    texture = np.kron(texture, np.ones((12, 12, 1), np.uint8))
    for i in range(count):
        moved = np.roll(texture, (3 * i, 7 * i), (0, 1))
        yield np.ascontiguousarray(np.resize(moved, (height, *moved.shape[1:]))[:, :width])


def write(path, count=60, fps=20, size=(HEIGHT, WIDTH), gop=12, b_frames=2, times=None, seed=0, **settings):
    """H.264 file as cameras and recorders write it. `times`: seconds of each frame (default: even); `settings`:
    codec (default libx264), pix_fmt, faststart, rotation, options, audio (seconds of silence)."""
    path = str(path)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(path, "w", options={"movflags": "faststart"} if settings.get("faststart") else {}) as output:
        stream = output.add_stream(settings.get("codec", "libx264"), rate=rate)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], settings.get("pix_fmt", "yuv420p")
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.options = {"crf": "20", "preset": "veryfast", "sc_threshold": "0", **settings.get("options", {})}
        stream.codec_context.time_base = Fraction(1, 1000) if times is not None else 1 / rate
        if "rotation" in settings:
            stream.set_display_rotation(settings["rotation"])
        sound = output.add_stream("aac", rate=16000) if settings.get("audio") else None
        for i, image in enumerate(scene(count, *size, seed)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = i if times is None else round(times[i] * 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            silence(output, sound, settings["audio"])
    return path


def silence(output, stream, seconds):
    for i in range(int(seconds * 16000) // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, i * 1024
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def write_audio(path, seconds=2):
    with av.open(str(path), "w") as output:
        silence(output, output.add_stream("aac", rate=16000), seconds)


def remux(source, target, change, container=None):
    """Copies packets; `change(index, packet)` returns the packet (altered in place) or None to lose it."""
    with av.open(str(source)) as before, av.open(str(target), "w", format=container) as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for index, packet in enumerate(p for p in before.demux(stream) if p.size):
            if (packet := change(index, packet)) is not None:
                packet.stream = copy
                after.mux(packet)
    return str(target)


def shift(source, target, seconds, skip=0):
    """Copy whose time stamps are moved; `skip` leading packets are lost. Negative starts become a mid-GOP cut."""

    def change(index, packet):
        offset = round(seconds / packet.time_base)
        packet.pts += offset
        packet.dts += offset
        return packet if index >= skip else None

    return remux(source, target, change)


def lose(source, target, lost):
    """Copy without the packets whose number is in `lost`."""
    return remux(source, target, lambda index, packet: None if index in lost else packet)


def cut(source, target, share):
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: int(len(data) * share)])
    return str(target)


def damage(source, target, start, stop, flips=0, seed=0):
    """Copy with a stretch (shares of the file) zeroed, or `flips` random bits in it flipped."""
    data = bytearray(Path(source).read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    if flips:
        generator = np.random.default_rng(seed)
        for at, bit in zip(generator.integers(first, last, flips), generator.integers(0, 8, flips), strict=True):
            data[at] ^= 1 << int(bit)
    else:
        data[first:last] = bytes(last - first)
    Path(target).write_bytes(data)
    return str(target)


def uneven(count, fps=20, seed=0):
    """Frame times of a recorder that skips and hurries: seconds [t]."""
    steps = np.random.default_rng(seed).choice([0.5, 1, 1, 1, 2, 3], count) / fps
    return np.round(np.concatenate([[0], np.cumsum(steps)[:-1]]), 3)


def truth(path):
    """(pts int64 [t], frames uint8 [t h w c]) by plain sequential decoding, none of our code involved."""
    pts, frames = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            pts.append(frame.pts)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.array(pts), np.stack(frames)


def stored(count=48, fps=17.5, size=(32, 40), seed=0):
    """Bytes of a clip as ingest stores it."""
    return encode(scene(count, *size, seed), fps)
