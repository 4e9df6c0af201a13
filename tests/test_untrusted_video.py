"""Video from elsewhere opens no other file, and its tables and sizes make us allocate nothing that is not there."""

import io
import struct
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest

from pipelines import clips
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.stream import FrameStore
from pipelines.video import VideoError, encode, open_clip, open_reader, probe, scan
from tests.attacks import meta, write_shard

pytestmark = pytest.mark.usefixtures("bounded")


SMALL = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)


def bomb(count):
    """An MP4 of 4 KB whose tables promise `count` samples of one byte."""
    data = bytearray(encode(SMALL, 10))
    at = data.find(b"stsz")
    data[at + 8 : at + 16] = struct.pack(">II", 1, count)
    at = data.find(b"stsc")
    data[at + 16 : at + 20] = struct.pack(">I", count)
    data[(at := data.find(b"stss")) : at + 4] = b"free"
    return bytes(data)


def fragmented(count):
    """A fragmented MP4 whose one run promises `count` samples of the default size."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i, image in enumerate(SMALL):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = bytearray(target.getvalue())
    at = data.find(b"trun")
    data[at + 4 : at + 12] = struct.pack(">II", 1, count)
    return bytes(data)


def hidden(data):
    """The same file with a box of an odd name before it, so that its first bytes do not say MP4."""
    return struct.pack(">I4s", 16, b"\0\0\0x") + bytes(8) + data


def enveloped(data):
    """The header inside a box called `free`, where one demuxer looks for it."""
    return data.replace(b"moov", b"free", 1)


@pytest.mark.parametrize("count", [10**6, 2**28, 2**31, 2**32 - 1])
@pytest.mark.parametrize("shape", [lambda data: data, hidden, enveloped])
@pytest.mark.parametrize("make", [bomb, fragmented])
def test_tables_that_promise_billions_of_frames(tmp_path, make, shape, count):
    data = shape(make(count))
    (tmp_path / "a.mp4").write_bytes(data)
    for source in (data, tmp_path / "a.mp4"):
        for read in (scan, probe, open_reader):
            with pytest.raises(VideoError):
                read(source)


def test_ordinary_tables_pass(tmp_path):
    assert len(scan(encode(SMALL, 10))) == len(SMALL)
    assert len(scan(encode(SMALL, 10, tmp_path / "a.mkv"))) == len(SMALL)


def test_videos_that_are_scripts_open_nothing(tmp_path):
    encode(SMALL, 10, tmp_path / "secret.mp4")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
    for text in (
        "ffconcat version 1.0\nfile 'secret.mp4'\n", playlist.format("secret.mp4"),
        playlist.format(tmp_path / "secret.mp4"), "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 0 RTP/AVP 96\n",
    ):  # fmt: skip
        for name in ("a.mp4", "a.m3u8", "a.sdp", "a.ffconcat"):
            (tmp_path / name).write_text(text)
            with pytest.raises(VideoError):
                scan(tmp_path / name)
        with pytest.raises(VideoError):
            scan(text.encode())


def write_packets(path, times):
    """A Matroska file of frames at the given milliseconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for image, milliseconds in zip(SMALL, times, strict=False):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = None
            for packet in stream.encode(frame):
                packet.pts = packet.dts = milliseconds
                packet.time_base = Fraction(1, 1000)
                file.mux(packet)
    return path


def test_frames_years_apart_do_not_fill_the_disk(tmp_path):
    table = scan(write_packets(tmp_path / "a.mkv", [0, 1, 2, 3, 10**8, 10**8 + 1]))
    assert len(table) == 6 and table.pts[-1] * table.time_base > 10**5
    for fps in (100.0, "source"):
        with pytest.raises(VideoError, match=r"too_long|timestamps"):
            clips.plan(table, fps)


def test_a_file_of_more_frames_than_anyone_records(monkeypatch):
    monkeypatch.setattr("pipelines.video.MAX_FRAMES", 5)
    with pytest.raises(VideoError, match="too_long"):
        scan(encode(SMALL, 10))


def test_a_header_that_promises_huge_pictures(tmp_path):
    """The size in the container and the size in the stream are both attacks; neither is believed unseen."""
    data = encode(SMALL, 10)
    at = data.find(b"avc1") + 28
    for width, height in ((65535, 65535), (32768, 16384)):
        wide = data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]
        with suppress(VideoError):
            assert probe(wide).height == 32  # the stream's own size counts
    big = encode(np.zeros((2, 1200, 1600, 3), np.uint8), 10)
    for read in (scan, probe):
        with pytest.raises(VideoError, match="too_large"):
            read(big, max_pixels=10**6)


def test_a_clip_that_is_not_what_its_metadata_say(tmp_path):
    video = encode(SMALL, 10)
    with open_clip(video, meta(8, (32, 32))) as reader:
        assert reader.frames(range(8)).shape == (8, 32, 32, 3)
    for wrong in (meta(9, (32, 32)), meta(8, (16, 16)), meta(1 << 40, (32, 32))):
        with pytest.raises(VideoError, match="metadata"):
            open_clip(video, wrong)
    write_shard(tmp_path, video, meta(8, (16, 16)))
    with pytest.raises(VideoError, match="metadata"):
        FrameStore(Shards(tmp_path)).rows("k", [0])


def test_more_frames_at_once_than_memory(monkeypatch):
    monkeypatch.setattr("pipelines.decoders.MAX_DECODED_BYTES", 10_000)
    with pytest.raises(DataError, match="too many"):
        open_reader(encode(SMALL, 10)).frames(range(8))
