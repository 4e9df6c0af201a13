"""LeRobot's data sets of versions 2 and 3, written here, read as episodes."""

import json

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import flat, run


def lerobot(root, version="v3.0", bounds=True, **changes):
    """Five episodes over two data files of v3, or a file each of v2; two tasks; a camera that is left out."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns, _ = flat([4, 3, 5, 2, 6])
    index = np.repeat(np.arange(5), [4, 3, 5, 2, 6])
    table = {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(columns["observations"].ravel()), 3),
        "action": pa.array(columns["actions"].astype("f4").tolist(), pa.list_(pa.float32())),
        "episode_index": pa.array(index), "task_index": pa.array(index % 2),
        "next.reward": pa.array(columns["rewards"].astype("f4")), "next.success": pa.array(index == 1), **changes,
    }  # fmt: skip
    table = pa.table(table)
    features = {name: {"dtype": "float32", "shape": [1], "names": None} for name in table.column_names}
    features["observation.images.top"] = {"dtype": "video", "shape": [48, 64, 3], "names": None}
    info = {"codebase_version": version, "fps": 30, "features": features}
    for name, content in (("info", info), ("stats", {"action": {"min": [-1, -1], "max": [1, 1]}})):
        (root / "meta").mkdir(parents=True, exist_ok=True)
        if name == "info" or bounds:
            (root / "meta" / f"{name}.json").write_text(json.dumps(content))
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["pick it", "place it"]}), root / "meta" / "tasks.parquet")
    (root / "data" / "chunk-000").mkdir(parents=True)
    names = [("file-000", index < 3), ("file-001", index >= 3)]
    if version != "v3.0":
        names = [(f"episode_{i:06d}", index == i) for i in range(5)]
    for name, rows in names:
        pq.write_table(table.filter(pa.array(rows)), root / "data" / "chunk-000" / f"{name}.parquet")
    return columns


@pytest.mark.parametrize(("version", "units"), [("v3.0", 2), ("v2.1", 1)])
@pytest.mark.parametrize("rows", [2, 3, 8192])
def test_lerobot(tmp_path, version, units, rows, monkeypatch):
    monkeypatch.setattr("pipelines.formats.lerobot.ROWS", rows)
    columns = lerobot(tmp_path / "in", version)
    summary = run(tmp_path / "in", tmp_path / "out", format="lerobot")
    assert (summary["units"], summary["episodes"], summary["rejected"]) == (units, 5, 0)
    assert summary["notes/left_out_observation.images.top"] == summary["notes/final_observation_repeated"] == 5
    data = Trajectories.load(tmp_path / "out")
    order = np.argsort([tags["task"] for tags in data.tags], kind="stable")  # files may come in another order
    assert sorted(data.lengths) == [2, 3, 4, 5, 6] and data.fps == 30 and data.truncated.sum() == 5
    assert [data.tags[i]["task"] for i in order] == ["pick it"] * 3 + ["place it"] * 2
    long = data.select(np.flatnonzero(data.lengths == 5))
    np.testing.assert_array_equal(long.observation, columns["observations"][7:12])
    np.testing.assert_allclose(long.action, columns["actions"][7:12], atol=1e-6)
    np.testing.assert_array_equal(long.reward, columns["rewards"][7:12].astype("f4"))
    assert [tags["success"] for tags, n in zip(data.tags, data.lengths, strict=True) if n == 3] == [True]


def test_lerobot_files_that_cannot_be_used(tmp_path):
    lerobot(tmp_path / "in")
    (tmp_path / "in" / "data" / "chunk-000" / "file-001.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    summary = run(tmp_path / "in", tmp_path / "out", format="lerobot")
    assert (summary["episodes"], summary["rejected/unreadable"]) == (3, 1)
    with pytest.raises(DataError, match="no episode was read"):
        run(tmp_path / "in", tmp_path / "none", format="lerobot", observation=["observation.velocity"])
    with pytest.raises(DataError, match=r"no meta/info\.json"):
        run(tmp_path / "in" / "data", tmp_path / "wrong", format="lerobot")
