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


def test_antmaze_ends_by_time_alone_and_tells_its_goals(tmp_path):
    columns, ends = flat([5, 4, 3])
    del columns["next_observations"]
    reached = np.isin(np.arange(12), [2, 3, 7])  # the recording goes on
    goals = np.repeat([[20.0, 8.0], [0.5, 1.0], [3.0, 3.0]], [5, 4, 3], 0)
    goals[10] = 9  # not one goal all through
    file = {**columns, "rewards": reached.astype(float), "terminals": reached, "timeouts": ends, "infos/goal": goals}
    path = hdf5(tmp_path / "antmaze.hdf5", file)
    summary = run(path, tmp_path / "out", format="d4rl", ends="timeouts", last="drop")
    assert (summary["episodes"], summary["steps"], summary["notes/last_step_dropped"]) == (3, 9, 3)
    data = Trajectories.load(tmp_path / "out")
    kept = ~ends
    np.testing.assert_array_equal(data.observation, columns["observations"][kept])
    np.testing.assert_array_equal(data.final_observation, columns["observations"][ends])
    np.testing.assert_array_equal(data.reward, reached[kept])
    assert not data.terminated.any() and np.flatnonzero(data.truncated).tolist() == [3, 6, 8]
    assert [tags.get("goal") for tags in data.tags] == [[20.0, 8.0], [0.5, 1.0], None]
    split = run(path, tmp_path / "split", format="d4rl")  # as everywhere else: a terminal ends the episode
    assert (split["episodes"], split["steps"]) == (6, 12)


def test_kitchen_without_the_goals_in_its_observations(tmp_path):
    columns, ends = flat([4, 3], s=60, a=9)
    path = hdf5(tmp_path / "kitchen.hdf5", {**columns, "terminals": ends, "infos/goal": columns["rewards"]})
    run(path, tmp_path / "out", format="d4rl", observation=["observations[:30]"])
    data = Trajectories.load(tmp_path / "out")
    np.testing.assert_array_equal(data.observation, columns["observations"][:, :30])
    np.testing.assert_array_equal(data.final_observation, columns["next_observations"][[3, 6], :30])
    assert "goal" not in data.tags[0]  # one number a step is no goal
    both = ["observations[30:60]", "rewards"]
    run(path, tmp_path / "both", format="d4rl", observation=both)
    data = Trajectories.load(tmp_path / "both")
    assert data.spaces.state_dim == 31
    np.testing.assert_array_equal(data.observation[:, :30], columns["observations"][:, 30:])
    np.testing.assert_array_equal(data.final_observation, data.observation[[3, 6]])  # nobody knows what followed
    for part in ("observations[60:]", "observations[:61]", "observations[0]", "infos/nothing"):
        with pytest.raises(DataError, match=r"rejected (observation|missing) 1"):
            run(path, tmp_path / "none", format="d4rl", observation=[part])


def test_time_limits_alone_need_something_that_says_when(tmp_path):
    columns, ends = flat([3, 2])
    path = hdf5(tmp_path / "a.hdf5", {**columns, "terminals": np.isin(np.arange(5), [1])})
    run(path, tmp_path / "out", format="d4rl", ends="timeouts")
    assert Trajectories.load(tmp_path / "out").lengths.tolist() == [3, 2]  # by jumps
    del columns["next_observations"]
    with pytest.raises(DataError, match="rejected missing 1"):
        run(hdf5(tmp_path / "b.hdf5", {**columns, "terminals": ends}), tmp_path / "no", format="d4rl", ends="timeouts")
    for wrong in ({"ends": "jumps"}, {"last": "keep"}):
        with pytest.raises(DataError, match="expected null or timeouts, and repeat or drop"):
            run(path, tmp_path / "no", format="d4rl", **wrong)
