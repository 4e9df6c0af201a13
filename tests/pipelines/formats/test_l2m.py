"""L2M's npz files, written here in their layouts, read as episodes."""

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import flat, run, same
from tests.pipelines.running import rejections


def test_l2m_replay_buffers(tmp_path):
    columns, ends = flat([5, 5, 5])
    (tmp_path / "2M").mkdir()
    buffers = {name: value[:, None] for name, value in columns.items()}  # n 1 s, n 1: of one environment
    np.savez_compressed(tmp_path / "2M" / "reach-v2.npz", **buffers, dones=ends[:, None].astype(np.float32))
    summary = run(tmp_path / "2M", tmp_path / "out", format="l2m")
    assert (summary["episodes"], summary["rejected"]) == (3, 0)
    data = Trajectories.load(tmp_path / "out")
    same(data, columns)
    assert data.tags[0] == {"task": "reach-v2"} and not data.terminated.any() and data.truncated.sum() == 3


def test_l2m_single_trajectories(tmp_path):
    parts = [flat([4], seed=i)[0] for i in range(3)]
    for i, part in enumerate(parts):
        folder = tmp_path / "2M_separate" / ("reach-v2" if i < 2 else "push-v2")
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / f"{i}.npz",
            states=part["observations"],
            actions=part["actions"],
            rewards=part["rewards"],
            dones=True,
        )
    summary = run(tmp_path / "2M_separate", tmp_path / "out", format="l2m")
    assert (summary["units"], summary["episodes"], summary["notes/final_observation_repeated"]) == (2, 3, 3)
    assert Trajectories.load(tmp_path / "out", {"task": "push-v2"}).lengths.tolist() == [4]
    data = Trajectories.load(tmp_path / "out", {"task": "reach-v2"})
    np.testing.assert_array_equal(data.observation, np.concatenate([p["observations"] for p in parts[:2]]))


def test_l2m_files_that_lie_are_refused(tmp_path):
    columns, ends = flat([3])
    good = {**columns, "dones": ends}
    (tmp_path / "in").mkdir()

    def save(name, **changes):
        np.savez_compressed(tmp_path / "in" / f"{name}.npz", **{**good, **changes})

    save("pickle", rewards=np.array([{}, 1, 2], dtype=object))
    save("columns", observations=np.asfortranarray(columns["observations"]))
    save("many", observations=np.zeros((3, 2, 3)))
    save("lengths", rewards=np.zeros(5))
    np.savez_compressed(tmp_path / "in" / "none.npz", observations=columns["observations"])
    (tmp_path / "in" / "cut.npz").write_bytes((tmp_path / "in" / "many.npz").read_bytes()[:-40])
    (tmp_path / "in" / "other.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no episode was read"):
        run(tmp_path / "in", tmp_path / "out", format="l2m")
    assert rejections(tmp_path / "out") == {
        "pickle.npz": "dtype", "columns.npz": "dtype", "many.npz": "shape", "lengths.npz": "lengths",
        "none.npz": "missing", "cut.npz": "unreadable", "other.npz": "unreadable",
    }  # fmt: skip
