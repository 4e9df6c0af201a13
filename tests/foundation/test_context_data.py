"""Contexts from shards: whole runs of one task in order, true transitions at the ends of episodes, held-out tasks."""

import numpy as np
import pytest
import torch

from foundation import hub, pretrain
from foundation.pretraining.context_data import ContextData
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, Trajectories, write_episode
from tests.foundation.running import config, run

LEVERS = 3
OPTIONS = {
    "where": None, "episodes": None, "by": "task", "validation": None, "heldout": None, "on_damage": "stop",
    "batch_size": 16, "workers": 0, "length": 12, "target": "optimal", "order": "random", "cut": 0.5,
    "shuffle": False, "reward_scale": 1.0, "normalise": None, "steps": 10, "seed": 0,
}  # fmt: skip


def write_levers(root, tasks=6, episodes=5, steps=5, shown=1, tagged=None, **more):
    """Task i pays for lever i % 3. State: [task, episode, step] * shown, the step after the last one included."""
    rng = np.random.default_rng(0)
    with ShardWriter(root) as writer:
        for task in range(tasks):
            for episode in range(episodes):
                states = shown * np.array([[task, episode, step] for step in range(steps + 1)], np.float32)
                action = rng.integers(0, LEVERS, steps)
                arrays = {
                    "observation": states[:-1], "final_observation": states[-1], "action": action,
                    "reward": action == task % LEVERS, "optimal_action": np.full(steps, task % LEVERS),
                    "terminated": np.zeros(steps, bool), "truncated": np.arange(steps) == steps - 1, **more,
                }  # fmt: skip
                tags = {"task": f"lever{task}", "half": episode // 3, **(tagged or {})}
                write_episode(writer, f"t{task}e{episode}", arrays, Spaces(3, 1, n_actions=LEVERS), 1.0, "here", tags)
    return root


@pytest.fixture(scope="module")
def levers(tmp_path_factory):
    return write_levers(tmp_path_factory.mktemp("levers"))


def made(root, **changes):
    return ContextData(str(root), **{**OPTIONS, **changes})


def columns(batch):
    return batch["observation"].long().unbind(-1)  # task, episode, step


@pytest.mark.parametrize("order", ["random", "return", "recorded"])
@pytest.mark.parametrize("cut", [0.0, 1.0])
def test_a_context_is_a_run_of_one_task_across_episodes(levers, order, cut):
    data = made(levers, order=order, cut=cut, batch_size=64)
    batch = data.dataset[3]
    task, episode, step = columns(batch)
    assert batch["mask"].all() and (task == task[:, :1]).all()
    assert len(task[:, 0].unique()) == 6
    ends = step[:, :-1] == 4
    assert ((episode[:, 1:] != episode[:, :-1]) == ends).all()  # no part of an episode is left out
    assert (step[:, 1:] == torch.where(ends, 0, step[:, :-1] + 1)).all()
    assert (step[:, 0] == 0).all() if cut == 0 else len(step[:, 0].unique()) > 2
    assert (batch["target"] == task % 3).all()
    assert (batch["scaled_reward"] == (batch["action"] == task % 3)).all()
    _, _, following = batch["next_observation"].unbind(-1)
    assert (following == step + 1).all()  # at an end the final observation, not the start of the next episode
    if order == "recorded":
        assert (episode[:, 1:] - episode[:, :-1] == ends.long()).all()
    if order == "return":
        returns = Trajectories.load(levers).returns.reshape(6, 5)[task, episode]
        assert (np.diff(returns, axis=1) >= 0).all() and (np.diff(returns, axis=1) > 0).any()


def test_batches_are_a_function_of_seed_and_step(levers):
    one, two = made(levers).dataset, made(levers).dataset
    assert all(torch.equal(one[4][name], two[4][name]) for name in one[4])
    assert not torch.equal(one[4]["observation"], one[5]["observation"])
    assert not torch.equal(one[4]["observation"], made(levers, seed=1).dataset[4]["observation"])
    two.rank, two.world_size, two.batch_size, whole = 1, 2, 8, one[4]["observation"]
    assert torch.equal(two[4]["observation"], whole[8:])


def test_short_tasks_are_padded(levers):
    batch = made(levers, length=40, cut=0.0).dataset[0]
    assert batch["mask"].sum(1).tolist() == [25] * 16
    assert (batch["observation"][:, 25:] == 0).all() and (batch["weight"] == batch["mask"]).all()


def test_tags_define_the_task(levers):
    batch = made(levers, by=["task", "half"], length=20, cut=0.0, batch_size=64).dataset[0]
    episode = columns(batch)[1]
    assert set(batch["mask"].sum(1).tolist()) == {10, 15}
    assert ((episode // 3 == episode[:, :1] // 3) | ~batch["mask"]).all()


def test_held_out_tasks_are_held_out_whole(levers):
    data = made(levers, heldout=["lever1", "lever4"])
    assert columns(data.dataset[0])[0].unique().tolist() == [0, 2, 3, 5]
    assert columns(data.validation[0])[0].unique().tolist() == [1, 4]
    shared = made(levers, validation=0.5)
    train, held_out = (set(columns(part[0])[0].unique().tolist()) for part in (shared.dataset, shared.validation))
    assert len(train) == len(held_out) == 3 and not train & held_out


def test_single_transitions_are_shuffled_and_keep_what_they_led_to(tmp_path, levers):
    following = np.full((5, 3), 9.0)
    independent = write_levers(tmp_path / "own", next_observation=following, tagged={"ordered": False})
    data = made(independent, shuffle=True, length=5, cut=0.0)
    batch = data.dataset[0]
    assert (batch["next_observation"] == 9).all()
    steps = columns(batch)[2]
    assert (steps.sort(1).values == torch.arange(5)).all() and not (steps == torch.arange(5)).all()
    with pytest.raises(DataError, match="independent"):
        made(levers, shuffle=True)
    with pytest.raises(DataError, match="order of these"):  # nobody said that they are independent
        made(write_levers(tmp_path / "played", next_observation=following), shuffle=True)


def test_with_the_query_first_the_last_state_is_asked_about(levers):
    data = made(levers, length=40, cut=0.0)
    data.one_query = True
    batch = data.dataset[0]
    assert batch["query"][:, 0, 2].tolist() == [4] * 16 and batch["action"].shape == (16, 39)
    assert batch["weight"].sum(1).tolist() == [25] * 16 and batch["place"].tolist() == list(range(40))
    assert (batch["target"] == batch["query"][:, :, 0].long() % 3).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "best"}, "optimal"), ({"order": "sorted"}, "recorded"), ({"normalise": "task"}, "all"),
        ({"length": 0}, "at least 1"), ({"cut": 2}, "0..1"), ({"heldout": ["lever9"]}, "lever0"),
        ({"heldout": ["lever1"], "validation": 0.5}, "set one"),
        ({"heldout": ["lever1"], "validation": "folder"}, "set one"), ({"validation": 0.99}, "leave one part empty"),
        ({"by": "map"}, "no tag 'map'"), ({"by": None}, "name of a tag"), ({"by": []}, "name of a tag"),
        ({"reward_scale": 0.0}, "above 0"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_to_do(levers, changes, message):
    with pytest.raises(DataError, match=message):
        made(levers, **changes)


def test_single_episodes_cannot_be_put_in_order(tmp_path):
    with pytest.raises(DataError, match="has one episode; see data"):
        made(write_levers(tmp_path, episodes=1), order="return")


def test_positions_are_those_that_are_trained(levers):
    for length, context in ((12, 11), (1, 1)):
        data = made(levers, length=length)
        assert data.derive({"context": None})["context"] == context
        assert data.derive({"context": 50})["context"] == 50


def test_without_optimal_actions_what_was_done_is_learned(tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path) as writer:
        for i in range(4):
            arrays = {
                "observation": rng.normal(size=(6, 2)), "final_observation": np.zeros(2), "reward": np.ones(6),
                "action": rng.uniform(-1, 1, (6, 2)), "terminated": np.zeros(6, bool), "truncated": np.arange(6) == 5,
            }  # fmt: skip
            spaces = Spaces(2, 2, low=(-2.0,) * 2, high=(2.0,) * 2)
            write_episode(writer, f"e{i}", arrays, spaces, 5.0, "here", {"task": str(i % 2)})
    with pytest.raises(DataError, match="target=action"):
        made(tmp_path)
    batch = made(tmp_path, target="action", normalise="all").dataset[0]
    assert torch.equal(batch["target"], batch["action"]) and batch["target"].shape == (16, 12, 2)
    assert batch["observation"].abs().max() < 4
    common = ["method=dpt", "data=contexts", f"data.train={tmp_path}", "data.target=action", "data.length=10"]
    small = ["steps=2", "method.net.width=16", "method.net.layers=1", "method.net.query=last", "data.batch_size=4"]
    for loss in ("mse", "nll"):
        folder = tmp_path / loss
        summary = run(pretrain, "pretrain", *common, *small, f"method.loss={loss}", f"run.dir={folder}")
        assert summary["train/loss"] == pytest.approx(summary[f"train/{loss}"])
        assert hub.load(folder).net.log_std.requires_grad


@pytest.mark.parametrize("query", [pytest.param("first", marks=pytest.mark.slow), "last"])
def test_what_the_context_tells_is_learned_on_held_out_tasks(tmp_path, query):
    train = write_levers(tmp_path / "shards", tasks=12, episodes=20, shown=0)
    options = ["method=dpt", "data=contexts", f"data.train={train}", "data.heldout=[lever9,lever10,lever11]"]
    options += ["data.length=16", "data.normalise=null", "steps=60", "validate_every=60", f"run.dir={tmp_path}"]
    options += [f"method.net.query={query}", "method.net.width=32", "method.net.layers=2", "data.batch_size=32"]
    options += ["method.optimizer.lr=3e-3", "method.optimizer.schedule=cosine"]
    summary = run(pretrain, "pretrain", *options)
    assert summary["validation/accuracy"] > 0.6  # after no transition a third, after about five all


def test_a_net_of_another_kind_is_refused(levers, tmp_path):
    common = [f"data.train={levers}", f"run.dir={tmp_path}", "steps=1", "data.length=5"]
    with pytest.raises(DataError, match="learns from no contexts"):
        run(pretrain, "pretrain", "method=dt", "data=contexts", *common)
    with pytest.raises(DataError, match="data=contexts"):
        run(pretrain, "pretrain", "method=dpt", "data=trajectories", "method.net.context=5", *common)
    cfg = config("pretrain", "method=dpt", "data=contexts")
    assert cfg.data._target_.endswith("ContextData")
