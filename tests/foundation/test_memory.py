"""Acting with an in-context policy: what it sees is what it was trained on, within an episode and across episodes."""

import numpy as np
import pytest
import torch

from foundation import collect, evaluate, hub, pretrain
from foundation.actors import SequenceActor
from foundation.evaluate import play
from foundation.finetuning.episodes import Recorded, unit
from foundation.pretraining.context_data import ContextData
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import write_episode
from tests.foundation.running import run
from tests.foundation.vector_world import LENGTH, SPACES, Push, write_pushes

NET = ["method.net.width=16", "method.net.layers=2", "method.net.heads=2", "method.net.query=last"]


def trained(folder, shards, *options):
    given = ["method=dpt", "data=contexts", f"data.train={shards}", "data.target=action", "steps=3", *NET, *options]
    run(pretrain, "pretrain", *given, f"run.dir={folder}")
    return hub.load(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    options = ["data.length=40", "data.batch_size=4", "run.seed=1"]  # a seed whose actions stay within bounds
    return trained(folder / "dpt", write_pushes(folder / "shards"), *options)


class Watched(SequenceActor):
    """Keeps the means that it was told."""

    def start(self, slots):
        super().start(slots)
        self.said = []

    def choose(self, distribution):
        self.said.append(distribution.mean.clone())
        return super().choose(distribution)


def played(bundle, memory, seeds):
    """(means [steps a] without those at final observations, the episodes as one data set)"""
    actor, world = Watched(bundle, memory=memory), Recorded(Push())
    actor.spaces = unit(SPACES)  # as Recorded takes actions
    play(actor, [world], seeds)
    arrays = world.take()
    said = torch.cat(actor.said)
    return said[[i for i in range(len(said)) if (i + 1) % (LENGTH + 1)]], arrays


def write(root, arrays):
    with ShardWriter(root) as writer:
        for i, one in enumerate(arrays):
            action = SPACES.from_unit(one["action"])
            write_episode(writer, f"e{i}", {**one, "action": action}, SPACES, 10.0, "here", {"task": "push"})
    return str(root)


def window(bundle, root, n):
    """The one context of n steps in the order of the shards, normalised as the policy has it."""
    data = ContextData(root, None, None, "task", None, None, "stop", 1, 0, n, "action", "recorded", 0.0, False, None,
                       "all", 1, 0)  # fmt: skip
    data.inherit(bundle.statistics)
    return data.dataset[0]


@pytest.mark.parametrize("memory", ["task", "episode"])
def test_acting_sees_what_training_saw(bundle, tmp_path, memory):
    said, arrays = played(bundle, memory, [7, 8, 9])
    assert len(arrays) == 3 and (np.abs(np.concatenate([one["action"] for one in arrays])) < 1).all()
    if memory == "task":
        expected, _ = bundle.net(window(bundle, write(tmp_path / "all", arrays), 3 * LENGTH))
        torch.testing.assert_close(said, expected.mean[0], rtol=0, atol=1e-5)
        return
    for i, one in enumerate(arrays):
        expected, _ = bundle.net(window(bundle, write(tmp_path / str(i), [one]), LENGTH))
        torch.testing.assert_close(said[i * LENGTH : (i + 1) * LENGTH], expected.mean[0], rtol=0, atol=1e-5)


def test_the_first_episode_does_not_depend_on_memory(bundle):
    one, two = (played(bundle, memory, [7, 8])[0] for memory in ("task", "episode"))
    assert torch.equal(one[:LENGTH], two[:LENGTH]) and not torch.allclose(one[LENGTH:], two[LENGTH:])


def test_returns_are_printed_by_episode(tmp_path):
    task = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=10"]
    run(collect, "collect", *task, "states.behaviour=random", "states.episodes=4", f"out={tmp_path / 's'}", "workers=0",
        f"run.dir={tmp_path / 'c'}")  # fmt: skip
    trained(tmp_path / "dpt", tmp_path / "s", "data.length=30", "data.batch_size=2", "method.net.positions=none")
    given = [*task, f"policy={tmp_path / 'dpt'}", "episodes=6", "environments=2", f"run.dir={tmp_path / 'e'}"]
    numbers = run(evaluate, "evaluate", *given, "memory=task", "baselines=[]")
    by_number = [numbers[f"evaluate/return@{n}"] for n in (1, 2, 3)]
    assert numbers["evaluate/return"] == pytest.approx(np.mean(by_number)) and "evaluate/return@4" not in numbers
    assert "evaluate/return@1" not in run(evaluate, "evaluate", *given)


def test_only_in_context_policies_remember(bundle, tmp_path):
    with pytest.raises(DataError, match="episode or task"):
        SequenceActor(bundle, memory="always")
    options = ["method.net.width=16", "method.net.layers=1", "steps=1", "data.batch_size=2", f"run.dir={tmp_path}"]
    run(pretrain, "pretrain", "method=dt", f"data.train={write_pushes(tmp_path / 'shards', 4)}", *options)
    with pytest.raises(DataError, match="memory=task"):
        SequenceActor(hub.load(tmp_path), memory="task")
