"""D4RL's HDF5 files, written here in their layouts, read as episodes."""

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import flat, hdf5, run, same
from tests.pipelines.running import rejections


def test_d4rl_keeps_terminals_and_timeouts_apart_and_every_last_step(tmp_path):
    columns, ends = flat([4, 3, 5, 2])
    terminals = ends & np.isin(np.arange(14), [3])
    timeouts = ends & ~terminals & (np.arange(14) != 13)  # the file stops inside the last episode
    path = hdf5(tmp_path / "hopper_medium-v2.hdf5", {**columns, "terminals": terminals, "timeouts": timeouts})
    summary = run(path, tmp_path / "out", format="d4rl", fps=125, tags={"behaviour": "medium"})
    assert (summary["episodes"], summary["steps"], summary["rejected"]) == (4, 14, 0)
    data = Trajectories.load(tmp_path / "out")
    same(data, columns)
    assert data.lengths.tolist() == [4, 3, 5, 2] and data.fps == 125
    assert np.flatnonzero(data.terminated).tolist() == [3]
    assert np.flatnonzero(data.truncated).tolist() == [6, 11, 13]
    assert data.tags[0] == {"task": "hopper_medium-v2", "behaviour": "medium"}


def test_old_d4rl_files_are_split_where_the_next_observation_is_another(tmp_path):
    columns, ends = flat([4, 3, 5])
    terminals = (ends & (np.arange(12) == 3)).astype(np.uint8)[:, None]
    run(hdf5(tmp_path / "a.hdf5", {**columns, "terminals": terminals}), tmp_path / "out", format="d4rl")
    data = Trajectories.load(tmp_path / "out")
    same(data, columns)
    assert data.lengths.tolist() == [4, 3, 5]
    assert np.flatnonzero(data.terminated).tolist() == [3] and np.flatnonzero(data.truncated).tolist() == [6, 11]


def test_without_next_observations_the_last_one_is_repeated_and_counted(tmp_path):
    columns, ends = flat([4, 3])
    del columns["next_observations"]
    path = hdf5(tmp_path / "a.hdf5", {**columns, "terminals": np.zeros(7, bool), "timeouts": ends})
    summary = run(path, tmp_path / "out", format="d4rl")
    assert summary["notes/final_observation_repeated"] == 2
    data = Trajectories.load(tmp_path / "out")
    np.testing.assert_array_equal(data.final_observation, columns["observations"][[3, 6]])


def test_hdf5_that_points_elsewhere_or_holds_no_numbers_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    columns, ends = flat([3])
    good = {**columns, "terminals": ends}
    hdf5(tmp_path / "other.h5x", good)
    hdf5(tmp_path / "in" / "missing.hdf5", {"observations": columns["observations"]})
    hdf5(tmp_path / "in" / "lengths.hdf5", {**good, "rewards": np.zeros(2)})
    hdf5(tmp_path / "in" / "images.hdf5", {**good, "observations": np.zeros((3, 4, 4, 3))})
    with h5py.File(tmp_path / "in" / "link.hdf5", "w") as file:
        file["observations"] = h5py.ExternalLink(str(tmp_path / "other.h5x"), "observations")
    with h5py.File(tmp_path / "in" / "outside.hdf5", "w") as file:
        (tmp_path / "secret").write_bytes(bytes(36))
        file.create_dataset("observations", (3, 3), "f4", external=[(str(tmp_path / "secret"), 0, 36)])
    with h5py.File(tmp_path / "in" / "huge.hdf5", "w") as file:
        for name, value in good.items():
            shape = (3, 1 << 40) if name == "observations" else value.shape
            file.create_dataset(name, shape, "f4", chunks=(1, 1024) if len(shape) == 2 and shape[1] > 4 else None)
    with h5py.File(tmp_path / "in" / "text.hdf5", "w") as file:
        file["observations"] = ["a", "b"]
    with pytest.raises(DataError, match="no episode was read"):
        run(tmp_path / "in", tmp_path / "out", format="d4rl")
    assert rejections(tmp_path / "out") == {
        "missing.hdf5": "missing", "lengths.hdf5": "lengths", "images.hdf5": "shape", "link.hdf5": "link",
        "outside.hdf5": "link", "huge.hdf5": "too_large", "text.hdf5": "dtype",
    }  # fmt: skip
