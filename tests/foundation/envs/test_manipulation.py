"""OGBench's cubes and scene: the package's own steps, seeds that govern everything, players, collected play, goals."""

import numpy as np
import pytest
from gymnasium.utils import seeding

pytest.importorskip("ogbench")

from foundation import collect, evaluate, pretrain
from foundation.envs import registry
from foundation.envs.manipulation import STEPS, Manipulation, world
from foundation.envs.manipulation_players import NEAR
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.foundation.running import run

CUBE = slice(19, 22)  # of an observation: its place
CUBE_SINGLE = ["task=ogbench_manipulation", "task.env.lengths={play: 90, noisy: 30}"]
EPISODES = {"play": 2, "noisy": 6}


@pytest.fixture(scope="module")
def cube():
    return Manipulation("cube-single")


@pytest.fixture(scope="module")
def scene():
    return Manipulation("scene-v0", terminate=False)


def metres(observation, cube=0):
    """Where a cube is in an observation [s] -> [3]"""
    return np.asarray(observation[19 + 9 * cube : 22 + 9 * cube]) / 10 + (0.425, 0, 0)


def episode(env, act, steps=None, **reset):
    """(observations [t+1 s], rewards [t], info of the last step) of `steps` steps or a whole episode"""
    observation, _ = env.reset(**reset)
    seen, rewards, info = [observation], [], {}
    while "episode" not in info and len(rewards) != steps:
        observation, reward, *_, info = env.step(act(observation))
        seen.append(observation)
        rewards.append(reward)
    return np.array(seen), np.array(rewards), info


def test_steps_are_the_package_s(cube):
    theirs, rng = world("cube-single"), np.random.default_rng(0)
    for task in (1, 4):
        ours, info = cube.reset(seed=7, options={"task_id": task})
        other, _ = theirs.reset(seed=int(seeding.np_random(7)[0].integers(2**31)), options={"task_id": task})
        np.testing.assert_allclose(ours, other, atol=1e-5)
        np.testing.assert_allclose(metres(info["goal"]), theirs.task_infos[task - 1]["goal_xyzs"][0], atol=0.002)
        for _ in range(20):
            action = rng.uniform(-1, 1, 5).astype(np.float32)
            one, other = cube.step(action), theirs.step(action)
            np.testing.assert_allclose(one[0], other[0], atol=2e-2)  # of numbers up to 6; contacts remember little
            assert one[4]["success"] == other[4]["success"]


@pytest.mark.parametrize("style", [None, "play", "noisy"])
def test_the_same_seed_is_the_same_episode_whatever_came_before(style, cube):
    runs = []
    for seed in (3, 4, 3):
        np.random.seed(len(runs))  # the package's, which must not matter
        before = np.random.get_state()[1].copy()
        player = cube.scripted() if style is None else cube.player(style, np.random.default_rng(seed))
        seen, *_ = episode(cube, player, 25, seed=seed, options={"style": style})
        runs.append((seen, cube.goal))
        np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal(runs[0][0], runs[2][0])
    assert not np.array_equal(runs[0][0][0], runs[1][0][0])
    assert (cube.goal is None) == (style is not None)
    if style is None:
        np.testing.assert_array_equal(runs[0][1], runs[2][1])


def test_the_player_brings_the_cube_to_every_goal(cube):
    for seed in range(5):  # of one task each
        seen, rewards, info = episode(cube, cube.scripted(), seed=seed)
        assert info["episode"]["success"] and len(rewards) < 100 and (rewards[:-1] == -1).all() and rewards[-1] == 0
        away = [np.linalg.norm(metres(observation) - metres(cube.goal)) for observation in seen[[0, -2, -1]]]
        assert away[0] > 0.1 and away[1] > NEAR - 0.002 and away[2] <= NEAR + 0.002


def test_the_player_opens_locks_and_puts_the_cube_into_the_drawer(scene):
    for task in (2, 4):
        _, rewards, _ = episode(scene, scene.scripted(), 200, seed=0, options={"task_id": task})
        assert rewards.max() == 0 and rewards[-1] == 0  # it stays so: `terminate` is off


def test_the_player_makes_room_for_cubes():
    double = Manipulation("cube-double", reward="sparse")
    for task in (4, 5):  # exchanged; one on the other
        seen, rewards, _ = episode(double, double.scripted(), seed=0, options={"task_id": task})
        assert rewards[-1] == 1 and rewards.sum() == 1 and len(seen) < 300
        for i in range(2):
            np.testing.assert_allclose(metres(seen[-1], i), metres(double.goal, i), atol=NEAR + 0.002)


def test_a_cube_out_of_sight_ends_an_episode_of_data(scene):
    for y, z, ended in ((0.3, 0.02, True), (-0.35, 0.02, True), (-0.35, 0.07, False), (0.1, 0.02, False)):
        scene.reset(seed=0, options={"style": "play"})
        scene.world._data.joint("object_joint_0").qpos[:3] = 0.4, y, z
        scene.info["privileged/block_0_pos"] = np.array([0.4, y, z])
        assert scene._out_of_sight() == ended
    scene.reset(seed=0, options={"style": "play"})
    scene.world._data.joint("object_joint_0").qpos[:3] = 0.4, 0.5, 0.02
    *_, truncated, info = scene.step(np.zeros(5))
    assert truncated and info["episode"]["frames"] == 1


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """{style: Trajectories} and their folder."""
    root, found = tmp_path_factory.mktemp("plays"), {}
    for style, episodes in EPISODES.items():
        few = [f"states.behaviour={style}", f"states.episodes={episodes}", "workers=0"]
        run(collect, "collect", *CUBE_SINGLE, *few, f"out={root / style}", f"run.dir={root}")
        found[style] = Trajectories.load(root / style)
    return root, found


def test_collected_play_moves_the_cube(plays):
    _, found = plays
    for style, steps in (("play", 90), ("noisy", 30)):
        data, n = found[style], EPISODES[style]
        assert data.lengths.tolist() == [steps] * n and data.truncated.sum() == n and not data.terminated.any()
        assert {tags["behaviour"] for tags in data.tags} == {style} and data.fps == 20 and data.spaces.state_dim == 28
        first, last = data.observation[data.offsets[:-1]], data.final_observation
        assert np.linalg.norm(first[:, CUBE] - last[:, CUBE], axis=1).max() > 0.3  # tenths of a metre
    assert (found["play"].reward == 0).any() and np.abs(found["play"].action).max() <= 1
    differs = (np.abs(found["noisy"].action - found["noisy"].optimal_action) > 0.8).any(1)
    assert 0.02 < differs.mean() < 0.4  # a tenth is random, and the gripper's noise is ten times the hand's


def test_collecting_twice_gives_the_same_bytes(plays, tmp_path):
    few = ["states.behaviour=noisy", f"states.episodes={EPISODES['noisy']}", "workers=0"]
    run(collect, "collect", *CUBE_SINGLE, *few, f"out={tmp_path / 'noisy'}", f"run.dir={tmp_path}")
    one, other = ({p.name: p.read_bytes() for p in (f / "noisy").glob("*.tar")} for f in (plays[0], tmp_path))
    assert one == other and one


def test_a_policy_of_skills_is_told_the_goals(plays, tmp_path):
    tiny = ["method=hilp", "method.net.width=16", "method.net.layers=1", "method.net.latent_dim=4", "steps=2"]
    run(pretrain, "pretrain", *tiny, "data.batch_size=8", f"data.train={plays[0] / 'noisy'}", f"run.dir={tmp_path}")
    short = ["task.env.episode_steps=4", "episodes=5", "baselines=[player]", "prompt=goal", "environments=2"]
    play = ["task=ogbench_manipulation", *short, f"policy={tmp_path}", f"run.dir={tmp_path / 'play'}"]
    found = run(evaluate, "evaluate", *play)
    assert [found[f"evaluate/task{n}/return"] for n in range(1, 6)] == [-4] * 5 and found["evaluate/success"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [({"name": "cube-singel"}, "did you mean cube-single"), ({"name": ["scene"]}, "one task"),
     ({"reward": "dense"}, "reward='dense'"), ({"noise": -1}, "noise=-1"), ({"random": 2}, "random=2"),
     ({"lengths": {"walk": 3}}, "lengths"), ({"episode_steps": 0}, "episode_steps=0")],
)  # fmt: skip
def test_bad_settings_say_what_was_expected(values, message):
    with pytest.raises(DataError, match=message):
        Manipulation(**{"name": "cube-single", **values})


def test_bad_options_and_names(cube):
    for options in ({"style": "walk"}, {"task_id": 6}):
        with pytest.raises(DataError, match="expected"):
            cube.reset(options=options)
    tasks = registry.tasks_of({**registry.load_task("ogbench_manipulation"), "name": "all"})
    assert [task["env"]["name"] for task in tasks] == list(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single", "cube-double", "cube-triple", "scene"])
def test_the_player_solves_the_tasks(name):
    env = Manipulation(name)
    done = [episode(env, env.scripted(), seed=seed)[2]["episode"]["success"] for seed in range(20)]
    assert np.mean(done) >= 0.9
