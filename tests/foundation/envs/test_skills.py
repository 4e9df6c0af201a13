"""Environments in skills and with shaped rewards: steps and rewards add up, potentials telescope."""

import csv
import json

import numpy as np
import pytest
import torch

from foundation import evaluate, finetune, hub
from foundation.envs.registry import tasks_of
from foundation.envs.skills import ShapedEnv, SkillEnv, loaded, with_skills, wrapped
from foundation.envs.states import StateEnv
from foundation.evaluate import play
from foundation.finetuning.episodes import shaped
from foundation.prompts import FixedPrompt, PromptedActor, unit
from foundation.rollout import BASE_FRAMES, BASE_REWARD, Slot
from pipelines import checkpoint
from pipelines.schema import DataError
from pipelines.trajectories import Spaces
from tests.foundation.running import config, run
from tests.foundation.skills import write_skills

PLANE = Spaces(2, 2, low=(-2.0, -1.0), high=(2.0, 1.0))
PENDULUM = Spaces(3, 1, low=(-2.0,), high=(2.0,))


class Plane(StateEnv):
    """A point is moved by a tenth of the action and pays its first coordinate; ends beyond `end` or after 25 steps."""

    def __init__(self, end=np.inf, goal=(1.0, 0.5), steps=25):
        super().__init__(PLANE, 10, steps, seed=0)
        self.end, self.goal = end, None if goal is None else np.float32(goal)

    def _begin(self, seed):
        self.x = np.random.default_rng(seed).normal(size=2).astype(np.float32)
        return self.x

    def _advance(self, action):
        self.x = self.x + 0.1 * action
        far = bool(np.abs(self.x).max() > self.end)
        return self.x, float(self.x[0]), far, False, far


@pytest.fixture
def skills(tmp_path):
    loaded.cache_clear()
    return str(write_skills(tmp_path / "skills", PLANE, {"state_mean": [0.5, 0.0], "state_std": [2.0, 1.0]}))


def test_a_skill_is_the_policy_held_for_some_steps(skills):
    skill = torch.tensor([1.0, -0.5, 0.2, 0.0])
    env, alone = SkillEnv(Plane(), skills, 10), PromptedActor(hub.load(skills), FixedPrompt(unit(skill)))
    assert env.fps == 1 and env.spaces == Spaces(2, 4, low=(-1.0,) * 4, high=(1.0,) * 4) and env.episode_steps == 25
    observation, _ = env.reset(seed=3)
    rewards, frames, done = [], [], False
    while not done:
        observation, reward, terminated, done, info = env.step(0.3 * skill.numpy())  # only the direction counts
        rewards.append(reward)
        frames.append(info[BASE_FRAMES])
    assert frames == [10, 10, 5] and not terminated
    assert info["episode"]["frames"] == 25 and sum(rewards) == pytest.approx(info["episode"]["return"])
    base = Plane()
    (episode,) = play(alone, [base], [3])
    assert episode.returns == pytest.approx(sum(rewards), rel=1e-5)
    np.testing.assert_allclose(base.x, observation, rtol=1e-5)


def test_an_end_cuts_a_skill_short(skills):
    env = SkillEnv(Plane(end=0.0), skills, 10)
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step(np.ones(4, np.float32))
    assert terminated and not truncated and info[BASE_FRAMES] == 1 and info["success"]


def test_episodes_count_frames_and_rewards_of_the_task(skills):
    env = ShapedEnv(SkillEnv(Plane(), skills, 10), skills, gamma=0.9, scale=3.0)
    slot, episode, taken = Slot(0, env, lambda slot, episode: 5), None, 0.0
    slot.reset()
    while episode is None:
        _, reward, *_, episode = slot.step(np.ones(4, np.float32))
        taken += reward
    assert episode.frames == 25 and len(slot.actions) == 3
    assert episode.returns == pytest.approx(env._episode["return"]) and abs(taken - episode.returns) > 1e-3


@pytest.mark.parametrize(("gamma", "end"), [(1.0, np.inf), (0.9, np.inf), (1.0, 2.0), (0.9, 2.0)])
def test_potentials_telescope(skills, gamma, end):
    env = ShapedEnv(Plane(end), skills, gamma)
    observation, _ = env.reset(seed=1)
    first, total, base, discount, done = env.potential(observation), 0.0, 0.0, 1.0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(np.float32([2, 1]))
        total, base = total + discount * reward, base + discount * info[BASE_REWARD]
        discount, done = discount * gamma, terminated or truncated
    assert terminated == (end == 2.0)
    last = 0.0 if terminated else env.potential(observation)  # who came to an end has no future
    assert total == pytest.approx(base + discount * last - first, rel=1e-4)
    assert first < 0 and env.potential(env.goal) == pytest.approx(-1e-3)


def test_shaping_by_hand(skills):
    env = ShapedEnv(Plane(goal=(1.0, 0.0), steps=2), skills, gamma=0.5, scale=2.0)
    env.potential = lambda observation: -float(np.abs(observation - env.goal).sum())
    env.reset(seed=0)
    env.unwrapped.x, env._potential = np.float32([0.0, 0.0]), -1.0
    _, reward, *_ = env.step(np.float32([2, 0]))  # to 0.2, which pays 0.2; V = -0.8
    assert reward == pytest.approx(0.2 + 2 * (0.5 * -0.8 + 1.0))
    _, reward, _, truncated, info = env.step(np.float32([-1, 0]))  # to 0.1, V = -0.9: the future counts
    assert truncated and reward == pytest.approx(0.1 + 2 * (0.5 * -0.9 + 0.8))
    assert info[BASE_REWARD] == pytest.approx(0.1)


def test_the_scripted_player_of_skills_is_the_goal_prompt(skills):
    env = SkillEnv(Plane(), skills)
    observation, _ = env.reset(seed=0)
    expected = loaded(skills).goal(env.goal)(observation[None])[0]
    np.testing.assert_allclose(env.scripted()(observation), expected)
    assert SkillEnv(Plane(goal=None), skills).scripted() is None


def test_what_does_not_fit_says_so(skills, tmp_path):
    other = str(write_skills(tmp_path / "other", PENDULUM))
    for make, message in (
        (lambda: SkillEnv(Plane(), other), "state_dim=3, the task has 2"),
        (lambda: ShapedEnv(Plane(), other, 0.9), "state_dim=3"),
        (lambda: SkillEnv(Plane(), skills, 0), "skills.steps=0"),
        (lambda: ShapedEnv(Plane(), skills, 1.5), "shaping.gamma=1.5"),
        (lambda: SkillEnv(Plane(), skills, sha256="0" * 64), "learned to use"),
        (lambda: ShapedEnv(Plane(goal=None), skills, 0.9).reset(seed=0), "this task has none"),
        (lambda: SkillEnv(Plane(), skills).step(np.full(4, np.nan)), "4 finite numbers"),
        (lambda: with_skills([{}], {"init": skills, "moves": 3}), "expected the names"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            make()
    assert with_skills([{"name": "a"}], {"init": None, "steps": 10}) == [{"name": "a"}]
    (task,) = with_skills([{"name": "a"}], {"init": skills, "steps": 3})
    assert isinstance(wrapped(Plane(), task), SkillEnv) and task["skills"]["sha256"] == hub.load(skills).sha256


TASK = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=20", "policy_vectors.random_episodes=2"]
TINY = ["policy_vectors.net.width=16", "policy_vectors.net.layers=1", "policy_vectors.net.context=4", "episodes=2",
        "algo.stream.environments=2", "evaluate_every=0"]  # fmt: skip
ALGOS = {
    "ppo": ["algo.stream.minibatches=2", "algo.stream.chunk=8", "frames=80"],
    "td3_aux": ["algo.stream.offline_updates=2", "algo.stream.updates_per_frame=0.05", "frames=80",
                "data.batch_size=4"],
}  # fmt: skip


@pytest.mark.parametrize("algo", list(ALGOS))
def test_algorithms_learn_to_choose_skills(algo, tmp_path):
    skills, folder = write_skills(tmp_path / "skills", PENDULUM), tmp_path / "run"
    options = [*TASK, f"algo={algo}", *TINY, *ALGOS[algo]]
    summary = run(finetune, "finetune", *options, f"skills.init={skills}", "skills.steps=5", f"run.dir={folder}")
    assert summary["finetune/train_frames"] == 80 and summary["finetune/train_episode_frames"] == 20  # of Pendulum
    assert -16.3 * 20 < summary["finetune/return"] < 0 and summary["finetune/episode_frames"] == 20
    bundle = hub.load(folder)
    assert bundle.net.action_dim == 4 and bundle.config["skills"]["steps"] == 5
    played = run(evaluate, "evaluate", *TASK[:3], f"policy={folder}", "episodes=2", f"run.dir={tmp_path / 'score'}")
    assert played["evaluate/return"] == pytest.approx(summary["finetune/return"], rel=1e-5)  # in skills, unasked
    more = [f"init={folder}", "evaluate_before=false", f"run.dir={tmp_path / 'more'}"]
    more += [f"data.train={folder / 'random'}"] if algo == "td3_aux" else []
    run(finetune, "finetune", *options, *more)
    assert hub.load(tmp_path / "more").config["skills"] == bundle.config["skills"]


def test_evaluation_is_without_shaping(tmp_path):
    maze = pytest.importorskip("ogbench") and ["task=point_maze", "task.env.episode_steps=10"]
    skills, folder = write_skills(tmp_path / "skills", Spaces(2, 2, low=(-1.0,) * 2, high=(1.0,) * 2)), tmp_path / "run"
    options = [*maze, *TINY, *ALGOS["ppo"], "policy_vectors.random_episodes=2", "data.condition=none", "algo=ppo"]
    summary = run(finetune, "finetune", *options, f"shaping.init={skills}", "shaping.scale=100", f"run.dir={folder}")
    for who in ("random", "initial", "finetune"):
        assert summary[f"{who}/return"] == -10
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["return"]) == -10 for row in rows)  # in the task's own unit
    assert "behaviour/return" not in json.loads((folder / "before.json").read_text())
    cfg = config("finetune", *options, f"shaping.init={skills}")
    (task,) = shaped(tasks_of(cfg.task), cfg)
    assert task["shaping"] == {"init": str(skills), "gamma": 0.999, "scale": 1.0}  # of the algorithm
    for more, message in ((["data.condition=return"], "told no returns"), (["data.train=x"], "leave out data.train")):
        with pytest.raises(DataError, match=message):
            shaped(tasks_of(cfg.task), config("finetune", *options, f"shaping.init={skills}", *more))


def test_policies_of_skills_are_not_trained_as_others(tmp_path):
    skills = write_skills(tmp_path / "skills", PENDULUM)
    init, there = f"init={skills}", f"run.dir={tmp_path}"
    for algo in ALGOS:
        with pytest.raises(DataError, match="algo=latent"):
            run(finetune, "finetune", *TASK, f"algo={algo}", *TINY, *ALGOS[algo], init, there)
    net = {"_target_": "models.goal_policy.GoalPolicy", "state_dim": 3, "goal_dim": 3, "width": 8, "layers": 1}
    extras = {"spaces": PENDULUM.to_dict(), "fps": 10.0, "condition": "goal"}
    goals = checkpoint.save(tmp_path / "goals", net, checkpoint.build(net), extras, "card")
    with pytest.raises(DataError, match="is told goals"):
        run(finetune, "finetune", *TASK, "algo=ppo", *TINY, *ALGOS["ppo"], f"init={goals}", there)
    with pytest.raises(DataError, match="shapes nothing without"):
        run(finetune, "finetune", *TASK, "algo=ppo", *TINY, *ALGOS["ppo"], "shaping.gamma=0.5", there)
    with pytest.raises(DataError, match="is an encoder of frames"):
        run(finetune, "finetune", *TASK, "algo=ppo", *TINY, *ALGOS["ppo"], "policy.init=outputs/icvf", there)
    with pytest.raises(DataError, match="shows frames"):
        run(finetune, "finetune", "task=maze_video", f"skills.init={skills}", there)
    with pytest.raises(DataError, match=r"leave out skills.init"):
        run(finetune, "finetune", *TASK, "algo=latent", init, f"skills.init={skills}", there)
