"""OGBench's point mazes: the package's own steps and shortest ways, seeds, tasks of the protocol, collected play."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

pytest.importorskip("ogbench")

from foundation import collect, evaluate
from foundation.envs import registry
from foundation.envs.point_maze import MAZES, NEAR, PointMaze, world
from foundation.rollout import SEEDS, evaluation_seed
from pipelines.command import CONFIGS
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories


def episode(env, act, **reset):
    """(observations [t+1 2], rewards [t], info of the last step)"""
    observation, _ = env.reset(**reset)
    seen, rewards, info = [observation], [], {}
    while "episode" not in info:
        observation, reward, *_, info = env.step(act(observation))
        seen.append(observation)
        rewards.append(reward)
    return np.array(seen), np.array(rewards), info


@pytest.mark.parametrize("maze", MAZES)
def test_steps_are_the_package_s(maze):
    import gymnasium
    import ogbench  # noqa: F401 registers its environments

    ours, theirs = PointMaze(maze), gymnasium.make(f"pointmaze-{maze}-v0").unwrapped
    for task in range(1, 6):
        rng = np.random.default_rng(task)
        seen, info = ours.reset(seed=7, options={"task_id": task})
        theirs.reset(options={"task_id": task})
        init, goal = (theirs.cur_task_info[name] for name in ("init_xy", "goal_xy"))
        assert np.abs(seen - init).max() <= 1 and np.abs(info["goal"] - goal).max() <= 1
        theirs.set_xy(seen.astype(float))
        theirs.set_goal(goal_xy=info["goal"].astype(float))
        for _ in range(40):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            one, other = ours.step(action), theirs.step(action)
            np.testing.assert_allclose(one[0], other[0], atol=1e-5)
            assert (one[2], one[4]["success"]) == (other[2], bool(other[4]["success"]))


@pytest.mark.parametrize("maze", MAZES)
def test_distances_and_ways_are_the_package_s(maze):
    env, theirs = PointMaze(maze), world(maze)
    for goal in env.grid.main[::5]:
        for start in env.grid.main[::7]:
            subgoal, found = theirs.get_oracle_subgoal(env.xy(start), env.xy(goal))
            steps = np.where(found >= 0, found, np.inf)[tuple(env.grid.cells.T)]
            np.testing.assert_array_equal(env.distances()[goal], steps)
            np.testing.assert_allclose(env.xy(env.grid.toward[start, goal]), subgoal)
    np.testing.assert_array_equal(env.cell(env.xy(np.arange(len(env.grid)))), np.arange(len(env.grid)))
    assert env.cell(env.xy(3) - 1.9) == 3


def test_the_same_seed_is_the_same_episode_whatever_came_before():
    env, rng = PointMaze("teleport"), np.random.default_rng(0)
    plan = rng.uniform(-1, 1, (1001, 2))
    runs = []
    for seed in (3, 4, 3):
        actions = iter(plan)
        runs.append(episode(env, lambda _, actions=actions: next(actions), seed=seed)[0])
    np.testing.assert_array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0][:3], runs[1][:3])


def test_a_goal_pays_and_ends_and_the_player_finds_it():
    env = registry.make("point_maze", maze="pointmaze-medium")
    for seed in range(5):
        seen, rewards, info = episode(env, env.scripted(), seed=seed)
        assert info["episode"]["success"] and (rewards[:-1] == -1).all() and rewards[-1] == 0
        assert np.linalg.norm(seen[-1] - env.goal) <= NEAR < np.linalg.norm(seen[-2] - env.goal)
    env = PointMaze("medium", goals="random", reward="sparse", terminate=False, episode_steps=150)
    _, rewards, info = episode(env, env.scripted(), seed=1)
    assert len(rewards) == 150 and set(rewards) == {0, 1} and info["episode"]["success"]
    assert rewards[-1] == 1  # the player stays


@pytest.mark.parametrize("maze", MAZES)
def test_rewards_of_states_are_paid_from_anywhere_until_time_is_up(maze):
    env, starts = PointMaze(maze, reward="opposite_corners"), set()
    low, high = env.bounds
    for seed in range(6):
        seen, rewards, info = episode(env, env.scripted(), seed=seed)
        assert len(rewards) == 300 and "success" not in info["episode"]
        np.testing.assert_allclose(rewards, env.state_reward(seen[:-1], seen[1:]), atol=1e-5)
        assert info["episode"]["return"] == pytest.approx(rewards.sum())
        assert (seen >= low - 0.1).all() and (seen <= high + 0.1).all()
        starts.add(int(env.cell(seen[0])))
        assert np.linalg.norm(seen[-1] - env.goal) < 0.1 and rewards[-1] > 0.9  # the player stays at the best place
    assert len(starts) > 3
    first = env.cell(env.reset(seed=1)[0])
    ends = np.array([(low[0], high[1]), (high[0], low[1])])
    nearest = env.distances()[first, env.cell(ends)].argmin()
    assert env.cell(env.goal) == env.cell(ends[nearest])


def test_a_reward_of_moves_has_no_best_place_and_no_player():
    env = PointMaze("medium", reward="eastward", episode_steps=20)
    _, rewards, _ = episode(env, lambda _: np.float32([1, 0]), seed=0)
    assert len(rewards) == 20 and env.goal is None and env.scripted() is None and rewards[0] > 0.9
    _, rewards, _ = episode(env, lambda _: np.float32([-1, 0]), seed=0)
    assert (rewards == 0).all()


def test_the_protocol_goes_through_the_tasks():
    env = PointMaze("medium")
    seeds = [evaluation_seed(0, i, 5) for i in range(50)]
    assert [seed % 5 for seed in seeds] == [i % 5 for i in range(50)] and len(set(seeds)) == 50
    assert min(seeds) >= SEEDS and max(seeds) < 2 * SEEDS
    for i, seed in enumerate(seeds[:5]):
        observation, info = env.reset(seed=seed)
        assert (env.cell(observation), env.cell(info["goal"])) == env.tasks[i]


def test_evaluation_tells_the_tasks_apart(tmp_path):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        settings = ["task=point_maze", "task.env.episode_steps=100", "policy=player", "baselines=[]", "episodes=5"]
        found = evaluate.main.function(compose("evaluate", [*settings, f"run.dir={tmp_path}"]))
    assert [found[f"evaluate/task{n}/success"] for n in range(1, 6)] == [0, 0, 1, 0, 0]  # the third is the nearest
    assert found["evaluate/success"] == 0.2


def collected(folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        given = ["task=point_maze", "workers=0", f"out={folder / 'plays'}", f"run.dir={folder}", *overrides]
        return collect.main.function(compose("collect", given)), Trajectories.load(folder / "plays")


@pytest.mark.parametrize(("style", "steps"), [("navigate", 1000), ("stitch", 200), ("explore", 500)])
def test_collected_play_is_what_its_style_says(style, steps, tmp_path):
    _, data = collected(tmp_path, f"states.behaviour={style}", "states.episodes=4")
    env = PointMaze("medium")
    assert data.lengths.tolist() == [steps] * 4 and data.truncated.sum() == 4 and not data.terminated.any()
    assert {tags["behaviour"] for tags in data.tags} == {style} and np.abs(data.action).max() <= 1
    moved = np.diff(data.observation, axis=0)[np.diff(np.repeat(np.arange(4), steps)) == 0]
    assert np.abs(moved).max() < 0.35  # a stride, and what a wall pushes
    visited = env.cell(data.observation)
    assert (visited >= 0).all()
    starts, ends = visited[data.offsets[:-1]], env.cell(data.final_observation)
    if style == "navigate":
        assert len(set(visited)) > 18 and (data.reward == 0).sum() > 8  # of 26 cells; arrivals
    if style == "stitch":
        assert (env.distances()[starts, ends] == 4).mean() >= 0.75
    if style != "explore":
        noise = (data.action - data.optimal_action)[(np.abs(data.action) < 1).all(1)]
        assert abs(noise.mean()) < 0.15 and 0.3 < noise.std() < 0.5  # of 0.5, clipped at the bounds


def test_collected_play_can_be_paid_a_reward_of_states(tmp_path):
    plain = collected(tmp_path / "a", "states.behaviour=navigate", "states.episodes=1")[1]
    paid = collected(tmp_path / "b", "states.behaviour=navigate", "states.episodes=1", "task.env.reward=north")[1]
    np.testing.assert_array_equal(plain.observation, paid.observation)  # played alike
    expected = PointMaze("medium", reward="north").state_reward(paid.observation, paid.following(np.arange(1000)))
    np.testing.assert_allclose(paid.reward, expected, atol=1e-5)
    assert paid.lengths.tolist() == [1000] and 0.05 < paid.reward.mean() < 0.6


def test_collecting_twice_gives_the_same_bytes(tmp_path):
    few = ("states.behaviour=explore", "states.episodes=3", "task.env.lengths.explore=30", "states.chunk=2")
    for name in ("a", "b"):
        collected(tmp_path / name, *few)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name / "plays").glob("*.tar")} for name in "ab")
    assert one == other and len(one) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [({"maze": "medum"}, "did you mean medium"), ({"maze": ["medium"]}, "one task"), ({"goals": "all"}, "goals='all'"),
     ({"reward": "dense"}, "reward='dense'"), ({"noise": -1}, "noise=-1"), ({"lengths": {"walk": 3}}, "lengths")],
)  # fmt: skip
def test_bad_settings_say_what_was_expected(values, message):
    with pytest.raises(DataError, match=message):
        PointMaze(**{"maze": "medium", **values})


def test_bad_options_and_styles_say_what_was_expected(tmp_path):
    for options in ({"style": "walk"}, {"task_id": 6}):
        with pytest.raises(DataError, match="expected"):
            PointMaze("medium").reset(options=options)
    with pytest.raises(DataError, match="navigate"):
        collected(tmp_path, "states.behaviour=navigat")
    assert PointMaze.names("all") == [f"pointmaze-{maze}" for maze in MAZES]
    assert PointMaze.names("pointmaze-giant-v0") == ["pointmaze-giant"]
