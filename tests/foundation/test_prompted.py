"""Policies told by data through the command: rewards, demonstrations, plans; data and settings that tell nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ogbench")

from foundation import collect, evaluate, hub, pretrain
from foundation.envs.point_maze import PointMaze
from foundation.evaluate import play
from foundation.pretraining.goal_data import GoalData
from foundation.prompted import from_data
from foundation.prompts import FixedPrompt, PromptedActor, Prompts, unit
from foundation.training import plain
from models.heads import Gaussian
from models.hilbert import HilbertPolicy
from pipelines.checkpoint import Bundle
from pipelines.schema import GOAL, OBSERVATION, REACHED, DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Trajectories, write_episode
from tests.foundation.running import config, run
from tests.foundation.vector_world import SPACES

TINY = ["method=hilp", "method.net.width=16", "method.net.layers=1", "method.net.latent_dim=6", "data.batch_size=8"]
PLAY = ["task=point_maze", "task.evaluation.tasks=1", "task.env.episode_steps=20", "episodes=3", "baselines=[]"]


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """Shards of explorers in the medium maze."""
    root = tmp_path_factory.mktemp("walks")
    few = ["states.behaviour=explore", "states.episodes=6", "workers=0", "task.env.lengths.explore=100"]
    run(collect, "collect", "task=point_maze", *few, f"out={root / 'shards'}", f"run.dir={root}")
    return root / "shards"


@pytest.fixture(scope="module")
def policies(walks, tmp_path_factory):
    """{features: folder of a policy}"""
    folders = {features: tmp_path_factory.mktemp(features) for features in ("difference", "centred")}
    for features, folder in folders.items():
        given = [*TINY, f"data.train={walks}", f"run.dir={folder}", "steps=4", f"method.net.features={features}"]
        run(pretrain, "pretrain", *given)
    return folders


def told(policy, folder, *overrides):
    return run(evaluate, "evaluate", *PLAY, f"policy={policy}", f"run.dir={folder}", *overrides)


@pytest.mark.parametrize("features", ["difference", "centred"])
def test_a_trained_policy_is_told_each_way(features, policies, walks, tmp_path):
    policy = policies[features]
    paid = ["prompt=reward", f"exemplars={walks}", "task.env.reward=north"]
    numbers = told(policy, tmp_path, *paid)
    assert 0 <= numbers["evaluate/return"] <= 20 and numbers["evaluate/episode_frames"] == 20
    assert 0 < numbers["evaluate/explained"] <= 1 and "evaluate/success" not in numbers
    assert told(policy, tmp_path, *paid, "samples=300", "ridge=0")["evaluate/explained"] > 0
    for prompt in ("goal", "plan", "demonstration"):
        shown = told(policy, tmp_path, f"prompt={prompt}", f"exemplars={walks}", "task.env.reward=north")
        assert "evaluate/explained" not in shown and shown["evaluate/episodes"] == 3


def test_the_data_say_between_which_states_goals_lie(policies, walks):
    data, bundle = Trajectories.load(walks), hub.load(policies["centred"])
    states = np.concatenate([data.observation, data.final_observation])
    np.testing.assert_array_equal(bundle.statistics["state_low"], states.min(0))
    np.testing.assert_array_equal(bundle.statistics["state_high"], states.max(0))
    prompts = Prompts(bundle)
    prompts.goal(states[:5])
    with pytest.raises(DataError, match="far outside"):
        prompts.goal(states.max(0) + 40)


class Compass(nn.Module):
    """A representation's network whose latent is the state."""

    def forward(self, state, member=None):
        return state[None]


class Straight(HilbertPolicy):
    """Goes where its skill points."""

    def step(self, now, first, state):
        return Gaussian(now["condition"], torch.zeros(2)), None, state


def compass(features):
    net = Straight(2, 2, latent_dim=2, width=4, layers=1, features=features)
    net.representation.net = Compass()
    spaces = {"state_dim": 2, "action_dim": 2, "low": (-1, -1), "high": (1, 1)}
    return Bundle(net, None, None, 10.0, {"spaces": spaces}, {}, "")


@pytest.mark.parametrize("features", ["difference", "state", "centred"])
@pytest.mark.parametrize(("reward", "way"), [("north", (0, 1)), ("south_west", (-1, -1)), ("north_east", (1, 1))])
def test_a_reward_is_the_way_to_where_it_is_paid(features, reward, way):
    bundle, world = compass(features), PointMaze("medium", reward=reward, episode_steps=60)
    now = np.random.default_rng(0).uniform(0, 20, (3000, 2)).astype(np.float32)
    following = now + np.random.default_rng(1).uniform(-0.2, 0.2, now.shape).astype(np.float32)
    data = SimpleNamespace(observation=now, following=lambda rows: following[rows], reward=None)
    prompt = from_data(Prompts(bundle), "reward", data, 0, world.state_reward, samples=2000)
    assert prompt(now[:1])[0] @ unit(torch.tensor(way, dtype=torch.float32)) > 0.97
    told, opposite = (
        np.mean([e.returns for e in play(PromptedActor(bundle, one), [world], range(8))])
        for one in (prompt, FixedPrompt(-prompt.skill))
    )
    assert told > 2 * opposite  # walls may be in the way


def test_stored_rewards_are_told_where_the_task_has_no_function(walks):
    data, prompts = Trajectories.load(walks), Prompts(compass("difference"))
    data = replace(data, reward=data.observation[:, 0] ** 2)
    stored = from_data(prompts, "reward", data, 3, samples=400)
    rows = np.random.default_rng(3).permutation(len(data.reward))[:400]
    given = prompts.reward(data.observation[rows], data.following(rows), data.reward[rows])
    assert torch.equal(stored.skill, given.skill)
    shown = from_data(prompts, "demonstration", data, 5)
    episode = data.select([np.random.default_rng(5).integers(len(data))])
    way = torch.from_numpy(episode.final_observation[0] - episode.observation[0])
    torch.testing.assert_close(shown.skill, unit(way), atol=1e-5, rtol=1e-4)


def test_what_tells_nothing_is_refused(policies, walks, tmp_path):
    policy, exemplars = policies["difference"], f"exemplars={walks}"
    for overrides, message in (
        (["prompt=reward", "task.env.reward=north"], "prompt=reward looks for steps to fit in data: give exemplars="),
        (["prompt=demonstration"], "looks for an episode in data"),
        (["prompt=reward", exemplars], "this task pays for goals; set task.env.reward to one of"),
        (["prompt=reward", exemplars, "task.env.reward=north", "samples=5"], "5 samples cannot tell 6 latent numbers"),
        (["prompt=reward", exemplars, "task.env.reward=north", "samples=0"], "samples=0, ridge=1"),
        (["prompt=reward", exemplars, "task.env.reward=north", "ridge=-1"], "ridge=-1"),
        ([exemplars], "say nothing without prompt="),
        (["target=5"], "target=5: this HilbertPolicy is told skills"),
        (["task.evaluation.tasks=0"], "tasks=0"),
        (["prompt=tell"], "expected one of .*demonstration"),
        (["prompt=goal", "task.env.reward=eastward"], "this task has no goals"),
    ):
        with pytest.raises(DataError, match=message):
            told(policy, tmp_path, *overrides)
    south = SimpleNamespace(observation=np.zeros((50, 2), np.float32), following=lambda rows: np.zeros((len(rows), 2)))
    with pytest.raises(DataError, match="all 50 rewards are 0"):
        from_data(Prompts(hub.load(policy)), "reward", south, 0, PointMaze("medium", reward="north").state_reward)


def test_video_has_no_actions_to_learn_skills_from(play_shards, tmp_path):
    with pytest.raises(DataError, match=r"no episode of vectors.* pipelines\.label"):
        run(pretrain, "pretrain", *TINY, f"data.train={play_shards}", f"run.dir={tmp_path}", "steps=1")


def goal_data(*overrides):
    cfg = plain(config("pretrain", *TINY, *overrides).data)
    return GoalData(**{name: value for name, value in cfg.items() if name != "_target_"}, steps=9, seed=0)


def test_an_episode_of_one_step_has_its_end_as_the_goal(tmp_path):
    with ShardWriter(tmp_path / "short", "episodes", samples_per_shard=9) as writer:
        for i in range(3):
            arrays = {
                "observation": np.full((1, 3), i), "action": np.zeros((1, 2)), "reward": np.zeros(1),
                "terminated": np.zeros(1, bool), "truncated": np.ones(1, bool), "final_observation": np.full(3, i + 1),
            }  # fmt: skip
            write_episode(writer, f"short-{i}", arrays, SPACES, 10.0, "by hand")
    within = ["data.goals.p_trajectory=1", "data.goals.p_random=0", f"data.train={tmp_path / 'short'}"]
    batch = goal_data(*within).dataset[0]
    torch.testing.assert_close(batch[GOAL], batch[OBSERVATION] + 1)
    assert not batch[REACHED].any()
