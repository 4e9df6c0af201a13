import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, Trajectories, write_episode
from pipelines.trajectory_windows import EpisodeWindows

SPACES = Spaces(3, 2, low=(-1.0, 0.0), high=(1.0, 4.0))


def episode(n, seed=0, spaces=SPACES):
    generator = np.random.default_rng(seed)
    action = generator.uniform(spaces.low, spaces.high, (n, 2)) if spaces.low else generator.integers(5, size=n)
    return {
        "observation": generator.normal(size=(n, 3)), "action": action, "reward": generator.normal(size=n),
        "terminated": np.arange(n) == n - 1, "truncated": np.zeros(n, bool), "final_observation": np.ones(3),
    }  # fmt: skip


def write(folder, episodes, spaces=SPACES, fps=10):
    with ShardWriter(folder) as writer:
        for i, (arrays, tags) in enumerate(episodes):
            write_episode(writer, f"e{i:03d}", arrays, spaces, fps, "test", tags)
    return folder


def test_episodes_come_back_flat_with_actions_in_the_unit_box(tmp_path):
    parts = [episode(4, 0), episode(1, 1), episode(6, 2)]
    data = Trajectories.load(write(tmp_path, [(part, {"task": "a"}) for part in parts]))
    assert data.lengths.tolist() == [4, 1, 6]
    np.testing.assert_array_equal(data.observation, np.concatenate([p["observation"] for p in parts]).astype("f4"))
    raw = np.concatenate([p["action"] for p in parts])
    np.testing.assert_allclose(data.action, np.stack([raw[:, 0], raw[:, 1] / 2 - 1], 1), atol=1e-6)
    np.testing.assert_allclose(data.spaces.from_unit(data.action), raw, atol=1e-6)
    np.testing.assert_allclose(data.returns, [p["reward"].astype("f4").sum() for p in parts], rtol=1e-5)


def test_returns_to_go_by_hand(tmp_path):
    first, second = episode(3), episode(2)
    first["reward"], second["reward"] = np.array([1.0, 2.0, 4.0]), np.array([8.0, 16.0])
    data = Trajectories.load(write(tmp_path, [(first, None), (second, None)]))
    np.testing.assert_allclose(data.returns_to_go(), [7, 6, 4, 24, 16])
    np.testing.assert_allclose(data.returns_to_go(0.5), [3, 4, 4, 16, 16])
    chosen = data.select([1, 0])
    np.testing.assert_allclose(chosen.returns_to_go(), [24, 16, 7, 6, 4])
    assert chosen.offsets.tolist() == [0, 2, 5]


def test_tags_choose_episodes(tmp_path):
    write(tmp_path, [(episode(2), {"task": "a"}), (episode(3), {"task": "b"})])
    assert Trajectories.load(tmp_path, {"task": "b"}).lengths.tolist() == [3]
    with pytest.raises(DataError, match="no episodes with"):
        Trajectories.load(tmp_path, {"task": "c"})


def test_discrete_actions(tmp_path):
    spaces = Spaces(3, 1, n_actions=5)
    parts = [episode(4, 0, spaces)]
    data = Trajectories.load(write(tmp_path, [(parts[0], None)], spaces))
    np.testing.assert_array_equal(data.action, parts[0]["action"])
    for name in ("action", "optimal_action"):
        for wrong in (5, -1):
            with pytest.raises(DataError, match=f"{name} {wrong}: expected 0 to 4"):
                write(tmp_path / "wrong", [({**parts[0], name: np.array([0, 1, wrong, 2])}, None)], spaces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.zeros(3)}, r"expected observation of shape \(3, 3\)"),
        ({"action": np.zeros((4, 3))}, r"expected action of shape \(4, 2\)"),
        ({"reward": np.array([0, np.nan, 0, 0])}, "NaN"),
        ({"final_observation": np.ones(2)}, "final_observation"),
    ],
)
def test_bad_episodes_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, [({**episode(4), **change}, None)])


def test_an_empty_episode_and_mixed_spaces_are_refused(tmp_path):
    with pytest.raises(DataError, match="no steps"):
        write(tmp_path / "empty", [(episode(0), None)])
    with ShardWriter(tmp_path / "mixed") as writer:
        write_episode(writer, "a", episode(2), SPACES, 10, "test")
        write_episode(writer, "b", episode(2), SPACES, 20, "test")
    with pytest.raises(DataError, match="mixes spaces or rates"):
        Trajectories.load(tmp_path / "mixed")


def test_optional_arrays_are_kept_where_every_episode_has_them(tmp_path):
    parts = [episode(4, 0), episode(3, 1)]
    parts[0] |= {"optimal_action": np.tile([[1.0, 4.0]], (4, 1)), "next_observation": np.full((4, 3), 7.0)}
    mixed = Trajectories.load(write(tmp_path / "mixed", [(part, {"n": i}) for i, part in enumerate(parts)]))
    assert mixed.optimal_action is None
    np.testing.assert_array_equal(mixed.following(np.array([2, 3, 4, 6])),  # in the second, what was observed next
                                  [[7] * 3, [7] * 3, mixed.observation[5], mixed.final_observation[1]])  # fmt: skip
    data = Trajectories.load(tmp_path / "mixed", {"n": 0}).select([0, 0])
    np.testing.assert_array_equal(data.optimal_action, np.ones((8, 2)))  # in the unit box, as actions are
    assert (data.following(np.arange(8)) == 7).all() and data.optimal_action.dtype == np.float32
    windows = EpisodeWindows(data, 3)
    assert (windows[1]["next_observation"] == 7).all()
    parts[0]["optimal_action"] = np.zeros(4)
    with pytest.raises(DataError, match=r"optimal_action of shape \(4, 2\)"):
        write(tmp_path / "bad", [(parts[0], None)])


def test_optional_actions_are_choices_where_actions_are(tmp_path):
    spaces = Spaces(3, 1, n_actions=5)
    part = {**episode(4, 0, spaces), "optimal_action": np.array([4, 3, 2, 1])}
    data = Trajectories.load(write(tmp_path, [(part, None)], spaces))
    assert data.optimal_action.tolist() == [4, 3, 2, 1] and data.optimal_action.dtype == np.int64
