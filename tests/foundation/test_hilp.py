"""HILP through the command: batches, targets, schedules, what is saved, wrong inputs, and that it learns distances."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from foundation import hub, pretrain
from foundation.pretraining.goal_data import GoalData
from foundation.training import plain
from pipelines.schema import ACTION, CONDITION, GOAL, NEXT_OBSERVATION, OBSERVATION, REACHED, DataError
from pipelines.trajectories import Trajectories
from tests.foundation.grid_maze import CELLS, distances, moved, state, write_walks
from tests.foundation.running import config, run
from tests.foundation.vector_world import write_pushes

TINY = ["method=hilp", "method.net.width=16", "method.net.layers=1", "method.net.latent_dim=6", "data.batch_size=8"]


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"), 12)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_walks(tmp_path_factory.mktemp("walks"))


def train(data, folder, *overrides):
    return run(pretrain, "pretrain", *TINY, "steps=4", f"data.train={data}", f"run.dir={folder}", *overrides)


def goal_data(train, *overrides, seed=0):
    cfg = plain(config("pretrain", *TINY, f"data.train={train}", *overrides).data)
    return GoalData(**{name: value for name, value in cfg.items() if name != "_target_"}, steps=9, seed=seed)


def weights(folder, name="last"):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]


def rows(state, following, action):
    columns = (value.tolist() for value in (state, following, action))
    return {(*one, *other, done) for one, other, done in zip(*columns, strict=True)}


# batches


def test_a_batch_is_of_steps_of_the_data(walks):
    dataset, data = goal_data(walks, "data.batch_size=2000").dataset, Trajectories.load(walks)
    batch = dataset[3]
    known = rows(data.observation, data.following(np.arange(len(data.reward))), data.action)
    assert rows(batch[OBSERVATION], batch[NEXT_OBSERVATION], batch[ACTION]) <= known
    states = np.concatenate([data.observation, data.final_observation])
    assert set(map(tuple, batch[GOAL].tolist())) <= set(map(tuple, states.tolist()))
    assert len(dataset.states) == len(data.reward) + len(data)
    assert dataset.states[60].tolist() == data.final_observation[0].tolist()


def test_reached_is_the_same_row_not_an_equal_state(walks):
    current = ["data.goals.p_current=0.25", "data.goals.p_trajectory=0.5", "data.goals.p_random=0.25"]
    batch = goal_data(walks, "data.batch_size=4000", *current).dataset[0]
    equal = (batch[OBSERVATION] == batch[GOAL]).all(-1)
    assert batch[REACHED].float().mean() == pytest.approx(0.25, abs=0.03)
    assert equal[batch[REACHED]].all() and (equal & ~batch[REACHED]).any()


def test_skills_are_fresh_in_every_step_and_rank(pushes):
    dataset = goal_data(pushes).dataset
    one = dataset[1][CONDITION]
    assert one.shape == (8, 6) and torch.allclose(one.norm(dim=-1), torch.ones(8))
    assert torch.equal(one, goal_data(pushes).dataset[1][CONDITION])
    for other in (dataset[2], goal_data(pushes, seed=1).dataset[1]):
        assert not torch.isclose(one, other[CONDITION]).any()
    whole = goal_data(pushes, "data.batch_size=16").dataset[1]
    dataset.world_size = 2
    first = dataset[1]
    dataset.rank = 1
    both = {name: torch.cat([first[name], value]) for name, value in dataset[1].items()}
    assert all(torch.equal(both[name], whole[name]) for name in whole)
    frozen = goal_data(pushes, "data.frozen_skills=true").dataset
    assert torch.equal(frozen[1][CONDITION], frozen[2][CONDITION])
    assert not torch.equal(frozen[1][OBSERVATION], frozen[2][OBSERVATION])


def test_states_are_normalised_where_asked(pushes):
    raw, dataset = goal_data(pushes).dataset, goal_data(pushes, "data.normalise=all").dataset
    mean, std = (dataset.owner.statistics()[f"state_{name}"] for name in ("mean", "std"))
    expected = (raw[0][GOAL] - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(dataset[0][GOAL], expected, rtol=1e-4, atol=1e-5)


# training


def test_the_command_trains_and_saves_what_acts(pushes, tmp_path):
    summary = train(pushes, tmp_path, f"data.validation={pushes}", "data.normalise=all")
    assert {f"validation/{name}_loss" for name in ("distance", "value", "critic", "actor")} <= summary.keys()
    bundle = hub.load(tmp_path)
    assert bundle.config["condition"] == "skill" and bundle.statistics["goals"]["p_random"] == 0.375
    skills = torch.eye(6)[:3]
    window = {"observation": torch.zeros(3, 2, 3), "condition": skills[:, None].expand(-1, 2, -1)}
    action = bundle.net(window)[0].mode()
    assert action.shape == (3, 2, 2) and not torch.equal(action[0], action[1])
    now = {name: value[:, 0] for name, value in window.items()}
    acted, _, _ = bundle.net.step(now, torch.ones(3, dtype=torch.bool), bundle.net.initial_state(3))
    torch.testing.assert_close(acted.mode(), action[:, 0])
    trained = {n.removeprefix("net."): v for n, v in weights(tmp_path).items() if n.startswith("net.")}
    assert all(torch.equal(value, trained[name]) for name, value in bundle.net.state_dict().items())
    train(pushes, tmp_path / "more", f"init={tmp_path}", "data.normalise=all")


@pytest.mark.parametrize("ema", ["before", "after"])
def test_targets_follow_the_parameters_from_before_or_after_the_step(ema, pushes, tmp_path):
    options = ["steps=3", "checkpoint_every=1", "keep_checkpoints=3", "method.tau=0.25", "method.optimizer.lr=0.01"]
    train(pushes, tmp_path, f"method.ema={ema}", *options)
    before, now = (weights(tmp_path, name) for name in ("last-1", "last"))
    targets = [name for name in now if name.startswith("target_")]
    source = before if ema == "before" else now
    for name in targets:
        online = source[name.replace("target_", "net.", 1)]
        torch.testing.assert_close(now[name], torch.lerp(before[name], online, 0.25), rtol=0, atol=0)
        assert not torch.equal(now[name], before[name]) or not before[name].any()


def test_two_stages_train_one_part_after_the_other(pushes, tmp_path):
    options = ["method.schedule=two_stage", "steps=4", "checkpoint_every=1", "keep_checkpoints=5"]
    train(pushes, tmp_path, *options)
    early, middle, late = (weights(tmp_path, name) for name in ("last-3", "last-2", "last"))  # after 1, 2 and 4 steps
    for name, value in late.items():
        phi = name.startswith("net.representation")
        if name.startswith("net.") and name.endswith("0.weight"):
            assert torch.equal(early[name], middle[name]) != phi
            assert torch.equal(middle[name], value) == phi
    options = ["method.schedule=frozen", f"init={tmp_path}"]
    train(pushes, tmp_path / "frozen", *options)
    for name, value in weights(tmp_path / "frozen").items():
        if name.startswith("net.") and name.endswith("0.weight"):
            assert torch.equal(value, late[name]) == name.startswith("net.representation")


def test_discrete_actions_and_a_mean_that_is_saved(walks, tmp_path):
    train(walks, tmp_path, "method.net.features=centred", "method.net.metric=quasimetric")
    net = hub.load(tmp_path).net
    assert net.n_actions == 4 and net.representation.mean.any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.goals.p_current=0.5"], "add up to 1"),
        (["data.goals.within=near"], "within='near'"),
        (["data.normalise=task"], "normalise='task'"),
        (["data.skills=5"], "skills have 6 numbers, data.skills=5"),
        (["method.schedule=alternate"], "schedule='alternate'"),
        (["method.schedule=frozen"], "give init="),
        (["method.tau=0"], r"tau=0.*\(0, 1\]"),
        (["method.ema=during"], "ema='during'"),
        (["method.net.metric=l1"], "metric='l1'"),
        (["method.net.n_actions=3"], "n_actions=3, the data None"),
        (["method.gamma=1"], "gamma=1"),
        (["method.clip=-1"], "clip=-1"),
        (["method.representation_steps=2"], "is for method.schedule=two_stage"),
        (["method.schedule=two_stage", "method.representation_steps=9", "steps=9"], "leave nothing for phi, or for"),
        (["data.train=null"], "data.train is not set"),
    ],
)
def test_wrong_inputs(overrides, message, pushes, tmp_path):
    with pytest.raises(DataError, match=message):
        train(pushes, tmp_path, *overrides)


TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "two_stage"])
def test_two_processes_equal_one(schedule, pushes, tmp_path):
    options = [*TINY, f"data.train={pushes}", f"method.schedule={schedule}", "steps=4"]
    unused = ["trainer.strategy=ddp_find_unused_parameters_true"] if schedule == "two_stage" else []
    for folder, more in (("one", ["data.batch_size=8"]), ("two", [*TWO, *unused, "data.batch_size=4"])):
        line = [sys.executable, "-m", "foundation.pretrain", f"run.dir={tmp_path / folder}", *options, *more]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4  # sums in another order; lr 3e-4


# learning

QUICK = ["method=hilp", "method.net.width=64", "data.batch_size=256", "method.tau=0.03", "method.optimizer.lr=1e-3"]


def learned(walks, folder, steps):
    """(Spearman correlation of latent distances with least numbers of steps, the policy)"""
    run(pretrain, "pretrain", *QUICK, f"steps={steps}", f"data.train={walks}", f"run.dir={folder}")
    net, cells = hub.load(folder).net, torch.from_numpy(np.stack([state(cell) for cell in CELLS]))
    with torch.no_grad():
        phi = net.representation.latent(cells)
    apart = ~np.eye(len(CELLS), dtype=bool)
    return [spearmanr(found[apart], distances()[apart]).statistic for found in
            (torch.cdist(phi, phi).numpy(), torch.cdist(cells, cells).numpy())], net, phi  # fmt: skip


def test_it_learns_how_far_places_are(walks, tmp_path):
    (ours, as_the_crow_flies), *_ = learned(walks, tmp_path, 200)
    assert ours > 0.9 > as_the_crow_flies + 0.05


@pytest.mark.slow
def test_skills_reach_goals(walks, tmp_path):
    """Places at least 3 steps apart, in three times the least number of steps: random walks reach 7 % of them."""
    (ours, _), net, phi = learned(walks, tmp_path, 1000)
    generator, reached = torch.Generator().manual_seed(0), []
    for start, goal in np.argwhere(distances() >= 3):
        cell = CELLS[start]
        for _ in range(3 * distances()[start, goal]):
            skill = torch.nn.functional.normalize(phi[goal] - phi[CELLS.index(cell)], dim=0)
            now = {"observation": torch.from_numpy(state(cell))[None], "condition": skill[None]}
            with torch.no_grad():
                cell = moved(cell, int(net(now)[0].sample(generator)))
            if cell == CELLS[goal]:
                break
        reached.append(cell == CELLS[goal])
    assert ours > 0.97 and np.mean(reached) > 0.3
