"""Which frame is which: tables, random access, decoders, faults, encoding."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipelines.decoders import READERS
from pipelines.pixels import Resizer
from pipelines.schema import DataError
from pipelines.video import FrameMismatch, VideoError, decode, encode, open_reader, probe, resize_frames, scan
from tests.pipelines import videos

N = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good and damaged variants of one scene."""
    root = tmp_path_factory.mktemp("videos")
    cfr = videos.write(root / "cfr.mp4", N)
    mkv = videos.write(root / "cfr.mkv", N)
    fast = videos.write(root / "fast.mp4", N, faststart=True)
    videos.write(root / "vfr.mp4", N, times=videos.uneven(N))
    videos.write(root / "vfr.mkv", N, times=videos.uneven(N))
    videos.shift(cfr, root / "offset.mp4", 100.0)
    videos.shift(cfr, root / "offset.mkv", 100.0)
    videos.shift(cfr, root / "cut.mp4", -0.35)
    videos.lose(mkv, root / "lost_key.mkv", {0})
    videos.lose(mkv, root / "lost_middle.mkv", {30, 31})
    videos.write(root / "stream.ts", N)
    videos.cut(fast, root / "truncated.mp4", 0.6)
    videos.cut(mkv, root / "truncated.mkv", 0.6)
    videos.damage(fast, root / "zeroed.mp4", 0.5, 0.55)
    return root


GOOD = ["cfr.mp4", "cfr.mkv", "vfr.mp4", "vfr.mkv", "offset.mp4", "offset.mkv", "cut.mp4"]


@pytest.mark.parametrize("name", [*GOOD, "stream.ts"])
def test_table_is_that_of_plain_sequential_decoding(folder, name):
    pts, frames = videos.truth(folder / name)
    for table in (scan(folder / name), probe(folder / name)):
        np.testing.assert_array_equal(table.pts, pts)
    ours = [Resizer().rgb(frame) for _, frame in decode(folder / name)]
    np.testing.assert_array_equal(ours, frames)


@pytest.mark.parametrize("name", [*GOOD, "stream.ts", "lost_key.mkv", "lost_middle.mkv", "truncated.mp4", "zeroed.mp4"])
def test_random_access_equals_sequential_decoding(folder, name):
    table = probe(folder / name)
    expected = np.stack([Resizer().rgb(frame) for _, frame in decode(folder / name)])
    assert len(expected) == len(table)
    reader = open_reader(folder / name, table)
    for index in np.random.default_rng(0).integers(0, len(table), 60):
        np.testing.assert_array_equal(reader.frames([index])[0], expected[index])


@pytest.mark.parametrize("name", ["lost_key.mkv", "zeroed.mp4"])
def test_frames_kept_from_damaged_files_are_those_of_the_whole_file(folder, name):
    whole = dict(zip(*videos.truth(folder / ("cfr.mkv" if name.endswith("mkv") else "fast.mp4")), strict=True))
    kept = [(pts, Resizer().rgb(frame)) for pts, frame in decode(folder / name)]
    assert len(kept) >= N // 4
    for pts, image in kept:
        assert np.abs(image.astype(int) - whole[pts]).mean() < 1


def test_notes_say_what_is_odd(folder):
    notes = {path.name: probe(path).notes for path in folder.iterdir()}
    assert notes["cfr.mp4"] == notes["cfr.mkv"] == notes["cut.mp4"] == ()
    assert "vfr" in notes["vfr.mp4"]
    assert "vfr" in notes["vfr.mkv"]
    assert notes["offset.mp4"] == notes["offset.mkv"] == ("offset",)
    assert "leading_loss" in notes["lost_key.mkv"]
    assert "vfr" in notes["lost_middle.mkv"]  # packets lost without a trace leave only a gap in time
    assert "corrupt" in notes["zeroed.mp4"]
    assert notes["truncated.mp4"] == notes["truncated.mkv"] == ("truncated",)


def test_rates_and_counts(folder):
    table = scan(folder / "cfr.mp4")
    assert (len(table), table.mean_fps, table.claimed, table.height, table.width) == (N, 20.0, N, 72, 96)
    assert table.reorder >= 1  # it has B-frames
    assert len(probe(folder / "lost_key.mkv")) == N - 12  # the first GOP is gone, not guessed
    assert scan(folder / "vfr.mp4").mean_fps == pytest.approx(20, rel=1e-3)  # the median interval
    assert scan(folder / "offset.mp4").start_seconds == 100.0


def decoder_missing(decoder):
    try:
        open_reader(videos.stored(4), decoder=decoder)
    except DataError:
        return True
    return False


@pytest.mark.parametrize("decoder", sorted(set(READERS) - {"pyav"}))
@pytest.mark.parametrize("name", GOOD)
def test_every_decoder_gives_the_same_frames_or_refuses(folder, name, decoder):
    if decoder_missing(decoder):
        pytest.skip(f"{decoder} is not installed")
    table = probe(folder / name)
    indices = np.random.default_rng(1).integers(0, len(table), 20)
    expected = open_reader(folder / name, table).frames(indices)
    if name == "cut.mp4":  # frames before the edit list's start are shown by these decoders or not to be had
        with pytest.raises(FrameMismatch):
            open_reader(folder / name, table, decoder=decoder).frames(np.arange(len(table)))
        return
    got = open_reader(folder / name, table, decoder=decoder).frames(indices)
    assert np.abs(got.astype(int) - expected).mean() < 1.0


@pytest.mark.parametrize("decoder", sorted(set(READERS) - {"pyav"}))
@pytest.mark.parametrize("name", ["lost_key.mkv", "zeroed.mp4", "stream.ts"])
def test_other_decoders_refuse_what_they_get_wrong(folder, name, decoder):
    if decoder_missing(decoder):
        pytest.skip(f"{decoder} is not installed")
    with pytest.raises(VideoError):
        open_reader(folder / name, probe(folder / name), decoder=decoder).frames([0])


@pytest.mark.parametrize("decoder", sorted(READERS))
def test_decoders_read_stored_clips_from_memory_at_any_size(decoder):
    if decoder_missing(decoder):
        pytest.skip(f"{decoder} is not installed")
    data = videos.stored(40)
    reader = open_reader(data, decoder=decoder, size=(16, 20))
    assert reader.frames([39, 3, 3]).shape == (3, 16, 20, 3)
    full = open_reader(data, decoder=decoder).frames(np.arange(40))
    np.testing.assert_array_equal(resize_frames(full[[39, 3, 3]], (16, 20)).shape, (3, 16, 20, 3))
    np.testing.assert_array_equal(open_reader(data, decoder=decoder).frames([7, 31, 7]), full[[7, 31, 7]])


def test_missing_optional_decoder_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DataError, match="pip install decord"):
        open_reader(videos.stored(4), decoder="decord")
    with pytest.raises(DataError, match=r"\[torchcodec\]"):
        open_reader(videos.stored(4), decoder="torchcodec")
    with pytest.raises(DataError, match="decoder is one of"):
        open_reader(videos.stored(4), decoder="opencv")


def test_a_table_of_another_file_is_a_mismatch_not_a_neighbour():
    table = scan(videos.stored(40, fps=20))
    with pytest.raises(FrameMismatch):
        open_reader(videos.stored(40, fps=13), table).frames([20])


def test_indices_are_checked():
    reader = open_reader(videos.stored(8))
    with pytest.raises(DataError, match="which has 8"):
        reader.frames([8])
    with pytest.raises(DataError, match="at least one"):
        reader.frames([])
    with pytest.raises(TypeError, match="inside the worker"):
        reader.__reduce__()


def html(path):
    path.write_text("<html>404</html>")


def empty(path):
    path.touch()


def no_index(path):
    videos.cut(videos.write(path.with_name("whole.mp4"), 30), path, 0.6)


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(20000))


def hdr(path):
    videos.write(path, 3, options={"x264-params": "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"})


def same_time_twice(path):
    fast = videos.write(path.with_name("fast.mkv"), 20, fps=3000, b_frames=0)  # Matroska counts milliseconds
    Path(fast).rename(path)


def nothing_decodes(path):
    videos.damage(videos.write(path.with_name("whole.mp4"), 30, faststart=True), path, 0.1, 0.99, flips=30000)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (html, "unreadable"), (empty, "unreadable"), (no_index, "unreadable"), (noise, "unreadable"),
        (videos.write_audio, "no_video_stream"), (hdr, "pixel_format"), (same_time_twice, "timestamps"),
        (nothing_decodes, "corrupt"),
    ],
)  # fmt: skip
def test_useless_files_have_a_typed_reason(tmp_path, make, code):
    path = tmp_path / "x.mp4"
    make(path)
    with pytest.raises(VideoError) as error:
        probe(path)
    assert error.value.code == code
    assert isinstance(error.value, DataError)


def test_huge_frames_are_refused_before_decoding():
    data = videos.stored(2, size=(72, 96))
    with pytest.raises(VideoError, match="96x72, max_pixels is 6911") as error:
        scan(data, max_pixels=96 * 72 - 1)
    assert error.value.code == "too_large"
    assert len(scan(data, max_pixels=96 * 72)) == 2


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path, degrees, turns):
    path = videos.write(tmp_path / "phone.mp4", 3, rotation=degrees)
    table = probe(path)
    assert "rotated" in table.notes
    assert (table.height, table.width) == ((96, 72) if turns % 2 else (72, 96))
    upright = np.rot90(next(iter(videos.scene(3))), turns)
    frame = open_reader(path).frames([0])[0]
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 15  # lossy, but the right way up
    stored = Resizer((48, 36)).planar(next(frame for _, frame in decode(path)))
    assert (stored.height, stored.width) == (48, 36)


def test_deep_colour_is_converted(tmp_path):
    path = videos.write(tmp_path / "deep.mp4", 4, pix_fmt="yuv420p10le")
    table = probe(path)
    assert table.notes == ("deep_colour",)
    assert open_reader(path, table).frames([1]).dtype == np.uint8


def test_encoding_is_deterministic_constant_rate_and_keyed_every_gop():
    data = videos.stored(40, fps=17.5)
    assert data == videos.stored(40, fps=17.5)
    table = scan(data)
    assert table.mean_fps == 17.5
    assert table.pts[0] == 0
    assert len(set(np.diff(table.pts))) == 1
    np.testing.assert_array_equal(np.searchsorted(table.pts, table.keyframes), [0, 16, 32])
    assert table.reorder == 0


def test_encoding_keeps_the_picture(tmp_path):
    gradient = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None] * 3, (64, 80, 3))
    path = encode([gradient] * 20, 10, tmp_path / "x.mp4")
    assert np.abs(open_reader(path).frames(np.arange(20)).astype(int) - gradient).mean() < 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_bad_encoder_input_leaves_nothing_behind(tmp_path):
    odd = encode([np.zeros((33, 41, 3), np.uint8)] * 2, 10)
    assert (scan(odd).height, scan(odd).width) == (32, 40)
    images = [np.zeros((32, 40, 3), np.uint8), np.zeros((32, 42, 3), np.uint8)]
    with pytest.raises(DataError, match="one file holds one size"):
        encode(images, 10, tmp_path / "x.mp4")
    for bad in ([], [np.zeros((32, 40), np.uint8)]):
        with pytest.raises(DataError):
            encode(bad, 10, tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())
    for fps in (0, -1, float("nan"), "fast"):
        with pytest.raises(DataError, match="frame rate"):
            encode(images[:1], fps)


def test_resize_of_live_frames_is_that_of_stored_video(tmp_path):
    frames = np.stack([image[..., :1].repeat(3, -1) for image in videos.scene(8, 96, 128)])  # grey: full resolution
    small = resize_frames(frames, (48, 64))
    assert small.shape == (8, 48, 64, 3)
    stored = open_reader(encode(frames, 20, crf=1), size=(48, 64)).frames(np.arange(8))
    assert np.abs(small.astype(int) - stored).mean() < 2
    flat = np.full((1, 30, 50, 3), 77, np.uint8)
    np.testing.assert_array_equal(resize_frames(flat, (10, 20)), 77)
    with pytest.raises(DataError, match="interpolation"):
        resize_frames(frames, (10, 20), "nearest")


def test_memory_stays_small_while_a_reader_idles(tmp_path):
    """One open reader per worker must not decode ahead (decord: 1 GB on 90 s of 360p)."""
    import resource

    path = videos.write(tmp_path / "long.mp4", 200, size=(360, 640), gop=250)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = open_reader(path)
    reader.frames([0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_stream_copied_cut_by_ffmpeg(folder, tmp_path):
    target = tmp_path / "cut.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "0.35", "-i", folder / "cfr.mp4", "-c", "copy", target], check=True)
    pts, frames = videos.truth(target)
    table = probe(target)
    np.testing.assert_array_equal(table.pts, pts)
    np.testing.assert_array_equal(open_reader(target, table).frames(np.arange(len(pts))), frames)


def test_a_stream_that_changes_size(tmp_path):
    """Recorders start a new picture size in the middle of a transport stream."""
    small = videos.write(tmp_path / "a.ts", 24, size=(48, 64))
    large = videos.write(tmp_path / "b.ts", 24, size=(96, 128), times=2 + np.arange(24) / 20)
    path = tmp_path / "both.ts"
    path.write_bytes(Path(small).read_bytes() + Path(large).read_bytes())
    table = probe(path)
    n = len(table)
    assert 40 <= n <= 48  # where the pieces meet, a few pictures lack their references
    assert open_reader(path, table, size=(32, 40)).frames(np.arange(n)).shape == (n, 32, 40, 3)
    with pytest.raises(VideoError, match="pass size") as error:
        open_reader(path, table).frames([0, n - 1])
    assert error.value.code == "size_change"
    kept = probe(path, max_pixels=5000)  # the header is small: what exceeds the limit later counts as damage
    assert len(kept) <= 24
    assert {"truncated", "corrupt"} & set(kept.notes)
