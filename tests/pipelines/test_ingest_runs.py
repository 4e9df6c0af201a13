"""Running ingest again, elsewhere, in parallel, killed, and wrongly."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import gc
from pipelines.ingest import main
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.video import encode
from tests.pipelines import running, videos
from tests.pipelines.running import config, files, ingest, rejections


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def len_of(entry):
    return entry.meta["frames"][1] - entry.meta["frames"][0]


def fill(folder, count=4, frames=24):
    for index in range(count):
        encode(videos.scene(frames, seed=index), 20, folder / f"v{index}.mp4")
    return folder


def test_bytes_do_not_depend_on_workers_order_or_place(source, out, tmp_path):
    fill(source)
    ingest(source, out, clip_frames=16, min_frames=4, samples_per_shard=1)
    ingest(source, tmp_path / "b", clip_frames=16, min_frames=4, samples_per_shard=1, workers=2)
    for rank in (1, 0):
        ingest(source, tmp_path / "c", clip_frames=16, min_frames=4, samples_per_shard=1, rank=rank, world_size=2)
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    ingest(f"{moved}/*.mp4", tmp_path / "d", clip_frames=16, min_frames=4, samples_per_shard=1)
    assert len(files(out)) == 4 * 2 * 3 + 2  # tar, index, manifest of two shards each; dataset.json, rejected.jsonl
    assert files(out) == files(tmp_path / "b") == files(tmp_path / "c") == files(tmp_path / "d")


def test_second_run_redoes_only_what_is_missing(source, out):
    fill(source)
    ingest(source, out)
    before = files(out)
    assert ingest(source, out)["skipped_units"] == 4
    next(out.glob("*.tar")).unlink()
    sorted(out.glob("clips-*.json"))[1].unlink()
    assert ingest(source, out)["skipped_units"] in (2, 3)
    assert files(out) == before
    (source / "v1.mp4").touch()  # a new time, the same bytes: recognised by hash
    assert ingest(source, out)["skipped_units"] == 4
    encode(videos.scene(40, seed=77), 20, source / "v1.mp4")
    assert ingest(source, out)["skipped_units"] == 3
    assert sum(len_of(e) for e in Shards(out).entries) == 3 * 24 + 40
    encode(videos.scene(24, seed=78), 20, source / "v9.mp4")
    assert ingest(source, out)["skipped_units"] == 4
    assert len(Shards(out)) == 5


def test_rejections_are_remembered_and_retried_on_demand(source, out):
    fill(source, 1)
    (source / "bad.mp4").touch()
    ingest(source, out)
    assert ingest(source, out)["skipped_units"] == 2
    assert ingest(source, out, retry=True)["skipped_units"] == 1
    videos.write(source / "bad.mp4", 30)
    assert ingest(source, out)["rejected"] == 0
    assert rejections(out) == {}


def test_other_settings_do_not_mix(source, out):
    fill(source, 1)
    ingest(source, out)
    with pytest.raises(DataError, match=r"clips.crf: 22 -> 30"):
        ingest(source, out, crf=30)
    ingest(source, out, workers=2, strict=True, max_pixels=10**6)  # says nothing about the bytes


def command(source, out, *more):
    return [sys.executable, "-m", "pipelines.ingest", f"videos={source}", f"out={out}", f"run.dir={out}-run", *more]


def test_killed_at_any_moment_and_run_again(source, out, tmp_path):
    fill(source, 6, 60)
    ingest(source, tmp_path / "whole", size=[64, 80])
    generator, hits = random.Random(0), 0
    for _ in range(2):
        process = subprocess.Popen(
            command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        goal = count(out) + generator.randrange(1, 8)
        while count(out) < goal and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
        if out.exists() and list(out.glob("clips-*.json")):
            Shards(out, verify=True)  # whatever is there is whole
    assert hits == 2
    subprocess.run(command(source, out), check=True, capture_output=True)
    done = {name: data for name, data in files(out).items() if not name.startswith(".") and not is_garbage(out, name)}
    assert done == files(tmp_path / "whole")


def count(out):
    """Files so far, those in the making included."""
    return sum(1 for _ in out.rglob("*"))


def is_garbage(out, name):
    return any(item.path == out / name for item in gc.find(out, older_than_seconds=-1))


DEATHS = [(running.crash, "crash"), (running.hang, "timeout"), (running.stumble, "error")]


@pytest.mark.parametrize(("fault", "code"), DEATHS)
def test_a_decoder_that_dies_or_hangs_costs_one_video(source, out, monkeypatch, fault, code):
    fill(source, 3)
    monkeypatch.setattr("pipelines.ingest.process", fault)
    summary = ingest(source, out, workers=2, timeout_seconds=3)
    assert (summary["clips"], rejections(out)) == (2, {"v0.mp4": code})
    monkeypatch.undo()
    assert ingest(source, out)["rejected"] == 0  # tried again without being asked


# the user's mistakes


def test_mistakes_are_told(source, out, tmp_path):
    with pytest.raises(DataError, match="no video at"):
        ingest(source, out)
    with pytest.raises(DataError, match="does not exist"):
        ingest(tmp_path / "nowhere", out)
    fill(source, 1)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another out="):
        ingest(source, tmp_path / "file" / "out", run={"dir": str(tmp_path / "run")})
    for change, message in [
        ({"size": [33, 40]}, "even"), ({"size": [0, 40]}, "size is"), ({"fps": -1}, "frame rate"),
        ({"rank": 2}, "world_size"), ({"min_frames": 0}, "min_frames"), ({"actions": "yes"}, "actions="),
        ({"interpolation": "best"}, "interpolation"), ({"videos": None}, "set videos"), ({"limit": -1}, "limit=-1"),
        ({"limit": 0}, "limit=0"), ({"crf": 99}, "crf=99"), ({"preset": "warp"}, "preset=warp"),
    ]:  # fmt: skip
        cfg = config(source, out, **change)
        with pytest.raises(DataError, match=message):
            main.function(cfg)
    (source / "v0.mp4").write_text("x")
    with pytest.raises(DataError, match=r"no clip was made.*unreadable 1"):
        ingest(source, out)
    assert json.loads((Path(f"{out}-run") / "summary.json").read_text())["rejected"] == 1


def test_lists_and_single_files(source, out, tmp_path):
    fill(source, 3)
    (tmp_path / "list.txt").write_text("# mine\nin/v0.mp4\nin/v2.mp4\nin/v7.mp4\n")
    ingest(tmp_path / "list.txt", out)
    assert {e.meta["source"] for e in Shards(out).entries} == {"v0.mp4", "v2.mp4"}
    assert rejections(out) == {"v7.mp4": "missing"}
    assert ingest(source / "v1.mp4", tmp_path / "one")["clips"] == 1
    cfg = config("x", tmp_path / "two", videos=[str(source / "v0.mp4"), str(source / "v1.mp4")])
    assert main.function(cfg)["clips"] == 2


def test_command_line(source, out):
    fill(source, 1)
    done = subprocess.run(command(source, out, "workers=1", "size=[32,40]"), capture_output=True, text=True, check=True)
    assert "1 videos -> 1 clips" in done.stdout + done.stderr
    failed = subprocess.run(command(source / "none", out), capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "does not exist" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_missing_folder_of_logs_is_not_taken_for_no_logs(source, out, tmp_path):
    fill(source, count=1)
    with pytest.raises(DataError, match="not a folder"):
        ingest(source, out, logs=str(tmp_path / "nowhere"))
