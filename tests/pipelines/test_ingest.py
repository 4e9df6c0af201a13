"""Ingest: the whole way from files to shards, every fault with its reason, restarts, and equal bytes."""

import json
import os

import numpy as np
import pytest

from pipelines import clips
from pipelines.actions import DOOM
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.video import encode, open_reader, resize_frames, scan
from tests.pipelines import videos
from tests.pipelines.running import ingest, rejections
from tests.pipelines.test_recordings import HEADER


def write_log(path, count, fps=20, **changes):
    """Log whose yaw counts frames, so that misalignment shows."""
    rows = [{"keys": ["forward"] if i % 2 else [], "mouse": [0.0, float(i)], "first": i == 0} for i in range(count)]
    lines = [{**HEADER, "fps": fps, **changes}, *rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_video_becomes_consecutive_clips_that_look_like_it(source, out):
    (source / "a dir").mkdir()
    videos.write(source / "a dir" / "ü '$x.mkv", 60)
    summary = ingest(source, out, clip_frames=25, min_frames=10, crf=1)
    assert (summary["videos"], summary["clips"], summary["frames"], summary["rejected"]) == (1, 3, 60, 0)
    shards = Shards(out, verify=True)
    assert [tuple(e.meta["frames"]) for e in shards.entries] == [(0, 25), (25, 50), (50, 60)]
    assert [e.key.split("-")[1] for e in shards.entries] == ["00000000", "00000025", "00000050"]
    meta = shards.meta(shards.entries[0].key)
    assert (meta.source, meta.fps, meta.height, meta.width) == ("a dir/ü '$x.mkv", 20.0, 32, 40)
    assert (meta.provenance, meta.actions, len(meta.source_sha256)) == ("none", None, 64)
    original = open_reader(source / "a dir" / "ü '$x.mkv").frames(np.arange(60))
    stored = np.concatenate([pictures(shards, entry) for entry in shards.entries])
    grey, live = stored.mean(-1), resize_frames(original, (32, 40)).mean(-1)  # colour has half the resolution
    assert np.abs(grey - live).mean() < 8
    assert np.abs(grey[1:] - live[:-1]).mean() > 20  # a shift by one frame would be seen
    pts = np.concatenate([shards.arrays(e.key)["pts"] for e in shards.entries])
    np.testing.assert_array_equal(pts, scan(source / "a dir" / "ü '$x.mkv").pts)


def pictures(shards, entry):
    return open_reader(shards.read(entry.key, "mp4")).frames(np.arange(len_of(entry)))


def len_of(entry):
    return entry.meta["frames"][1] - entry.meta["frames"][0]


def test_log_makes_a_trajectory(source, out):
    encode(videos.scene(60), 20, source / "a.mp4")
    write_log(source / "a.jsonl", 60)
    ingest(source, out, clip_frames=40)
    shards = Shards(out)
    mouse = np.concatenate([shards.arrays(e.key)["mouse"] for e in shards.entries])
    np.testing.assert_array_equal(mouse[:, 1], np.arange(60))
    meta = shards.meta(shards.entries[1].key)
    assert (meta.provenance, meta.actions, meta.tags["map"]) == ("recorded", DOOM.to_dict(), "E1M1")
    ingest(source, out.with_name("bare"), actions="none")
    assert "keys" not in Shards(out.with_name("bare")).arrays(shards.entries[0].key)


def test_logs_from_another_folder(source, out, tmp_path):
    encode(videos.scene(40), 20, source / "a.mp4")
    (tmp_path / "answers").mkdir()
    write_log(tmp_path / "answers" / "a.jsonl", 40)
    ingest(source, out, logs=str(tmp_path / "answers"))
    assert Shards(out).entries[0].meta["provenance"] == "recorded"


OFF = "log_off_by_one"


@pytest.mark.parametrize(("lines", "note"), [(60, None), (59, OFF), (61, OFF), (58, ...), (62, ...)])
def test_log_length(source, out, lines, note):
    encode(videos.scene(60), 20, source / "a.mp4")
    encode(videos.scene(40, seed=1), 20, source / "b.mp4")
    write_log(source / "a.jsonl", lines)
    summary = ingest(source, out)
    if note is ...:
        assert rejections(out) == {"a.mp4": "misaligned"}
        return
    assert summary["rejected"] == 0
    entry = next(e for e in Shards(out).entries if e.meta["source"] == "a.mp4")
    assert len_of(entry) == min(60, lines)
    assert entry.meta["notes"] == ([note] if note else [])


def test_truncated_video_keeps_its_prefix_aligned(source, out):
    whole = videos.write(source.parent / "whole.mp4", 80, faststart=True)
    videos.cut(whole, source / "a.mp4", 0.6)
    write_log(source / "a.jsonl", 80)
    summary = ingest(source, out)
    assert (summary["rejected"], summary["notes/truncated"]) == (0, 1)
    shards = Shards(out)
    arrays = shards.arrays(shards.entries[0].key)
    assert 16 <= len(arrays["mouse"]) < 60
    np.testing.assert_array_equal(arrays["mouse"][:, 1], np.arange(len(arrays["mouse"])))
    assert summary["frames"] == len(arrays["mouse"])
    assert summary["frames"] + summary["lost"] == 80  # all that the index promises


def test_damage_in_the_middle_splits_without_moving_the_rest(source, out):
    whole = videos.write(source.parent / "whole.mp4", 96, faststart=True)
    videos.damage(whole, source / "a.mp4", 0.5, 0.53)
    write_log(source / "a.jsonl", 96)
    summary = ingest(source, out, min_frames=8)
    assert summary["notes/corrupt"] == 1 and summary["lost"] > 0
    assert summary["frames"] + summary["dropped"] + summary["lost"] == 96
    shards = Shards(out)
    assert len(shards) == 2
    table = scan(whole)
    for entry in shards.entries:
        arrays, (start, stop) = shards.arrays(entry.key), entry.meta["frames"]
        np.testing.assert_array_equal(arrays["mouse"][:, 1], np.arange(start, stop))
        np.testing.assert_array_equal(arrays["pts"], table.pts[start:stop])


def test_lower_rate_sums_actions(source, out):
    encode(videos.scene(60), 20, source / "a.mp4")
    write_log(source / "a.jsonl", 60)
    ingest(source, out, fps=10)
    shards = Shards(out)
    entry = shards.entries[0]
    assert (len_of(entry), entry.meta["fps"]) == (30, 10.0)
    arrays = shards.arrays(entry.key)
    np.testing.assert_array_equal(arrays["mouse"][:, 1], np.arange(0, 60, 2) * 2 + 1)
    assert arrays["keys"][:, DOOM.keys.index("forward")].all()
    np.testing.assert_array_equal(arrays["pts"], scan(source / "a.mp4").pts[::2])


def test_uneven_video_is_put_on_an_even_grid(source, out):
    times = videos.uneven(60)
    videos.write(source / "a.mkv", 60, times=times)
    ingest(source, out)
    shards = Shards(out)
    entry = shards.entries[0]
    assert "vfr" in entry.meta["notes"]
    assert entry.meta["fps"] == 20.0
    seconds = shards.arrays(entry.key)["pts"] / 1000
    grid = np.arange(len(seconds)) / 20
    nearest = np.abs(times[None] - grid[:, None]).min(1)
    np.testing.assert_allclose(np.abs(seconds - grid), nearest, atol=1e-9)  # no other frame is nearer


def test_uneven_video_with_a_log_stays_one_to_one(source, out):
    videos.write(source / "a.mp4", 60, times=videos.uneven(60))
    write_log(source / "a.jsonl", 60)
    ingest(source, out)
    shards = Shards(out)
    np.testing.assert_array_equal(shards.arrays(shards.entries[0].key)["mouse"][:, 1], np.arange(60))


def test_nearest_frame_by_hand():
    table = scan(videos.stored(5, fps=10))
    np.testing.assert_array_equal(clips.nearest(table, 10), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(clips.nearest(table, 5), [0, 2, 4])
    np.testing.assert_array_equal(clips.nearest(table, 20), [0, 0, 1, 1, 2, 2, 3, 3, 4])  # ties go to the past
    np.testing.assert_array_equal(clips.nearest(table, 4), [0, 2])  # 0.25 s is a tie between frames 2 and 3


def test_names_of_any_bytes(source, out):
    names = [b"\xff", b"http:x", b"-y", b"a\nb", "\u202eü".encode(), b"#", b"%20", b"[a]", b"a.b", b"*"]
    names = [name + b".mp4" for name in names]
    for index, name in enumerate(names):
        path = os.path.join(os.fsencode(source), name)
        with open(path, "wb") as file:
            file.write(encode(videos.scene(20, seed=index), 20))
    assert ingest(source, out)["clips"] == len(names)
    assert {e.meta["source"] for e in Shards(out).entries} == {name.decode("utf-8", "replace") for name in names}
    with open(os.path.join(os.fsencode(source), b"\xfe.mp4"), "wb"):
        pass
    assert ingest(source, out)["rejected"] == 1


def test_frozen_stretches_are_noted(source, out):
    encode([next(iter(videos.scene(1)))] * 40, 20, source / "still.mp4")
    assert ingest(source, out)["clips"] == 1
    meta = Shards(out).entries[0].meta
    assert meta["notes"] == ["frozen"]
    assert meta["tags"]["frozen"] > 0.9


# faults: each is set aside with its reason, and the good video beside it is not harmed


def bad_log(path, text):
    videos.write(path, 30)
    path.with_suffix(".jsonl").write_text(text)


def whole(path):
    return videos.write(path.parent.parent / f"whole-{path.name}", 60, faststart=True)


FAULTS = {
    "html.mp4": (lambda p: p.write_text("<html>404</html>"), "unreadable"),
    "empty.mp4": (lambda p: p.touch(), "unreadable"),
    "noise.mkv": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(9999)), "unreadable"),
    "no_index.mp4": (lambda p: videos.cut(videos.write(p.parent.parent / "w1.mp4", 30), p, 0.6), "unreadable"),
    "sound.mp4": (videos.write_audio, "no_video_stream"),
    "short.mp4": (lambda p: videos.write(p, 15), "too_short"),
    "one.mp4": (lambda p: videos.write(p, 1), "too_short"),
    "huge.mp4": (lambda p: videos.write(p, 2, size=(402, 402)), "too_large"),
    "hdr.mp4": (lambda p: videos.write(p, 20, options={"x264-params": "transfer=smpte2084"}), "pixel_format"),
    "clock.mkv": (lambda p: videos.write(p, 30, fps=3000, b_frames=0), "timestamps"),
    "stub.mp4": (lambda p: videos.cut(whole(p), p, 0.2), "truncated"),
    "ruin.mp4": (lambda p: videos.damage(whole(p), p, 0.1, 0.99, 30000), "corrupt"),
    "copy.mp4": (lambda p: p.write_bytes((p.parent / "a good one.mp4").read_bytes()), "duplicate"),
    "long_log.mp4": (lambda p: (videos.write(p, 30), write_log(p.with_suffix(".jsonl"), 40)), "misaligned"),
    "empty_log.mp4": (lambda p: bad_log(p, ""), "bad_log"),
    "other_log.mp4": (lambda p: bad_log(p, '{"fps": 3}\n'), "bad_log"),
    "key_log.mp4": (lambda p: bad_log(p, json.dumps(HEADER) + '\n{"keys": ["fly"], "mouse": [0, 0]}\n'), "unknown_key"),
    "nan_log.mp4": (lambda p: bad_log(p, json.dumps(HEADER) + '\n{"keys": [], "mouse": [0, NaN]}\n'), "bad_log"),
}  # fmt: skip


def test_every_fault_has_its_reason(source, out):
    videos.write(source / "a good one.mp4", 30, seed=9)
    for name, (make, _) in FAULTS.items():
        make(source / name)
    summary = ingest(source, out, max_pixels=400 * 400)
    assert rejections(out) == {name: code for name, (_, code) in FAULTS.items()}
    assert (summary["videos"], summary["clips"], summary["rejected"]) == (len(FAULTS) + 1, 1, len(FAULTS))
    assert summary["rejected/unreadable"] == 4
    with pytest.raises(DataError, match="strict=true"):
        ingest(source, out.with_name("strict"), max_pixels=400 * 400, strict=True)


TOLERATED = {
    "offset.mp4": (lambda p: videos.shift(videos.write(p.parent.parent / "t1.mp4", 40, seed=1), p, 100.0), "offset"),
    "vfr.mp4": (lambda p: videos.write(p, 40, times=videos.uneven(40), seed=2), "vfr"),
    "lead.mkv": (lambda p: videos.lose(videos.write(p.parent.parent / "t2.mkv", 60, seed=3), p, {0}), "leading_loss"),
    "phone.mp4": (lambda p: videos.write(p, 40, rotation=90, seed=4), "rotated"),
    "deep.mp4": (lambda p: videos.write(p, 40, pix_fmt="yuv420p10le", seed=5), "deep_colour"),
    "cut.mp4": (lambda p: videos.shift(videos.write(p.parent.parent / "t3.mp4", 40, seed=6), p, -0.35), None),
    "yuv444.mp4": (lambda p: videos.write(p, 40, pix_fmt="yuv444p", seed=7), None),
    "sound.mp4": (lambda p: videos.write(p, 40, audio=1, seed=8), None),
    "mpeg4.avi": (lambda p: videos.write(p, 40, codec="mpeg4", b_frames=0, options={"preset": ""}, seed=9), None),
    "vp9.webm": (lambda p: videos.write(p, 20, codec="libvpx-vp9", b_frames=0, options={"crf": "40"}, seed=10), None),
    "stream.ts": (lambda p: videos.write(p, 40, seed=11), "offset"),
}  # fmt: skip


def test_odd_but_usable_files_are_kept_with_a_note(source, out):
    for make, _ in TOLERATED.values():
        make(source / list(TOLERATED)[len(list(source.iterdir()))])
    summary = ingest(source, out)
    assert summary["rejected"] == 0
    notes = {e.meta["source"]: e.meta["notes"] for e in Shards(out).entries}
    assert set(notes) == set(TOLERATED)
    for name, (_, note) in TOLERATED.items():
        assert note is None or note in notes[name], name
    phone = next(e for e in Shards(out).entries if e.meta["source"] == "phone.mp4")
    assert (phone.meta["height"], phone.meta["width"]) == (32, 40)
