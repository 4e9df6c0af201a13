"""Peek prints what is there, and refuses what is not."""

import av
import pytest
from hydra import compose, initialize_config_dir

from pipelines import peek
from pipelines.command import CONFIGS
from pipelines.schema import DataError
from pipelines.video import encode
from tests.pipelines import videos
from tests.pipelines.running import ingest
from tests.pipelines.test_ingest import write_log


def look(**changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("peek")
    for name, value in changes.items():
        cfg[name] = str(value) if name in ("shards", "sheet") else value
    return peek.main.function(cfg)


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "in").mkdir()
    encode(videos.scene(40), 20, tmp_path / "in" / "a.mp4")
    write_log(tmp_path / "in" / "a.jsonl", 40)
    ingest(tmp_path / "in", tmp_path / "out", clip_frames=20)
    return tmp_path / "out"


def test_facts_and_statistics(shards, capsys, tmp_path):
    summary = look(shards=shards, verify=True, sheet=tmp_path / "sheet.png", gc=True)
    printed = capsys.readouterr().out
    assert (summary["samples"], summary["frames"], summary["sources"]) == (2, 40, 1)
    assert summary["keys/forward"] == 0.5  # every second frame
    assert summary["mouse_moves"] == 39 / 40
    assert "32x40 at 20.0 fps 2x" in printed
    assert "recorded (doom) 2x" in printed
    assert "'a.mp4' frames 20..40" in printed
    with av.open(str(tmp_path / "sheet.png")) as picture:
        frame = next(picture.decode(video=0))
    assert (frame.height, frame.width) == (2 * 32, 8 * 40)


def test_a_damaged_shard_is_left_out_as_the_message_says(shards, tmp_path):
    encode(videos.scene(40, seed=1), 20, tmp_path / "in" / "b.mp4")
    ingest(tmp_path / "in", shards, clip_frames=20, actions="auto")
    assert look(shards=shards)["samples"] == 4
    min(shards.glob("*.tar")).unlink()
    with pytest.raises(DataError, match=r"is missing.*on_damage=set_aside"):
        look(shards=shards)
    summary = look(shards=shards, on_damage="set_aside")
    assert (summary["samples"], summary["set_aside_shards"], summary["set_aside_samples"]) == (2, 1, 2)


def test_nothing_to_see(tmp_path):
    with pytest.raises(DataError, match="set shards"):
        look()
    with pytest.raises(DataError, match="no folder of shards"):
        look(shards=tmp_path / "none")
    with pytest.raises(DataError, match="holds no samples"):
        look(shards=tmp_path)
