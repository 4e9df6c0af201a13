import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from foundation import hub, pretrain
from foundation.actors import SequenceActor, UniformActor
from foundation.evaluate import play
from foundation.pretraining.trajectory_data import TrajectoryData
from models.bins import from_bins
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.trajectory_windows import as_is
from tests.foundation.vector_world import SPACES, Push, write_pushes

TINY = ["method.net.width=32", "method.net.layers=1", "method.net.heads=2", "method.net.context=4"]
LEARN = ["steps=250", "method.optimizer.lr=3e-3", "method.optimizer.warmup_steps=20", "method.net.dropout=0"]


def train(data, folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        options = ["method=mddt", f"data.train={data}", f"run.dir={folder}", "data.batch_size=32", *TINY, *overrides]
        return execute(pretrain.main.function, compose("pretrain", options))


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"))


@pytest.fixture(scope="module")
def learned(pushes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mddt")
    train(pushes, folder, *LEARN)
    return hub.load(folder)


def worlds(*tasks):
    made = [Push() for _ in tasks]
    for world, task in zip(made, tasks, strict=True):
        world.tags = {"task": task}
    return made


def achieved(actor, task, episodes=12):
    return float(np.mean([episode.returns for episode in play(actor, worlds(*[task] * 4), list(range(episodes)))]))


@pytest.mark.parametrize("task", ["push", "shove"])
def test_it_does_what_is_asked_for_and_beats_random(learned, task):
    got = [achieved(SequenceActor(learned, target), task) for target in (-6.0, 0.0, 6.0)]
    assert got == sorted(got)
    assert got[-1] > achieved(UniformActor(SPACES), task) + 3


def test_every_environment_is_asked_in_the_units_of_its_task(learned):
    tasks = learned.statistics["tasks"]
    actor, seen = SequenceActor(learned, "q1"), []
    step = learned.net.step
    actor.policy.step = lambda now, first, state: (seen.append(now), step(now, first, state))[1]
    try:
        play(actor, worlds("shove", "push"), [0, 1])
    finally:
        del actor.policy.step
    best = [tasks[name]["returns"]["1"] / tasks[name]["returns_scale"] for name in ("shove", "push")]
    np.testing.assert_allclose(seen[0]["condition"][:, 0], best, rtol=1e-6)
    taken = seen[0]["condition"] - seen[1]["condition"]
    np.testing.assert_allclose(taken, seen[1]["reward"], atol=1e-6)
    mean = np.array(learned.statistics["state_mean"])
    assert mean.shape == (2, 3) and learned.statistics["names"] == ["push", "shove"]


def test_actions_are_centres_of_bins_in_the_units_of_the_environment(learned):
    actor, acted = SequenceActor(learned, 6.0), []
    world = worlds("push")[0]
    world.step, step = lambda action: (acted.append(action), step(action))[1], world.step
    play(actor, [world], [0])
    first = np.array(acted)[:, 0] / 2  # the first action goes from -2 to 2
    centres = from_bins(torch.arange(64), 64).numpy()
    assert np.abs(first[:, None] - centres).min(1).max() < 1e-6


def test_tasks_nobody_taught(learned):
    with pytest.raises(DataError, match="jump"):
        play(SequenceActor(learned), worlds("jump"), [0])


def data_of(pushes, **change):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        options = dict(compose("pretrain", ["method=mddt", f"data.train={pushes}", *TINY]).data)
    options.pop("_target_")
    return TrajectoryData(**{**options, **change}, steps=3, seed=0)


def test_returns_and_rewards_of_a_task_are_divided_by_its_own_largest(pushes):
    data = data_of(pushes)
    for task, scale in ((n, v["returns_scale"]) for n, v in data.statistics()["tasks"].items()):
        episode = next(i for i, tags in enumerate(data.data.tags) if tags["task"] == task)
        start = data.data.offsets[episode]
        batch = as_is(data.dataset.__getitems__([start]))
        np.testing.assert_allclose(batch["scaled_reward"] * scale, batch["reward"], rtol=1e-5)
        np.testing.assert_allclose(batch["condition"][0, 0, 0] * scale, data.data.returns[episode], rtol=1e-4)
        assert scale == np.abs(data.data.returns[[tags["task"] == task for tags in data.data.tags]]).max()


def test_statistics_of_the_first_policy_go_on(pushes):
    first, second = data_of(pushes, where={"task": "push"}), data_of(pushes)
    shifted = {**first.statistics(), "state_mean": [[9.0, 9.0, 9.0]]}
    shifted["tasks"] = {"push": {**shifted["tasks"]["push"], "returns_scale": 77.0}}
    own = second.statistics()
    second.inherit(shifted)
    after = second.statistics()
    assert after["names"] == ["push", "shove"]
    assert after["state_mean"] == [[9.0, 9.0, 9.0], own["state_mean"][1]]
    assert after["tasks"]["push"]["returns_scale"] == 77.0 and after["tasks"]["shove"] == own["tasks"]["shove"]
    batch = second.dataset.__getitems__([0])  # an episode of shove, then one of push
    row = int(second.data.offsets[1])
    assert second.dataset.__getitems__([row])["condition"].abs().max() < 1 < 77 / batch["condition"].abs().max()
    with pytest.raises(DataError, match="set them alike"):
        data_of(pushes, return_scale=None).inherit(shifted)


def test_what_does_not_fit_is_refused(pushes, tmp_path):
    levers = write_pushes(tmp_path / "levers", discrete=True)
    for data, overrides, message in (
        (levers, [], "method=dt"),
        (pushes, ["method.net.layout=interleaved", "method.net.n_actions=null"], "layout=tokenised"),
        (pushes, ["method.only=[hed]"], "matches no parameter"),
    ):
        with pytest.raises(DataError, match=message):
            train(data, tmp_path / "run", "steps=1", *overrides)


def test_only_what_is_named_learns(pushes, tmp_path):
    train(pushes, tmp_path / "a", "steps=1")
    train(pushes, tmp_path / "b", "steps=2", f"init={tmp_path / 'a'}", "method.only=[head]")
    before, after = (hub.load(tmp_path / name).net.state_dict() for name in "ab")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
