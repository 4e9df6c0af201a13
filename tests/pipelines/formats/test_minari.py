"""Data sets of Minari: read as episodes, written from ours, and never run."""

import json

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import STEPWISE, Spaces, Trajectories, write_episode
from tests.pipelines.exchanging import run


def write_shards(root, spaces, n=5):
    generator = np.random.default_rng(0)
    with ShardWriter(root) as writer:
        for i in range(n):
            t = 3 + i
            continuous = spaces.n_actions is None
            arrays = {
                "observation": generator.normal(size=(t, spaces.state_dim)), "reward": generator.normal(size=t),
                "action": generator.uniform(-0.5, 1.5, (t, spaces.action_dim)) if continuous
                else generator.integers(0, spaces.n_actions, t),
                "terminated": (np.arange(t) == t - 1) & (i % 2 == 0),
                "truncated": (np.arange(t) == t - 1) & (i % 2 == 1),
                "final_observation": generator.normal(size=spaces.state_dim),
            }  # fmt: skip
            arrays["optimal_action"] = arrays["action"][::-1]
            write_episode(writer, f"e{i}", arrays, spaces, 12.5, "here", {"task": "reach", "success": i > 2, "n": i})
    return root


@pytest.mark.parametrize(
    "spaces", [Spaces(4, 2, low=(-0.5, -0.5), high=(1.5, 1.5)), Spaces(4, 1, n_actions=3)], ids=["box", "discrete"]
)
def test_ours_to_minari_and_back_is_equal(tmp_path, spaces, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    ours = Trajectories.load(write_shards(tmp_path / "shards", spaces))
    summary = run(tmp_path / "shards", "reach/scripted-v0", to="minari", run={"dir": str(tmp_path / "run")})
    assert (summary["episodes"], summary["steps"]) == (5, 25)
    theirs = minari.load_dataset("reach/scripted-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (5, 25)
    for e, episode in enumerate(theirs.iterate_episodes()):
        rows = slice(*ours.offsets[e : e + 2])
        np.testing.assert_array_equal(episode.observations[:-1], ours.observation[rows])
        np.testing.assert_array_equal(episode.observations[-1], ours.final_observation[e])
        np.testing.assert_allclose(ours.spaces.to_unit(episode.actions), ours.action[rows])
        np.testing.assert_array_equal(episode.terminations, ours.terminated[rows])
        assert all(theirs.action_space.contains(action) for action in episode.actions)
    run("reach/scripted-v0", tmp_path / "back", format="minari")
    back = Trajectories.load(tmp_path / "back")
    for name in (*STEPWISE, "optimal_action", "final_observation", "offsets"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ours, name), err_msg=name)
    assert (back.tags, back.fps, back.spaces) == (ours.tags, ours.fps, ours.spaces)
    with pytest.raises(DataError, match="choose another version"):
        run(tmp_path / "shards", "reach/scripted-v0", to="minari", run={"dir": str(tmp_path / "run")})


@pytest.fixture
def maze(tmp_path):
    """A data set with a Dict observation, seeds and success, as Minari writes it."""
    pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    vector = lambda size: spaces.Box(-np.inf, np.inf, (size,), np.float64)  # noqa: E731
    observation = spaces.Dict({
        "achieved_goal": vector(2), "observation": vector(4), "picture": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    })  # fmt: skip
    path = tmp_path / "maze-v0" / "data"
    path.mkdir(parents=True)
    storage = MinariStorage.new(path, observation, spaces.Box(-1, 1, (2,)), data_format="hdf5")
    generator = np.random.default_rng(0)
    states = {"achieved_goal": generator.normal(size=(6, 2)), "observation": generator.normal(size=(6, 4))}
    storage.update_episodes([
        EpisodeBuffer(
            seed=7 + i, observations={**states, "picture": np.zeros((6, 8, 8, 3), np.uint8)}, rewards=np.ones(5),
            actions=generator.uniform(-1, 1, (5, 2)), terminations=np.zeros(5, bool), truncations=np.arange(5) == 4,
            infos={  # a row for the reset too, so that what is called as ours is not
                "success": np.arange(6) > 3 + 3 * i, "optimal_action": np.zeros((6, 2)),
                "next_observation": np.zeros((6, 6)),
            },
        )
        for i in range(2)
    ])  # fmt: skip
    storage.update_metadata({"dataset_id": "maze-v0", "minari_version": "0.5.4"})
    return path.parent, states


def test_minari_dict_observations_are_joined_from_the_parts_asked_for(maze, tmp_path):
    root, states = maze
    run(root, tmp_path / "out", format="minari", observation=["observation", "achieved_goal"], fps=50)
    data = Trajectories.load(tmp_path / "out")
    joined = np.concatenate([states["observation"], states["achieved_goal"]], 1).astype(np.float32)
    np.testing.assert_array_equal(data.observation[:5], joined[:5])
    np.testing.assert_array_equal(data.final_observation[0], joined[5])
    assert data.tags == (
        {"task": "maze-v0", "seed": 7, "success": True},
        {"task": "maze-v0", "seed": 8, "success": False},
    )
    assert data.fps == 50 and data.optimal_action is None and data.next_observation is None
    with pytest.raises(DataError, match="no episode was read"):
        run(root, tmp_path / "all", format="minari")
    assert "observation=[...]" in (tmp_path / "all" / "rejected.jsonl").read_text()


def test_minari_metadata_are_never_run(maze, tmp_path):
    root, _ = maze
    path = root / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["observation_space"]  # Minari itself would now build the environment that the file names
    metadata["env_spec"] = json.dumps({"id": "x", "entry_point": "os:system", "kwargs": {"command": "touch pwned"}})
    path.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match="rejected space 1"):
        run(root, tmp_path / "out", format="minari")
