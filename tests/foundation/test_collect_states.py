"""Collecting episodes of vectors: equal bytes with any number of workers, nothing done twice, what is in the shards."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from foundation import collect_states, rollout
from foundation.collect import main, state_tasks
from foundation.envs.reacher2d import expert
from pipelines.command import CONFIGS
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories

pytest.importorskip("mujoco")
MIX = "states.mix={expert:0.25,random:0.75}"


def config(folder, *overrides):
    given = ["task=reacher2d", "workers=0", "states.episodes=8", "states.chunk=3", f"run.dir={folder}", *overrides]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("collect", given)


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "plays").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    return folder, main.function(config(folder, MIX))


def test_shards_hold_the_episodes_that_the_summary_counts(collected):
    folder, summary = collected
    data = Trajectories.load(folder / "plays")
    assert len(data) == summary["episodes"] == summary["played"] == 8
    assert data.lengths.tolist() == [100] * 8 and summary["frames"] == 800
    assert [tags["behaviour"] for tags in data.tags].count("scripted") == 2
    best = Trajectories.load(folder / "plays", {"behaviour": "scripted"}).returns
    assert summary["reacher2d/scripted/return_mean"] == pytest.approx(best.mean())
    assert summary["reacher2d/scripted/return_max"] == best.max() > summary["reacher2d/random/return_mean"] + 20
    assert data.truncated.sum() == 8 and not data.terminated.any()
    assert len({tags["seed"] for tags in data.tags}) == 8
    assert collect_states.SEEDS == rollout.SEEDS > max(tags["seed"] for tags in data.tags)
    assert set(data.tags[0]) == {"task", "seed", "behaviour", "noise", "scale"}
    assert data.fps == pytest.approx(1 / 0.15)
    wanted = np.array([expert(observation) for observation in data.observation])
    np.testing.assert_allclose(data.optimal_action, wanted, atol=1e-6)  # to the unit box and back
    assert (data.action == data.optimal_action).all(1).mean() == pytest.approx(0.25, abs=0.01)  # scripted episodes


def test_the_recorded_episode_is_the_environments(collected):
    folder, _ = collected
    data = Trajectories.load(folder / "plays", {"behaviour": "random"}).select([1])
    env = collect_states.environment(json.dumps(state_tasks(config(folder))[0]))
    observation, _ = env.reset(seed=data.tags[0]["seed"])
    for step in range(100):
        np.testing.assert_allclose(observation, data.observation[step], atol=1e-5)  # actions are scaled on loading
        observation, reward, *_ = env.step(data.action[step])
        assert reward == data.reward[step]
    np.testing.assert_allclose(observation, data.final_observation[0], atol=1e-5)


def test_a_killed_run_continues_to_the_same_bytes(collected):
    folder, summary = collected
    before = files(folder)
    (folder / "plays" / "units" / "reacher2d-000003.json").unlink()  # killed before the record
    next((folder / "plays").glob("reacher2d-000006-*.tar")).unlink()  # a shard that was lost
    times = {p.name: p.stat().st_mtime_ns for p in (folder / "plays").glob("reacher2d-000000*")}
    again = main.function(config(folder, MIX))
    assert files(folder) == before
    assert times == {p.name: p.stat().st_mtime_ns for p in (folder / "plays").glob("reacher2d-000000*")}
    assert again.pop("frames_per_second") > 0
    assert again == {name: value for name, value in summary.items() if name != "frames_per_second"}
    assert "frames_per_second" not in main.function(config(folder, MIX))  # nothing left to do


def test_workers_do_not_matter(collected, tmp_path):
    main.function(config(tmp_path, MIX, "workers=2"))
    assert files(tmp_path) == files(collected[0])


def test_other_settings_do_not_mix_into_a_folder(collected):
    with pytest.raises(DataError, match=r"episodes: 8 -> 9"):
        main.function(config(collected[0], MIX, "states.episodes=9"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["states.label=raw"], "clean or executed"),
        (["states.keep=best"], "all or successes"),
        (["states.episodes=0"], "at least 1"),
        (["states.stop_after=-1"], "stop_after"),
        (["states.behaviour=player"], "behaviours among"),
        (["states.keep=successes"], "what success is"),
        (["states.stop_after=0"], "what success is"),
        (["also=[doom_my_way_home]"], "mix tasks"),
        (["task=gym_mujoco", "task.name=CartPole-v1"], "no scripted policy"),
        (["task=gym_mujoco", "task.name=[Hoper-v5]", "states.behaviour=random"], "Hopper"),
        (["states.behaviour=policy", "states.policy=nowhere"], "nowhere"),
    ],
)
def test_bad_settings_say_what_to_do(tmp_path, overrides, message):
    with pytest.raises(DataError, match=message):
        main.function(config(tmp_path, *overrides))
    assert not list(tmp_path.rglob("dataset.json"))  # other settings may have the folder


def test_choices_and_several_tasks_share_a_folder(tmp_path):
    names = "task.name=[CartPole-v1,MountainCar-v0]"
    overrides = ("task=gym_mujoco", names, "states.behaviour=random", "states.episodes=2", "task.env.episode_steps=9")
    summary = main.function(config(tmp_path, *overrides))
    assert summary["episodes"] == 4
    data = Trajectories.load(tmp_path / "plays", {"task": "CartPole-v1"})
    assert data.spaces.n_actions == 2 and data.action.dtype == np.int64
    assert data.lengths.tolist() == [9, 9]


def test_metaworld_keeps_what_succeeded(tmp_path):
    pytest.importorskip("metaworld")
    values = ("task.name=[reach]", "states.episodes=2", "states.keep=successes", "states.mix={expert:0.5,random:0.5}")
    summary = main.function(config(tmp_path, "task=metaworld", *values, "states.stop_after=3"))
    assert (summary["played"], summary["episodes"]) == (2, 1)
    assert summary["reach-v3/success"] == summary["success"] == 0.5
    data = Trajectories.load(tmp_path / "plays", {"task": "reach-v3", "success": True})
    assert data.lengths[0] == summary["frames"] < 150
    assert data.truncated[-1]
    alone = (values[0], "states.episodes=1", "states.keep=successes", "states.behaviour=random")
    with pytest.raises(DataError, match="none of 1 episodes"):
        main.function(config(tmp_path / "b", "task=metaworld", *alone))
