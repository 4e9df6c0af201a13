"""Episodes from files of other tools, written here in their layouts, and back."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines import exchange
from pipelines.command import CONFIGS, execute
from pipelines.formats.episodes import FormatError, Options, cut
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED, DataError
from pipelines.shards import Shards, ShardWriter
from pipelines.trajectories import STEPWISE, Spaces, Trajectories, write_episode
from tests.pipelines.running import rejections


def run(source, out, **changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("exchange")
    base = {"from": str(source), "out": str(out), "workers": 0, "run": {"dir": f"{out}-run"}}
    cfg.merge_with(OmegaConf.create({**base, **changes}))
    return execute(exchange.main.function, cfg)


def flat(lengths, s=3, a=2, seed=0):
    """One recording of episodes: {name: [n ...]} as D4RL and L2M keep them, and where episodes end."""
    n, generator = sum(lengths), np.random.default_rng(seed)
    states = [generator.normal(size=(length + 1, s)).astype(np.float32) for length in lengths]
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    return {
        "observations": np.concatenate([x[:-1] for x in states]), "actions": generator.uniform(-1, 1, (n, a)),
        "next_observations": np.concatenate([x[1:] for x in states]), "rewards": generator.normal(size=n),
    }, ends  # fmt: skip


def hdf5(path, columns):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path


def same(data, columns):
    np.testing.assert_array_equal(data.observation, columns["observations"])
    np.testing.assert_allclose(data.action, columns["actions"], atol=1e-6)
    np.testing.assert_array_equal(data.reward, columns["rewards"].astype(np.float32))
    np.testing.assert_array_equal(data.final_observation, columns["next_observations"][data.offsets[1:] - 1])


# D4RL


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("marked", [True, False])
def test_boundaries_do_not_depend_on_the_blocks(size, marked):
    columns, ends = flat([4, 1, 3, 6])
    rows = {
        OBSERVATION: columns["observations"], NEXT_OBSERVATION: columns["next_observations"],
        ACTION: columns["actions"], REWARD: columns["rewards"], TERMINATED: np.zeros(14, bool),
    }  # fmt: skip
    rows |= {TRUNCATED: ends} if marked else {}
    blocks = [{name: value[i : i + size] for name, value in rows.items()} for i in range(0, 14, size)]
    parts = list(cut(blocks))
    assert [len(part[REWARD]) for part in parts] == [4, 1, 3, 6]
    np.testing.assert_array_equal(np.concatenate([part[ACTION] for part in parts]), columns["actions"])


def test_running_again_continues_and_only_changed_files_are_read(tmp_path):
    for i in range(3):
        columns, ends = flat([3, 2], seed=i)
        hdf5(tmp_path / "in" / f"{i}.hdf5", {**columns, "terminals": ends})
    (tmp_path / "in" / "broken.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    first = run(tmp_path / "in", tmp_path / "out", format="d4rl", limit=2)
    assert (first["episodes"], first["skipped_units"]) == (4, 0)
    before = Shards(tmp_path / "out").fingerprint()
    again = run(tmp_path / "in", tmp_path / "out", format="d4rl", limit=2)
    assert again["skipped_units"] == 2 and Shards(tmp_path / "out").fingerprint() == before
    whole = run(tmp_path / "in", tmp_path / "out", format="d4rl")
    assert (whole["episodes"], whole["rejected"], whole["skipped_units"]) == (6, 1, 2)
    assert rejections(tmp_path / "out") == {"broken.hdf5": "unreadable"}
    with pytest.raises(DataError, match=r"other settings .*options\.fps: None -> 5"):
        run(tmp_path / "in", tmp_path / "out", format="d4rl", fps=5)
    with pytest.raises(DataError, match="strict=true"):
        run(tmp_path / "in", tmp_path / "out", format="d4rl", strict=True)


def test_a_bad_episode_is_left_out_alone(tmp_path):
    columns, ends = flat([3, 2, 4])
    columns["rewards"][4] = np.nan
    columns["actions"][7] = 3.0
    path = hdf5(tmp_path / "a.hdf5", {**columns, "terminals": ends})
    summary = run(path, tmp_path / "out", format="d4rl")
    assert (summary["episodes"], summary["steps"]) == (1, 3)
    assert (summary["rejected/episode"], summary["rejected/bounds"]) == (1, 1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert "NaN" in lines[0]["detail"] and "set low= and high=" in lines[1]["detail"]
    wide = run(path, tmp_path / "wide", format="d4rl", low=-3, high=[3, 6])
    assert wide["episodes"] == 2
    assert Trajectories.load(tmp_path / "wide").spaces.high == (3.0, 6.0)


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


# L2M


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


# Minari


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
    for name in (*STEPWISE, "final_observation", "offsets"):
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
            infos={"success": np.arange(6) > 3 + 3 * i},
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
    assert data.fps == 50
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


# LeRobot


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


# what a user can get wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "rlds"}, "expected one of minari, lerobot, d4rl, l2m"),
        ({"format": "d4rl", "low": -1}, "set both"),
        ({"format": "d4rl", "from": "nowhere"}, "does not exist"),
        ({"format": "d4rl"}, "no d4rl files"),
        ({"format": "minari", "from": "hopper/none-v0"}, "neither a path nor a data set"),
        ({"to": "lerobot"}, "expected minari"),
        ({"to": "minari", "out": "no version"}, "expected the name of a Minari data set"),
        ({"from": None}, "set from="),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    pytest.importorskip("h5py")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=message):
        run(**{"source": tmp_path / "in", "out": tmp_path / "out", "run": {"dir": str(tmp_path / "run")}, **changes})


def test_bounds():
    assert Options().bounds(2) == ((-1.0, -1.0), (1.0, 1.0))
    assert Options(low=0, high=(1, 2)).bounds(2, (-5, 5)) == ((0.0, 0.0), (1.0, 2.0))
    for options, found in (
        (Options(), (-np.inf, np.inf)),
        (Options(low=1, high=0), None),
        (Options(low=(0, 0, 0), high=1), None),
    ):
        with pytest.raises(FormatError, match="bounds"):
            options.bounds(2, found)
