"""ExORL's npz files, written here as its replay buffers leave them, read as episodes."""

import numpy as np
import pytest

from pipelines.formats import exorl
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import run
from tests.pipelines.running import rejections


def rows(steps, seed=0, terminal=False):
    """An episode of dm_control with 3 numbers of state and 2 of action: steps + 1 rows, the first the reset."""
    generator, n = np.random.default_rng(seed), steps + 1
    discount = np.ones((n, 1), np.float32)
    discount[-1] = not terminal
    action = generator.uniform(-1, 1, (n, 2)).astype(np.float32)
    action[0] = 77.0  # a dummy, far outside the bounds
    return {
        "observation": generator.normal(size=(n, 3)).astype(np.float32), "action": action, "discount": discount,
        "reward": generator.normal(size=(n, 1)).astype(np.float32), "physics": generator.normal(size=(n, 5)),
    }  # fmt: skip


def save(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def test_rows_become_steps_one_to_the_left(tmp_path):
    buffer = tmp_path / "walker" / "rnd" / "buffer"
    episodes = [rows(4), rows(3, seed=1, terminal=True), rows(1, seed=2)]
    for i, episode in enumerate(episodes):
        save(buffer / f"episode_{i:06d}_{len(episode['action']) - 1}.npz", episode)
    summary = run(tmp_path / "walker", tmp_path / "out", format="exorl", fps=40, tags={"domain": "walker"})
    assert (summary["units"], summary["episodes"], summary["steps"], summary["rejected"]) == (1, 3, 8, 0)
    assert not any(name.startswith("notes/") for name in summary)  # the dummy action was never looked at
    data = Trajectories.load(tmp_path / "out")
    assert data.lengths.tolist() == [4, 3, 1] and data.fps == 40
    assert data.tags[0] == {"task": "rnd", "domain": "walker"}
    np.testing.assert_array_equal(data.observation, np.concatenate([e["observation"][:-1] for e in episodes]))
    np.testing.assert_array_equal(data.final_observation, [e["observation"][-1] for e in episodes])
    np.testing.assert_allclose(data.action, np.concatenate([e["action"][1:] for e in episodes]), atol=1e-6)
    np.testing.assert_array_equal(data.reward, np.concatenate([e["reward"][1:, 0] for e in episodes]))
    assert np.flatnonzero(data.terminated).tolist() == [6] and np.flatnonzero(data.truncated).tolist() == [3, 7]


def test_folders_are_read_in_units_and_a_bigger_folder_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(exorl, "FILES", 2)
    for i in range(3):
        save(tmp_path / "in" / f"{i}.npz", rows(2, seed=i))
    assert run(tmp_path / "in", tmp_path / "out", format="exorl")["units"] == 2
    save(tmp_path / "in" / "3.npz", rows(5))
    summary = run(tmp_path / "in", tmp_path / "out", format="exorl")
    assert (summary["units"], summary["skipped_units"], summary["episodes"]) == (2, 1, 4)
    data = Trajectories.load(tmp_path / "out")
    assert sorted(data.lengths.tolist()) == [2, 2, 2, 5] and data.tags[0] == {"task": "in"}
    alone = run(tmp_path / "in" / "3.npz", tmp_path / "alone", format="exorl", task_name="walk")
    assert alone["steps"] == 5 and Trajectories.load(tmp_path / "alone").tags[0] == {"task": "walk"}


def test_what_is_damaged_is_set_aside_and_the_rest_is_used(tmp_path):
    good, folder = rows(3), tmp_path / "in"
    save(folder / "good.npz", good)
    save(folder / "reset.npz", rows(0))
    save(folder / "lengths.npz", {**good, "reward": good["reward"][1:]})
    save(folder / "pickle.npz", {**good, "action": np.array([{}] * 4, dtype=object)})
    save(folder / "pixels.npz", {**good, "observation": np.zeros((4, 9, 8, 8), np.uint8)})
    save(folder / "bounds.npz", {**good, "action": good["action"] * 3})
    save(folder / "nan.npz", {**good, "observation": np.full((4, 3), np.nan)})
    save(folder / "middle.npz", {**good, "discount": np.float32([1, 1, 0, 1])})
    save(folder / "missing.npz", {name: value for name, value in good.items() if name != "discount"})
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:-30])
    summary = run(folder, tmp_path / "out", format="exorl")
    assert (summary["episodes"], summary["rejected"]) == (1, 9)
    assert rejections(tmp_path / "out") == {
        "reset.npz": "lengths", "lengths.npz": "lengths", "pickle.npz": "dtype", "pixels.npz": "shape",
        "bounds.npz": "bounds", "nan.npz": "episode", "middle.npz": "episode", "missing.npz": "missing",
        "cut.npz": "unreadable",
    }  # fmt: skip


def test_a_header_that_promises_more_than_an_episode_is_refused_before_memory_is(tmp_path, monkeypatch):
    save(tmp_path / "in" / "big.npz", rows(50))
    monkeypatch.setattr("pipelines.formats.npz.MAX_ARRAY_BYTES", 100)
    with pytest.raises(DataError, match="no episode was read"):
        run(tmp_path / "in", tmp_path / "out", format="exorl")
    assert rejections(tmp_path / "out") == {"big.npz": "too_large"}
