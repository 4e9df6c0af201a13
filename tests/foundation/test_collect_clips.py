"""Clips of mazes: what is in them with and without actions, that readers and commands take them, and equal bytes."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from foundation.collect import main
from foundation.collect_states import environment
from foundation.envs.maze_grid import MazeGrid
from pipelines import peek, schema
from pipelines.command import CONFIGS
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.states import open_states
from pipelines.stream import load_tracks
from pipelines.video import open_clip

SMALL = ("task.env.size=[32,32]", "task.env.episode_frames=60", "clips.episodes=5", "clips.chunk=2")


def collected(folder, *overrides):
    given = ["task=maze_video", "workers=0", f"out={folder / 'plays'}", f"run.dir={folder}", *SMALL, *overrides]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return main.function(compose("collect", given)), Shards(folder / "plays")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    few = ("task.env.maps=2", "task.env.goals=[0,1]", "task.env.episode_frames=200")
    return collected(tmp_path_factory.mktemp("trajectories"), "clips.actions=true", *few)


def test_clips_are_video_alone(video):
    summary, shards = video
    assert (summary["episodes"], summary["frames"]) == (5, 5 * 61)
    assert len({entry.meta["tags"]["map"] for entry in shards.entries}) == 5
    for entry in shards.entries:
        meta, arrays = shards.meta(entry.key), shards.arrays(entry.key)
        assert (meta.provenance, meta.actions, meta.frames, meta.fps) == (schema.NONE, None, (0, 61), 10)
        assert set(arrays) == {schema.PTS, schema.POSITION}
        frames = open_clip(shards.read(entry.key, schema.VIDEO), entry.meta).frames(np.arange(61))
        assert frames.shape == (61, 32, 32, 3)
        grid = MazeGrid.from_rows(meta.tags["maze"])
        position = arrays[schema.POSITION]
        assert "goal" not in meta.tags
        assert (grid.between(position[:-1], position[1:]) <= 2).all()  # a corner at most


def test_clips_are_trajectories_of_states_each_of_its_own_video(video):
    states, _ = open_states(video[1].root, "data.train")
    assert np.diff(states.offsets).tolist() == [61] * 5 and len(set(states.groups)) == 5


def test_with_actions_they_are_episodes_to_a_goal(trajectories):
    _, shards = trajectories
    env = environment(json.dumps(settings_of(shards)))
    goals = {tuple(entry.meta["tags"]["goal"]) for entry in shards.entries}
    assert len(goals) <= 4
    for entry in shards.entries:
        arrays, tags = shards.arrays(entry.key), entry.meta["tags"]
        n = len(arrays[schema.REWARD])
        assert entry.meta["frames"] == [0, n] and tags["success"] and entry.meta["actions"]["name"] == "maze"
        assert arrays[schema.REWARD].tolist() == [-1.0] * (n - 2) + [0.0, 0.0]
        assert np.flatnonzero(arrays[schema.TERMINATED]).tolist() == [n - 2] and not arrays[schema.TRUNCATED].any()
        assert np.flatnonzero(arrays[schema.FIRST]).tolist() == [0]
        assert np.flatnonzero(~arrays[schema.COVERAGE]).tolist() == [n - 1]
        assert arrays[schema.POSITION][-1].astype(int).tolist() == tags["goal"]
        frames, shown = [env.reset(seed=tags["seed"])[0]], open_clip(shards.read(entry.key, schema.VIDEO), entry.meta)
        for keys in arrays[schema.KEYS][:-1]:
            frames.append(env.step({"keys": keys, "mouse": np.zeros(2, np.float32)})[0])
        assert np.abs(np.float32(frames) - shown.frames(np.arange(n))).mean() < 2.5  # of 255, all of it compression


def settings_of(shards):
    (env,) = json.loads((shards.root / "dataset.json").read_text())["settings"]["tasks"].values()
    return {"name": "maze_video", "env": env}


def test_readers_of_actions_leave_the_last_frame_out(trajectories):
    for track in load_tracks(trajectories[1]):
        assert track.loss.sum() == len(track) - 1 and not track.loss[-1] and track.first[0]


def test_peek_reads_both(video, trajectories, tmp_path, capsys):
    for name, (_, shards) in {"video": video, "trajectories": trajectories}.items():
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            given = [f"shards={shards.root}", f"sheet={tmp_path / name}.png", "verify=true", f"run.dir={tmp_path}"]
            found = peek.main.function(compose("peek", given))
        assert found["samples"] == found["sources"] == 5 and (tmp_path / f"{name}.png").stat().st_size > 1000
        assert ("keys/up" in found) == (name == "trajectories")
    assert "recorded (maze) 5x" in capsys.readouterr().out


def test_collecting_again_makes_the_same_bytes_and_only_what_is_missing(video, tmp_path):
    _, shards = video
    again, copy = collected(tmp_path)
    wanted = {p.name: p.read_bytes() for p in shards.root.rglob("*") if p.is_file()}
    assert {p.name: p.read_bytes() for p in copy.root.rglob("*") if p.is_file()} == wanted
    next(copy.root.glob("maze_video-000002-*.tar")).unlink()
    again, _ = collected(tmp_path)
    assert {p.name: p.read_bytes() for p in copy.root.rglob("*") if p.is_file()} == wanted
    assert again["frames"] == 5 * 61 and "frames_per_second" in again


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["clips.episodes=0"], "at least 1"), (["clips.fidgeting=1"], "share of frames"),
     (["clips.encoding.preset=fastest"], "ultrafast"), (["also=[doom_freeplay]"], "mix mazes"),
     (["also=[reacher2d]"], "mix tasks"), (["task.env.rooms=1"], "rooms=1")],
)  # fmt: skip
def test_bad_settings_say_what_was_expected(overrides, message, tmp_path):
    with pytest.raises(DataError, match=message):
        collected(tmp_path, *overrides)
