"""The skill alone: moments of the elites by hand, a search that finds what it should and goes on where it stopped."""

import csv
from functools import partial

import numpy as np
import pytest
import torch

from foundation import callbacks, evaluate, finetune, hub
from foundation.evaluate import play
from foundation.finetuning.latent import Generations, LatentSearch, begin, elite_moments, played
from foundation.prompts import FixedPrompt, PromptedActor, own_skill, unit
from foundation.rollout import Episode
from pipelines import checkpoint
from pipelines.schema import DataError
from pipelines.trajectories import Spaces
from tests.foundation.running import config, run
from tests.foundation.skills import write_skills
from tests.foundation.vector_world import SPACES, Push

PENDULUM = Spaces(3, 1, low=(-2.0,), high=(2.0,))
TASK = ["task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=5", "episodes=2", "algo=latent"]
TASK += ["algo.stream.environments=2", "algo.stream.population=4", "algo.stream.episodes=1", "algo.agent.elites=2"]


def test_moments_of_the_elites_by_hand():
    candidate = torch.tensor([[0.0, 0.0], [1.0, 3.0], [3.0, 5.0], [9.0, 9.0]])
    mean, deviation = elite_moments(candidate, torch.tensor([0.0, 2.0, 1.0, -1.0]), elites=2)
    assert mean.tolist() == [2, 4] and deviation.tolist() == [1, 1]
    _, deviation = elite_moments(candidate, torch.tensor([0.0, 2.0, 1.0, -1.0]), 2, noise=1.0)
    assert deviation.tolist() == pytest.approx([2**0.5] * 2)
    mean, _ = elite_moments(candidate, torch.tensor([0.0, 2.0, 1.0, 1.0]), elites=2)
    torch.testing.assert_close(mean, candidate[1:].mean(0))  # as good as the second best
    mean, deviation = elite_moments(candidate, torch.zeros(4), elites=1)  # nothing is better than anything
    torch.testing.assert_close(mean, candidate.mean(0))


def test_a_generation_goes_a_share_of_the_way():
    agent = LatentSearch(torch.tensor([1.0, 0.0]), elites=1, rate=0.25, spread=2.0, noise=0.0)
    optimizer = agent.configure_optimizers()
    batch = {"candidate": torch.tensor([[5.0, 4.0], [0.0, 0.0]]), "return": torch.tensor([1.0, 0.0])}
    agent.training_step(batch, 0)["loss"].backward()
    optimizer.step()
    torch.testing.assert_close(agent.mean.detach(), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(agent.deviation.detach(), torch.full((2,), 0.75 * 2 / 2**0.5))


def search(play, generations=25, dim=8, frames=1, episodes=1, **options):
    """A search without environments or trainer -> the agent."""
    agent, total = LatentSearch(torch.eye(dim)[0], 8, **options), 32 * episodes * frames * generations
    stream, optimizer = Generations(agent, play, 0, total, 32, episodes), agent.configure_optimizers()
    for batch in stream:
        optimizer.zero_grad()
        agent.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    assert stream.frames == total and stream.generation == generations <= len(stream)
    return agent


def test_it_finds_the_top_of_a_paraboloid():
    top = unit(torch.tensor([1.0, -2.0, 0.5, 3.0, 0, 1, -1, 0.3]))
    quality = lambda skills, seeds: [Episode(seeds[0], -float((z - top).square().sum()), 1, None) for z in skills]  # noqa: E731
    found = search(quality, spread=4.0)
    assert found.skill @ top > 0.97 > 0.5 > torch.eye(8)[0] @ top
    flat = search(lambda skills, seeds: [Episode(seeds[0], 0.0, 1, None) for _ in skills], 5, spread=1.0)
    assert flat.deviation.norm() > 0.7  # where nothing differs it goes on looking


@pytest.fixture
def pusher(tmp_path):
    return hub.load(write_skills(tmp_path / "pusher", SPACES, {"state_mean": [0.0] * 3, "state_std": [1.0, 1.0, 20.0]}))


def test_candidates_are_played_in_their_order(pusher):
    skills = unit(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    found = played(pusher, [Push() for _ in range(3)])(skills, [11, 12])
    assert [episode.seed for episode in found] == [11, 12] * 5 and all(episode.frames == 8 for episode in found)
    for i, skill in enumerate(skills):
        alone = play(PromptedActor(pusher, FixedPrompt(skill)), [Push()], [11, 12])
        assert [e.returns for e in found[2 * i : 2 * i + 2]] == pytest.approx([e.returns for e in alone])


def test_it_improves_play_and_leaves_the_network_alone(pusher):
    before = {name: value.clone() for name, value in pusher.net.state_dict().items()}
    worlds = [Push() for _ in range(8)]
    play_all = played(pusher, worlds)
    agent = search(lambda skills, seeds: play_all(skills, range(4)), 8, dim=4, frames=8, episodes=4, spread=4.0)
    got = lambda skill: np.mean([e.returns for e in play_all(skill[None], range(4))])  # noqa: E731
    assert got(agent.skill) > got(torch.eye(4)[0]) + 1
    assert all(torch.equal(value, before[name]) for name, value in pusher.net.state_dict().items())


class Killed(BaseException):
    """Ends a run where it stands, as a signal would."""


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return [{n: v for n, v in row.items() if n != "frames_per_second"} for row in csv.DictReader(file)]


def test_the_command_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    skills = write_skills(tmp_path / "skills", PENDULUM, {"returns_mean": -9.0})  # of the rewards in the data
    options = [*TASK, f"init={skills}", "frames=110", "checkpoint_every=1", "evaluate_every=40"]
    summary = run(finetune, "finetune", *options, f"run.dir={tmp_path / 'straight'}")
    assert summary["finetune/updates"] == 6 and summary["finetune/train_frames"] == 120  # 20 a generation
    assert {"random/return", "initial/return", "finetune/return"} <= summary.keys()
    assert not any(name.startswith("behaviour") for name in summary)
    original, left = callbacks.Progress.on_train_batch_end, iter(range(3))

    def dies(self, *args):
        original(self, *args)
        if next(left, None) is None:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_train_batch_end", dies)
        with pytest.raises(Killed):
            run(finetune, "finetune", *options, f"run.dir={tmp_path / 'stopped'}")
    assert not (tmp_path / "stopped" / "model").exists()
    run(finetune, "finetune", *options, f"run.dir={tmp_path / 'stopped'}")
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")
    a, b = (hub.load(tmp_path / name) for name in ("straight", "stopped"))
    assert a.statistics == b.statistics and own_skill(a).norm() == pytest.approx(1)
    again = run(evaluate, "evaluate", *TASK[:3], f"policy={tmp_path / 'straight'}", "episodes=2",
                f"run.dir={tmp_path / 'score'}", "baselines=[]")  # fmt: skip
    assert again["evaluate/return"] == pytest.approx(summary["finetune/return"])  # without a prompt
    cfg = config("finetune", *TASK, f"init={tmp_path / 'straight'}")
    assert torch.equal(begin(cfg, Pendulum())[1], own_skill(a))  # another search goes on there


class Pendulum:
    spaces = PENDULUM


def test_user_errors_say_what_to_do(tmp_path, pusher):
    skills = write_skills(tmp_path / "skills", PENDULUM)
    refused = partial(pytest.raises, DataError)
    for options, message in (
        ([], "set init=<run of method=hilp>"),
        ([f"init={tmp_path / 'pusher'}"], "action_dim=2"),
        ([f"init={skills}", "task.name=[Pendulum-v1,CartPole-v1]"], "one skill is for one task"),
        ([f"init={skills}", "algo.prompt=goal"], "has no goals"),
        ([f"init={skills}", "algo.prompt=reward"], "give data.train"),
        ([f"init={skills}", "algo.prompt=plan"], "expected one of"),
        ([f"init={skills}", "algo.agent.elites=0"], "elites=0"),
        ([f"init={skills}", "algo.agent.elites=4"], "elites=4 of algo.stream.population=4 chooses none"),
        ([f"init={skills}", "algo.stream.population=1"], "population=1"),
        ([f"init={skills}", "trainer.devices=2"], "trainer=cpu"),
    ):  # fmt: skip
        with refused(match=message):
            run(finetune, "finetune", *TASK, *options, f"run.dir={tmp_path / 'run'}")
        assert not (tmp_path / "run" / "before.json").exists()  # nothing was played
    damaged = {"skill": [1.0, float("inf"), 0.0]}
    with refused(match="4 numbers"):
        own_skill(checkpoint.Bundle(pusher.net, None, None, 1.0, {}, damaged, ""))
