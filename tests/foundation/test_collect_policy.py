"""A policy that was trained here plays what is collected: PPO on a pendulum, then its episodes as shards."""

import json

import pytest
from hydra import compose, initialize_config_dir

from foundation import collect_states, finetune, hub
from foundation.actors import SequenceActor
from foundation.collect import main, state_tasks
from foundation.evaluate import play
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.trajectories import Trajectories
from tests.foundation.test_pretrain import run as pretrain

STEPS = 12
TASK = ("task=gym_mujoco", "task.name=Pendulum-v1", f"task.env.episode_steps={STEPS}")
TINY = (
    "policy_vectors.net.width=16", "policy_vectors.net.layers=1", "policy_vectors.net.context=4", "frames=50",
    "policy_vectors.random_episodes=2", "algo.stream.environments=2", "episodes=1", "evaluate_before=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Run folder of `algo=ppo` after a few updates."""
    folder = tmp_path_factory.mktemp("ppo")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("finetune", ["algo=ppo", f"run.dir={folder}", *TASK, *TINY])
    assert execute(finetune.main.function, cfg)["finetune/updates"] > 0
    return folder


def collect(folder, *overrides):
    given = [*TASK, "workers=0", "states.episodes=3", "states.chunk=2", "states.behaviour=policy", "states.noise=0"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("collect", [*given, f"run.dir={folder}", *overrides])
    return main.function(cfg), cfg


def test_episodes_are_those_that_an_evaluation_would_play(policy, tmp_path):
    summary, cfg = collect(tmp_path, f"states.policy={policy}")
    data = Trajectories.load(tmp_path / "plays")
    assert summary["episodes"] == 3 and data.lengths.tolist() == [STEPS] * 3
    assert {tags["behaviour"] for tags in data.tags} == {"policy"}
    bundle = hub.load(policy)
    actor = SequenceActor(bundle, bundle.statistics["targets"]["Pendulum-v1"])
    env = collect_states.environment(json.dumps(state_tasks(cfg)[0]))
    played = play(actor, [env], [tags["seed"] for tags in data.tags])
    assert data.returns.tolist() == pytest.approx([episode.returns for episode in played], rel=1e-5)


def test_with_workers_noise_and_a_target(policy, tmp_path):
    for workers, folder in (("workers=0", "a"), ("workers=2", "b")):
        collect(tmp_path / folder, f"states.policy={policy}", workers, "states.mix=[0,0.5]", "states.target=-5")
    one, other = (Trajectories.load(tmp_path / name / "plays") for name in "ab")
    assert (one.action == other.action).all() and {tags["noise"] for tags in one.tags} == {0.0, 0.5}
    with pytest.raises(DataError, match=r"target: -5 -> q0\.5"):
        collect(tmp_path / "a", f"states.policy={policy}", "states.mix=[0,0.5]", "states.target=q0.5")


def test_another_policy_at_the_same_place_does_not_go_on(policy, tmp_path):
    place = tmp_path / "policy"
    place.symlink_to(policy)
    collect(tmp_path, f"states.policy={place}")
    place.unlink()
    bundle = hub.load(policy)
    hub.save(place, bundle.net, bundle.config["net"], {**bundle.config, "statistics": {}}, "", {}, "other")
    with pytest.raises(DataError, match="policy: "):
        collect(tmp_path, f"states.policy={place}", "states.target=-5")


def test_what_cannot_play_is_refused_before_anything_is_written(policy, play_shards, tmp_path):
    pretrain("idm", tmp_path / "idm", play_shards, "steps=1")
    for overrides, message in (
        ([], r"needs states\.policy"),
        (["states.policy=nowhere"], "nowhere is not a hub folder"),
        ([f"states.policy={policy}", "task.name=MountainCarContinuous-v0"], "state_dim=3, the task Mount.* has 2"),
        ([f"states.policy={policy}", "task.name=CartPole-v1"], "state_dim=3, the task CartPole-v1 has 4"),
        ([f"states.policy={tmp_path / 'idm'}"], "which does not act: give a policy"),
        ([f"states.policy={policy}", "states.target=best"], "target='best'"),
    ):
        with pytest.raises(DataError, match=message):
            collect(tmp_path / "refused", *overrides)
    assert not (tmp_path / "refused" / "plays").exists()
