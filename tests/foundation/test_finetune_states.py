"""The command on tasks of vectors: Pendulum of gymnasium needs no simulator, Push learns in seconds."""

import csv
import json

import numpy as np
import pytest
import torch

from foundation import collect, evaluate, finetune, finetune_states, hub, pretrain
from foundation.actors import SequenceActor
from foundation.evaluate import play
from foundation.finetuning.episodes import Targets, floors
from pipelines.schema import DataError
from tests.foundation.running import config, run
from tests.foundation.vector_world import Push, write_pushes

TASK = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=30"]
TINY = [f"policy_vectors.{value}" for value in ("net.width=16", "net.layers=1", "net.context=4", "random_episodes=3")]
TINY += ["algo.stream.environments=2", "episodes=2", "data.batch_size=4"]


def finetuned(folder, *overrides, task=TASK):
    run(finetune, "finetune", *task, f"run.dir={folder}", *TINY, *overrides)
    with open(folder / "metrics.csv") as file:
        return json.loads((folder / "summary.json").read_text()), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("pendulum")
    played = ["states.behaviour=random", "states.episodes=5", "workers=1"]
    run(collect, "collect", *TASK, *played, f"out={root / 'shards'}", f"run.dir={root / 'collect'}")
    return root / "shards"


@pytest.fixture(scope="module")
def policy(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dt")
    tiny = ["method.net.width=16", "method.net.layers=1", "method.net.context=4", "steps=2"]
    run(pretrain, "pretrain", "method=dt", f"data.train={shards}", f"run.dir={folder}", *tiny)
    return folder


def test_bc_goes_on_with_imitation_and_plays_for_scores_only(policy, shards, tmp_path):
    options = ["algo.stream.offline_updates=6", "algo.stream.report_every=2", "evaluate_every=4"]
    summary, rows = finetuned(tmp_path, "algo=bc", f"init={policy}", f"data.train={shards}", *options)
    assert summary["finetune/updates"] == 6 and summary["finetune/train_frames"] == 0
    for who in ("random", "initial", "finetune"):
        assert summary[f"{who}/return_low"] <= summary[f"{who}/return"] <= summary[f"{who}/return_high"]
    assert summary["behaviour/return"] < 0 and "scripted/return" not in summary
    assert [bool(row["evaluate/return"]) for row in rows if row["step"] in ("4", "6")].count(True) == 1
    assert len([row for row in rows if row["loss/imitation"]]) == 3 and "critic/q" not in rows[0]
    before, after = (hub.load(path) for path in (policy, tmp_path))
    kept = {name: value for name, value in after.statistics.items() if name != "targets"}
    assert kept == before.statistics and after.config["spaces"] == before.config["spaces"]
    assert not torch.equal(before.net.head.weight, after.net.head.weight)
    run(evaluate, "evaluate", *TASK, f"policy={tmp_path}", "episodes=1", f"run.dir={tmp_path / 'again'}")


def test_td3_aux_without_init_or_data_says_so_and_trains(tmp_path, caplog):
    caplog.set_level("INFO", "foundation-policy")
    options = ["algo.stream.offline_updates=2", "algo.stream.updates_per_frame=0.02", "frames=150"]
    summary, rows = finetuned(tmp_path, "algo=td3_aux", *options, "evaluate_before=false", "evaluate_every=60")
    assert "no init" in caplog.text and "from scratch" in caplog.text
    assert summary["finetune/updates"] == 2 + 3 and summary["finetune/train_frames"] >= 150
    frames = [int(row["frames"]) for row in rows if row["frames"]]
    assert frames[0] == 0 and frames == sorted(frames)
    assert sum(bool(row["evaluate/return"]) for row in rows) >= 1
    assert rows[0]["critic/q"] and not rows[0].get("loss/q")  # the critic's warm start leaves the policy alone
    bundle = hub.load(tmp_path)
    assert bundle.net.max_timestep == 30 and bundle.statistics["targets"].keys() == {"Pendulum-v1"}
    assert {"state_mean", "returns_scale", "returns"} <= bundle.statistics.keys()


def test_several_tasks_take_turns_and_are_averaged(tmp_path):
    tasks = ["task=gym_mujoco", "task.name=[CartPole-v1,CartPole-v0]", "task.env.episode_steps=20"]
    options = ["algo.stream.offline_updates=1", "algo.stream.updates_per_frame=0.05", "frames=60"]
    summary, rows = finetuned(tmp_path, "algo=odt", *options, "evaluate_before=false", task=tasks)
    each = [summary[f"finetune/{name}/return"] for name in ("CartPole-v1", "CartPole-v0")]
    assert summary["finetune/return"] == pytest.approx(np.mean(each))
    assert hub.load(tmp_path).statistics["targets"].keys() == {"CartPole-v1", "CartPole-v0"}
    assert all(row["policy/entropy"] for row in rows if row["loss/total"])


def test_ppo_on_vectors_keeps_to_what_it_is_asked(policy, tmp_path):
    options = ["algo.stream.chunk=8", "algo.stream.minibatches=2", "algo.stream.epochs=2", "frames=110", "target=-100"]
    summary, rows = finetuned(tmp_path, "algo=ppo", f"init={policy}", *options, "evaluate_before=false")
    assert summary["finetune/train_frames"] == 120 and summary["finetune/updates"] == 8 == 4 * len(rows)
    assert {float(row["target"]) for row in rows} == {-100.0} and rows[0]["policy/kl"]


def test_user_errors_say_what_to_do(policy, shards, tmp_path):
    base, cart = [f"run.dir={tmp_path}", *TINY], [*TASK, "task.name=CartPole-v1"]
    for options, message in (
        (["algo=td3_aux", f"init={policy}", *TASK], "offline_share=0"),
        (["algo=bc"], "algo=bc is for tasks of vectors"),
        (["algo=bc", f"init={policy}", f"data.train={shards}", *cart], "the task CartPole-v1 has"),
        (["algo=bc", f"data.train={shards}", *cart], "holds Spaces"),
        (["algo=bc", f"init={policy}", f"data.train={shards}", *TASK, "data.length=9"], "sees 4 steps"),
        (["algo=bc", *TASK, "trainer.devices=2"], "trainer=cpu"),
        (["algo=td3_aux", *cart], "numbers as actions"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            run(finetune, "finetune", *base, *options)  # before anything is played: nothing was scored
        assert not (tmp_path / "before.json").exists()


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """(shards of players that push the wrong way or hardly, a policy trained on them)"""
    shards, folder = write_pushes(tmp_path_factory.mktemp("poor"), 40, skills=(-1, 0)), tmp_path_factory.mktemp("dt")
    tiny = ["method.net.width=32", "method.net.layers=2", "method.net.context=4", "method.net.dropout=0",
            "method.net.layout=merged", "data.batch_size=32", "method.optimizer.lr=2e-3", "steps=150",
            "method.optimizer.warmup_steps=20"]  # fmt: skip
    run(pretrain, "pretrain", "method=dt", f"data.train={shards}", f"run.dir={folder}", *tiny)
    return shards, folder


def test_td3_aux_beats_the_frozen_policy_that_saw_poor_play(poor, tmp_path):
    shards, policy = poor
    cfg = config(
        "finetune", *TASK, "algo=td3_aux", f"run.dir={tmp_path}", f"init={policy}", f"data.train={shards}",
        "frames=600", "data.batch_size=32", "algo.agent.lr=1e-3", "algo.agent.critic_lr=1e-3", "algo.agent.tau=0.05",
        "algo.agent.gamma=0.9", "algo.agent.critic.width=64", "algo.stream.offline_updates=100",
        "algo.stream.updates_per_frame=0.3", "evaluate_every=0",
    )  # fmt: skip
    worlds = {"push": [Push() for _ in range(5)]}
    bundle, data = finetune_states.begin(cfg, tmp_path, worlds)
    asked = floors(worlds, bundle, data.data)
    targets = Targets(None, asked, 1.1, 20, bundle.statistics)
    got = lambda target: np.mean([e.returns for e in play(SequenceActor(bundle, target), worlds["push"], range(20))])  # noqa: E731
    frozen = max(got(target) for target in (asked["push"], targets("push"), 2.0, 8.0))
    algo = finetune_states.plain(cfg.algo)
    for name in ("environments", "noise", "target_factor", "recent"):
        algo["stream"].pop(name)
    agent, stream = finetune_states.prepared(cfg, algo, 0.1, bundle, data, worlds, targets)
    finetune_states.fit(cfg, tmp_path, algo, agent, stream, None)
    assert got(targets("push")) > frozen + 3
