"""The stages of the benchmark on a hundred frames; its timings are for larger sizes and quieter machines."""

import json
import sys

import pytest

from benchmarks import processes, scale
from pipelines.pixels import encode
from pipelines.shards import Shards
from pipelines.video import open_reader
from tests.pipelines import videos
from tests.pipelines.test_label import FPS, SIZE, make_idm

FRAMES, LENGTH = [48, 96], 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With recordings to cut up and a labeller."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "recordings").mkdir()
    encode(videos.scene(2 * LENGTH + 3), FPS, folder / "recordings" / "play.mp4")
    make_idm(folder / "labeller")
    return folder


@pytest.fixture(scope="module")
def labelled(folder):
    """What the command writes about ingest and labels of both sizes."""
    return run(folder, FRAMES, ["ingest", "label"])


def run(folder, frames, stages):
    options = {"frames": frames, "frames-per-file": [LENGTH], "distinct": [2], "steps": [1], "size": SIZE,
               "folder": [folder], "plays": [folder / "recordings"], "idm": [folder / "labeller"], "stages": stages,
               "out": [folder / "out.json"]}  # fmt: skip
    words = [word for name, values in options.items() for word in (f"--{name}", *map(str, values))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scale", *words])
        patch.setattr(scale, "SMALL_POLICY", {"channels": "[4,8,8,8]", "dim": 16, "heads": 2, "layers": 1})
        scale.main()
    return json.loads((folder / "out.json").read_text())


def test_every_file_is_ingested_and_labelled(folder, labelled):
    assert [(r["stage"], r["frames"], r["files"]) for r in labelled["rows"]] == [
        (stage, frames, frames // LENGTH) for frames in FRAMES for stage in ("ingest", "label")
    ]
    for row in labelled["rows"]:
        assert 0 < row["peak_process_mb"] <= row["peak_mb"] and row["cpu_seconds"] > 0
        assert (row["cost_growth"] is None) == (row["memory_growth"] is None) == (row["frames"] == FRAMES[0])
    for name in ("clips", "labels"):
        shards = Shards(folder / f"{name}-{FRAMES[1]}", verify=True)
        assert [entry.meta["frames"] for entry in shards.entries] == [[0, LENGTH]] * 4  # copies are no duplicates


def test_training_reads_what_was_labelled(folder, labelled):
    row = run(folder, FRAMES[:1], ["train"])["rows"][0]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert (row["stage"], summary["frames/train"], summary["steps"]) == ("train", FRAMES[0], 1)


def test_copies_of_a_clip_are_other_bytes_and_the_same_pictures(tmp_path):
    data = encode(videos.scene(5), FPS)
    copies = [data + scale.free_box(number) for number in range(2)]
    assert copies[0] != copies[1]
    for copy in copies:
        path = tmp_path / "copy.mp4"
        path.write_bytes(copy)
        assert (open_reader(path).frames(range(5)) == open_reader(data).frames(range(5))).all()


def test_growth_is_one_where_cost_is_linear_and_memory_constant():
    before = {"cpu_seconds": 2.0, "frames": 100, "peak_mb": 50.0, "files": 10}
    after = {"cpu_seconds": 20.0, "frames": 1000, "peak_mb": 50.0, "files": 100}
    assert scale.growth(after, before) == {"cost_growth": 1.0, "memory_growth": 1.0, "bytes_per_file": 0}


def test_memory_of_a_worker_counts(tmp_path):
    code = "import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', 'x = bytes(80 << 20); x += x[:9];"
    (tmp_path / "parent.py").write_text(f"{code} import time; time.sleep(1)']); c.wait()")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(processes, "ROOT", tmp_path)
    try:
        usage = processes.run("parent", log=tmp_path / "log")
        assert usage.process_bytes > 80 << 20 and usage.tree_bytes > usage.process_bytes and len(usage.cpu) >= 2
        (tmp_path / "parent.py").write_text("raise SystemExit('no such thing')")
        with pytest.raises(SystemExit, match="no such thing"):
            processes.run("parent", log=tmp_path / "log")
    finally:
        monkey.undo()
