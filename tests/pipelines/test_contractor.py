"""Contractor recordings of the VPT release: every trap of the released loader, repaired and as released."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.actions import MINECRAFT
from pipelines.contractor import (
    ContractorOptions,
    arrow,
    cursor_picture,
    paste,
    read_contractor,
    read_index,
    sessions,
    version_of,
)
from pipelines.pixels import encode
from pipelines.recordings import LogError, kind_of
from pipelines.schema import FIRST, DataError
from pipelines.shards import Shards
from pipelines.video import open_reader
from tests.pipelines import videos
from tests.pipelines.running import ingest, rejections

FIXED, RELEASED = ContractorOptions(), ContractorOptions.as_released()


def line(keys=(), dx=0.0, dy=0.0, buttons=(), new=(), gui=False, hotbar=0, tick=0, x=640.0, y=360.0):
    """One frame as the recorder logs it."""
    return {
        "mouse": {"x": x, "y": y, "dx": dx, "dy": dy, "scaledX": 0, "scaledY": 0, "dwheel": 0,
                  "buttons": list(buttons), "newButtons": list(new)},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "isGuiOpen": gui, "isGuiInventory": gui, "hotbar": hotbar, "yaw": 0.0, "pitch": 0.0, "tick": tick,
        "milli": 1_650_000_000_000 + 50 * tick, "inventory": [], "stats": {},
    }  # fmt: skip


def write_log(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return path


@pytest.fixture
def read(tmp_path):
    """read(lines, options, folder) -> ActionLog."""

    def call(lines, options=FIXED, folder="6.13"):
        return read_contractor(write_log(tmp_path / folder / "a.jsonl", lines), options)

    return call


def held(log):
    """Names of the keys held in each frame."""
    return [{name for name, on in zip(MINECRAFT.keys, row, strict=True) if on} for row in log.keys]


def test_keys_and_buttons_have_their_names(read):
    lines = [
        line(["w", "space"], buttons=[0, 1]), line(["s", "a"]), line(["d", "left.shift", "left.control"]),
        line(["q", "e", "7"]), line(["f", "escape", "f3"], buttons=[2]),
    ]  # fmt: skip
    assert held(read(lines)) == [
        {"forward", "jump", "attack", "use"}, {"back", "left"}, {"right", "sneak", "sprint"},
        {"drop", "inventory", "hotbar.7"}, set(),
    ]  # fmt: skip


def test_camera_is_degrees_pitch_first_and_keeps_fractions(read):
    lines = [line(dx=10, dy=-4), line(dx=6), line(dx=-13)]
    np.testing.assert_allclose(read(lines).mouse, [[-0.6, 1.5], [0, 0.9], [0, -1.95]], rtol=1e-6)
    np.testing.assert_array_equal(read(lines, RELEASED).mouse, [[0, 1], [0, 0], [0, -1]])  # cut toward zero


def test_glitches_beyond_half_a_turn(read):
    lines = [line(dx=1201, dy=10), line(dx=1200), line(dx=-5000)]
    np.testing.assert_allclose(read(lines).mouse, [[1.5, 0], [0, 180], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(read(lines, replace(FIXED, camera_guard=False)).mouse[:, 1], [180.15, 180, -750])


@pytest.mark.parametrize(("folder", "scale"), [("5.7", 0.5), ("5.8", 0.5), ("6.7", 2), ("6.9", 2), ("6.13", 1)])
def test_gui_mouse_scale_by_recorder_version(read, folder, scale):
    lines = [line(dx=20, gui=True), line(dx=20)]
    np.testing.assert_allclose(read(lines, folder=folder).mouse[:, 1], [3 * scale, 3])
    np.testing.assert_allclose(read(lines, replace(FIXED, gui_scale=False), folder).mouse[:, 1], [3, 3])


def test_attack_that_is_stuck_from_the_start(read):
    lines = [line(buttons=[0], new=[0]), line(buttons=[0]), line(), line(buttons=[0], new=[0]), line(buttons=[0])]
    assert [("attack" in keys) for keys in held(read(lines))] == [False, False, False, True, True]
    assert read(lines).notes == ["stuck_attack"]
    stuck = read(lines, replace(FIXED, unstick_attack=False))
    assert [("attack" in keys) for keys in held(stuck)] == [True, True, False, True, True]
    fine = [line(), line(buttons=[0], new=[0])]
    assert held(read(fine))[1] == {"attack"}


def test_hotbar_from_slot_changes(read):
    lines = [line(hotbar=4), line(hotbar=4), line(hotbar=0), line(hotbar=8)]
    assert held(read(lines)) == [set(), set(), {"hotbar.1"}, {"hotbar.9"}]
    assert held(read(lines, RELEASED)) == [{"hotbar.5"}, set(), {"hotbar.1"}, {"hotbar.9"}]  # one spurious press


def test_escape_closes_a_gui(read):
    lines = [line(["escape"], gui=True), line(["escape"])]
    assert held(read(lines)) == [{"inventory"}, set()]
    assert held(read(lines, RELEASED)) == [set(), set()]


def test_null_keys_and_side_buttons_are_tolerated_and_noted(read):
    lines = [line(["w"]), line(), line(buttons=[0, 3, 4])]
    lines[1]["keyboard"]["keys"] = None
    lines[0]["keyboard"]["keys"].append(None)
    log = read(lines)
    assert held(log) == [{"forward"}, set(), {"attack"}]
    assert log.notes == ["null_keys", "other_buttons"]
    lines[1]["keyboard"] = None
    lines[1]["mouse"] = None
    assert held(read(lines))[1] == set()


def test_null_frames(read):
    """Raw: no key at all and no pixel. Codec: nothing left in the policy's space. They differ on three of six."""
    lines = [line(), line(dx=1), line(["escape"]), line(["w", "s"]), line(["w"]), line(dx=10)]
    assert read(lines).keep is None
    raw = read(lines, replace(FIXED, null_frames="raw")).keep
    np.testing.assert_array_equal(raw, [False, True, True, True, True, True])
    codec = read(lines, replace(FIXED, null_frames="codec")).keep
    np.testing.assert_array_equal(codec, [False, False, False, False, True, True])  # 0.15 degrees is below bin 1
    with pytest.raises(DataError, match="expected keep, codec or raw"):
        ContractorOptions(null_frames="drop")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fast"])
def test_motion_that_is_no_number_is_refused(read, value):
    with pytest.raises(LogError, match="mouse motion is not") as error:
        read([line(), line(dx=value)])
    assert error.value.code == "bad_log"


def test_cursor_positions_only_in_guis(read):
    log = read([line(gui=True, x=100, y=50), line(x=100, y=50)])
    np.testing.assert_array_equal(log.cursor[0], [100, 50])
    assert np.isnan(log.cursor[1]).all()
    assert read([line(gui=True)], replace(FIXED, cursor=False)).cursor is None


def test_paste_blends_and_clips():
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[..., :3], picture[..., 3] = 200, [[255, 51], [0, 255]]
    image = np.full((3, 3, 3), 100, np.uint8)
    expected = [[100] * 3, [100, 200, 120], [100, 100, 200]]
    np.testing.assert_array_equal(paste(image.copy(), picture, 1, 1)[..., 0], expected)
    assert (paste(image.copy(), picture, 2, 2) != 100).any(-1).sum() == 1
    for outside in [(3, 0), (0, 3), (-1, 0), (0, -1)]:
        np.testing.assert_array_equal(paste(image.copy(), picture, *outside), image)
    assert arrow().shape == (16, 16, 4)
    assert set(np.unique(arrow()[..., 3])) == {0, 255}


def test_cursor_image_may_be_a_file(tmp_path):
    from pipelines.peek import write_png

    write_png(tmp_path / "c.png", np.full((20, 18, 3), 9, np.uint8))
    picture = cursor_picture(tmp_path / "c.png")
    assert picture.shape == (16, 16, 4)
    assert (picture[..., :3] == 9).all()
    with pytest.raises(DataError, match="cursor_image"):
        cursor_picture(tmp_path / "missing.png")


def test_names(tmp_path):
    assert version_of("/data/6.9/x.jsonl") == "6.9"
    assert version_of("/data/x.jsonl") == ""
    names = ["6.9/a-b-20220421-092639", "6.9/a-b-20220421-092139", "6.9/a-c-20220421-092139", "odd"]
    assert list(sessions(names).values()) == [[names[1], names[0]], [names[2]], ["odd"]]


def test_index_entries_are_found_or_named(tmp_path):
    (tmp_path / "data" / "6.9").mkdir(parents=True)
    (tmp_path / "data" / "6.9" / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    index = tmp_path / "index.json"
    names = ["data/6.9/a.mp4", "data/6.9/b.mp4", "data/6.9/c.mp4"]
    index.write_text(json.dumps({"basedir": "https://example.org/x/", "relpaths": names}))
    assert read_index(index) == [tmp_path / "data/6.9/a.mp4", tmp_path / "b.mp4", tmp_path / "data/6.9/c.mp4"]
    index.write_text("[]")
    with pytest.raises(DataError, match="not a contractor index"):
        read_index(index)


# the whole way


def write_piece(root, name, start_tick=0, count=40, gui=(), **video):
    lines = [line(["w"], dx=i, tick=start_tick + i, gui=i in gui, x=0, y=0) for i in range(count)]
    write_log(root / f"{name}.jsonl", lines)
    encode(videos.scene(count, 72, 128, **video), 20, root / f"{name}.mp4")


def test_pieces_of_a_session_continue_one_another(tmp_path):
    root = tmp_path / "in" / "6.9"
    write_piece(root, "ann-1-20220421-090000", 0)
    write_piece(root, "ann-1-20220421-090500", 40, seed=1)
    write_piece(root, "ann-1-20220421-093000", 9000, seed=2)  # half an hour later
    write_piece(root, "bob-2-20220421-090000", 0, seed=3)
    ingest(tmp_path / "in", tmp_path / "out", clip_frames=16, min_frames=4)
    shards = Shards(tmp_path / "out")
    ann = [e for e in shards.entries if "ann" in e.meta["source"]]
    assert len({e.meta["source_sha256"] for e in ann}) == 1
    assert [tuple(e.meta["frames"]) for e in ann] == [
        (0, 16), (16, 32), (32, 40), (40, 56), (56, 72), (72, 80), (80, 96), (96, 112), (112, 120),
    ]  # fmt: skip
    first = np.concatenate([shards.arrays(e.key)[FIRST] for e in ann])
    np.testing.assert_array_equal(np.flatnonzero(first), [0, 80])
    assert ann[0].meta["tags"]["recorder"] == "6.9"

    ingest(tmp_path / "in", tmp_path / "alone", clip_frames=16, min_frames=4, contractor={"stitch": False})
    assert len({e.meta["source_sha256"] for e in Shards(tmp_path / "alone").entries}) == 4


def test_missing_entries_of_an_index_are_set_aside(tmp_path):
    write_piece(tmp_path / "data", "a-1-20220421-090000")
    index = {"basedir": "https://example.org/", "relpaths": [f"data/{n}.mp4" for n in ("a-1-20220421-090000", "gone")]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    summary = ingest(tmp_path / "index.json", tmp_path / "out")
    assert (summary["clips"], summary["rejected/missing"]) == (1, 1)
    assert rejections(tmp_path / "out") == {"gone.mp4": "missing"}


def test_cursor_is_drawn_at_the_scale_of_the_video(tmp_path):
    write_piece(tmp_path / "in", "a", gui=range(20, 40))
    ingest(tmp_path / "in", tmp_path / "out", size=[72, 128], crf=1)
    ingest(tmp_path / "in", tmp_path / "bare", size=[72, 128], crf=1, contractor={"cursor": False})
    drawn, bare = (open_reader(s.read(s.entries[0].key, "mp4")).frames(np.arange(40)).astype(int)
                   for s in (Shards(tmp_path / "out"), Shards(tmp_path / "bare")))  # fmt: skip
    changed = np.abs(drawn - bare).mean((1, 2, 3))
    assert changed[:20].max() < 1 < changed[20:].min()
    corner = np.abs(drawn - bare)[30].mean(-1)
    assert corner[:16, :16].mean() > 20 > 5 > corner[20:, 20:].mean()


def test_dropped_null_frames_leave_the_video(tmp_path):
    lines = [line(["w"] if i % 2 else [], tick=i) for i in range(40)]
    write_log(tmp_path / "in" / "a.jsonl", lines)
    encode(videos.scene(40, 72, 96), 20, tmp_path / "in" / "a.mp4")
    ingest(tmp_path / "in", tmp_path / "out", contractor={"null_frames": "raw"}, size=[72, 96], crf=1)
    shards = Shards(tmp_path / "out")
    key = shards.entries[0].key
    arrays = shards.arrays(key)
    assert len(arrays["keys"]) == 20
    assert (arrays["keys"][:, MINECRAFT.keys.index("forward")] == 1).all()
    stored = open_reader(shards.read(key, "mp4")).frames(np.arange(20))
    kept = open_reader(tmp_path / "in" / "a.mp4").frames(np.arange(1, 40, 2))
    assert np.abs(stored.astype(int) - kept).mean() < 4


def test_kind_of_log(tmp_path):
    assert kind_of(write_log(tmp_path / "a.jsonl", [line()])) == "contractor"
    with pytest.raises(LogError, match="neither"):
        kind_of(write_log(tmp_path / "b.jsonl", [{"x": 1}]))
