"""One interface for environments of vectors: bounds, ends, seeds, and names that do not exist."""

import numpy as np
import pytest

from foundation.envs.registry import load_task, make, tasks_of
from foundation.envs.states import DmControl, Gymnasium, StateEnv, require, single
from foundation.rollout import Slot
from pipelines.schema import DataError
from pipelines.trajectories import Spaces


class Counter(StateEnv):
    """Observes [steps, last action]; a step is a success while its number is in `successes`; ends after `life`."""

    def __init__(self, successes=(), life=99, episode_steps=6, seed=None):
        super().__init__(Spaces(2, 1, low=(-2.0,), high=(2.0,)), 5, episode_steps, seed)
        self.successes, self.life = successes, life

    def _begin(self, seed):
        self.n = 0
        return [0, seed % 1000]

    def _advance(self, action):
        self.n += 1
        return [self.n, action[0]], 2.0, self.n == self.life, False, self.n in self.successes

    def scripted(self):
        return lambda observation: np.array([1.5], np.float32)


def test_an_episode_ends_in_time_and_remembers_a_success_that_has_passed():
    env = Counter(successes=(2, 3))
    env.reset(seed=0)
    results = [env.step([0.0]) for _ in range(6)]
    assert [info["success"] for *_, info in results] == [False, True, True, False, False, False]
    assert [truncated for _, _, _, truncated, _ in results] == [False] * 5 + [True]
    assert results[-1][4]["episode"] == {"return": 12.0, "frames": 6, "success": True}
    assert not any("episode" in info for *_, info in results[:-1])


def test_a_slot_reads_success_where_the_environment_puts_it():
    slot = Slot(0, Counter(successes=(1,)), lambda index, episode: 3)
    slot.step(None)
    *_, episode = [slot.step(np.zeros(1)) for _ in range(6)][-1]
    assert (episode.success, episode.returns, episode.frames) == (True, 12.0, 6)


def test_an_end_of_its_own_in_the_last_step_is_no_truncation():
    env = Counter(life=6)
    env.reset(seed=0)
    *_, terminated, truncated, _ = [env.step([0.0]) for _ in range(6)][-1]
    assert terminated and not truncated


def test_actions_are_clipped_and_broken_ones_refused():
    env = Counter()
    env.reset()
    observation, *_ = env.step([7.0])
    assert observation.tolist() == [1, 2]
    assert observation.dtype == np.float32
    for action in ([np.nan], [0.0, 0.0], 0.0):
        with pytest.raises(DataError, match="1 finite"):
            env.step(action)
    with pytest.raises(DataError, match="episode_steps=0"):
        Counter(episode_steps=0)


def test_gymnasium_with_choices():
    env = Gymnasium("CartPole-v1", episode_steps=5)
    assert env.spaces == Spaces(4, 1, n_actions=2)
    assert env.fps == 50
    first, _ = env.reset(seed=3)
    env.step(1)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, env.reset(seed=4)[0])
    *_, terminated, truncated, info = [env.step(i % 2) for i in range(5)][-1]
    assert (terminated, truncated, info["episode"]) == (False, True, {"return": 5.0, "frames": 5})
    assert env.scripted() is None
    with pytest.raises(DataError, match=r"0\.\.1"):
        env.step(2)
    env.close()


def test_gymnasium_with_numbers_keeps_its_bounds():
    env = Gymnasium("Pendulum-v1")
    assert env.spaces == Spaces(3, 1, low=(-2.0,), high=(2.0,))
    env.reset(seed=0)
    assert sum(1 for _ in iter(lambda: env.step([0.0])[3], True)) == 199  # then its own limit
    env.close()


def test_gymnasium_mujoco():
    pytest.importorskip("mujoco")
    env = make("gym_mujoco", episode_steps=2)
    assert (env.spaces.state_dim, env.spaces.action_dim, env.fps) == (17, 6, pytest.approx(20))
    env.reset(seed=0)
    assert [env.step(np.zeros(6))[3] for _ in range(2)] == [False, True]
    env.close()


def test_dm_control_repeats_by_seed():
    pytest.importorskip("dm_control")
    env, episodes = make(tasks_of({**load_task("dm_control"), "name": "finger-turn_easy"})[0]), []
    for seed in (3, 4, 3):
        observation, _ = env.reset(seed=seed)
        episodes.append(np.stack([observation, *(env.step([0.3, -0.2])[0] for _ in range(5))]))
    np.testing.assert_array_equal(episodes[0], episodes[2])
    assert not np.array_equal(episodes[0], episodes[1])
    assert episodes[0].shape == (6, env.spaces.state_dim) and env.fps == pytest.approx(50)
    with pytest.raises(DataError, match="cheetah-run"):
        DmControl("cheetah-walk")


@pytest.mark.parametrize(
    ("name", "message"),
    [("HalfChetah-v5", "HalfCheetah"), ("os:Env-v0", "without a module"), ("Blackjack-v1", "expected vectors")],
)
def test_gymnasium_says_what_it_cannot_use(name, message):
    with pytest.raises(DataError, match=message):
        Gymnasium(name)


def test_a_missing_package_names_its_extra():
    with pytest.raises(DataError, match=r'pip install "foundation-policy\[metaworld\]"'):
        require("no_such_package.part", "metaworld")


def test_a_list_of_names_becomes_one_task_each():
    task = {**load_task("gym_mujoco"), "name": ["Hopper-v5", "Ant-v5", "Hopper-v5"]}
    made = tasks_of(task)
    assert [one["name"] for one in made] == [one["env"]["task"] for one in made] == ["Hopper-v5", "Ant-v5"]
    assert tasks_of("doom_my_way_home")[0]["env"]["maps"] == ["my_way_home:map01"]
    with pytest.raises(DataError, match="one mapping per name"):
        single(["a", "b"])
    with pytest.raises(DataError, match="empty"):
        tasks_of({**task, "name": []})
