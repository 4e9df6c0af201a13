"""OGBench's npz files in the forms they come in, written here, read as episodes."""

import numpy as np
import pytest

from pipelines.formats import episodes
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import run
from tests.pipelines.running import rejections


def distributed(lengths, seed=0):
    """{name: [n ...]} of trajectories of so many steps, as the package's data sets are: a row more than steps each."""
    generator, n = np.random.default_rng(seed), sum(lengths) + len(lengths)
    terminals = np.zeros(n, bool)
    terminals[np.cumsum(np.add(lengths, 1)) - 1] = True
    return {
        "observations": generator.normal(size=(n, 3)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (n, 2)).astype(np.float32), "terminals": terminals,
        "qpos": generator.normal(size=(n, 7)), "qvel": generator.normal(size=(n, 6)),
    }  # fmt: skip


def save(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def same(data, columns):
    last = columns["terminals"]
    np.testing.assert_array_equal(data.observation, columns["observations"][~last])
    np.testing.assert_allclose(data.action, columns["actions"][~last], atol=1e-6)
    np.testing.assert_array_equal(data.final_observation, columns["observations"][last])
    assert not data.reward.any() and not data.terminated.any()
    assert np.flatnonzero(data.truncated).tolist() == (data.offsets[1:] - 1).tolist()


def test_the_last_row_is_the_final_state_and_no_step(tmp_path, monkeypatch):
    columns = distributed([4, 1, 6])
    path = save(tmp_path / "cube-single-play-v0.npz", columns)
    monkeypatch.setattr(episodes, "BLOCK_BYTES", 200)  # trajectories reach over several blocks
    summary = run(path, tmp_path / "out", format="ogbench", fps=20)
    assert (summary["episodes"], summary["steps"], summary["rejected"]) == (3, 11, 0)
    data = Trajectories.load(tmp_path / "out")
    same(data, columns)
    assert data.lengths.tolist() == [4, 1, 6] and data.fps == 20
    assert data.tags[0] == {"task": "cube-single-play-v0", "rewards": "none"}


@pytest.mark.parametrize("compact", [True, False])
def test_what_the_package_s_loader_returns_gives_the_same_episodes(compact, tmp_path):
    package = pytest.importorskip("ogbench.utils")
    columns = distributed([4, 1, 6])
    loaded = package.load_dataset(save(tmp_path / "a.npz", columns), compact_dataset=compact)
    assert ("valids" in loaded, "next_observations" in loaded) == (compact, not compact)
    run(save(tmp_path / "b.npz", loaded), tmp_path / "out", format="ogbench")
    data = Trajectories.load(tmp_path / "out")
    same(data, columns)
    assert data.lengths.tolist() == [4, 1, 6]


def test_a_file_that_stops_inside_a_trajectory_and_one_of_a_single_state(tmp_path):
    columns = distributed([3, 0, 2])
    columns["terminals"][-1] = False
    summary = run(save(tmp_path / "a.npz", columns), tmp_path / "out", format="ogbench")
    assert (summary["episodes"], summary["steps"], summary["rejected/episode"]) == (2, 5, 1)
    data = Trajectories.load(tmp_path / "out")
    np.testing.assert_array_equal(data.final_observation, columns["observations"][[3, 7]])


def test_files_that_hold_no_vectors_are_refused(tmp_path):
    good, folder = distributed([3]), tmp_path / "in"
    save(folder / "pixels.npz", {**good, "observations": np.zeros((4, 8, 8, 3), np.uint8)})
    save(folder / "none.npz", {"observations": good["observations"]})
    save(folder / "lengths.npz", {**good, "actions": good["actions"][1:]})
    save(folder / "pickle.npz", {**good, "terminals": np.array([None] * 4)})
    (folder / "cut.npz").write_bytes((folder / "pixels.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match="no episode was read"):
        run(folder, tmp_path / "out", format="ogbench")
    assert rejections(tmp_path / "out") == {
        "pixels.npz": "shape", "none.npz": "missing", "lengths.npz": "lengths", "pickle.npz": "dtype",
        "cut.npz": "unreadable",
    }  # fmt: skip
