"""The commands on a task of vectors, from collecting to a score: Pendulum of gymnasium needs no simulator."""

import pytest

from foundation import collect, evaluate, pretrain
from foundation.envs import registry
from pipelines.schema import DataError
from tests.foundation.running import run

TASK = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=30"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    root = tmp_path_factory.mktemp("pendulum")
    played = ["states.behaviour=random", "states.episodes=6", "workers=1"]
    run(collect, "collect", *TASK, *played, f"out={root / 'shards'}", f"run.dir={root / 'collect'}")
    tiny = ["method.net.width=16", "method.net.layers=1", "method.net.context=4", "steps=3"]
    run(pretrain, "pretrain", "method=dt", f"data.train={root / 'shards'}", f"run.dir={root / 'dt'}", *tiny)
    return root / "dt"


def test_a_policy_beside_its_baselines(policy, tmp_path):
    play = [*TASK, f"policy={policy}", f"run.dir={tmp_path}", "episodes=3", "baselines=[random,noop]"]
    numbers = run(evaluate, "evaluate", *play)
    assert numbers["evaluate/episodes"] == 3 and numbers["evaluate/episode_frames"] == 30
    for who in ("evaluate", "evaluate/random", "evaluate/noop"):
        assert -16.3 * 30 <= numbers[f"{who}/return"] < 0
    again = run(evaluate, "evaluate", *play, "environments=1")
    assert again["evaluate/return"] == pytest.approx(numbers["evaluate/return"], rel=1e-4)  # batched or alone


def test_what_does_not_fit_is_refused(policy, tmp_path):
    base = [f"policy={policy}", f"run.dir={tmp_path}", "episodes=1"]
    with pytest.raises(DataError, match="state_dim=3, the task CartPole-v1 has 4"):
        run(evaluate, "evaluate", "task=gym_mujoco", "task.name=CartPole-v1", *base)
    with pytest.raises(DataError, match="acts on vectors, the task doom_my_way_home shows frames"):
        run(evaluate, "evaluate", *base)
    with pytest.raises(DataError, match="video=1"):
        run(evaluate, "evaluate", *TASK, *base, "video=1")
    with pytest.raises(DataError, match="no scripted player"):
        run(evaluate, "evaluate", *TASK, "policy=player", f"run.dir={tmp_path}", "episodes=1", "baselines=[]")


def test_several_tasks_are_averaged(tmp_path):
    tasks = ["task=gym_mujoco", "task.name=[Pendulum-v1,CartPole-v1]", "policy=random", "baselines=[noop]"]
    numbers = run(evaluate, "evaluate", *tasks, "episodes=2", f"run.dir={tmp_path}", "task.env.episode_steps=20")
    each = [numbers[f"evaluate/{name}/return"] for name in ("Pendulum-v1", "CartPole-v1")]
    assert numbers["evaluate/return"] == pytest.approx(sum(each) / 2)
    assert "evaluate/noop/return" in numbers


def test_environments_know_their_task():
    task = registry.load_task("gym_mujoco")
    task["name"] = "Pendulum-v1"
    with evaluate.opened(registry.tasks_of(task)[0], 2) as worlds:
        assert [world.tags for world in worlds] == [{"task": "Pendulum-v1"}] * 2
