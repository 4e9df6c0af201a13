import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from foundation import evaluate, hub, pretrain
from foundation.actors import SequenceActor, UniformActor, target_return
from foundation.envs import registry
from foundation.evaluate import play
from foundation.pretraining.trajectory_data import TrajectoryData
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from tests.foundation.vector_world import LENGTH, SPACES, Push, write_pushes

TINY = ["method.net.width=32", "method.net.layers=2", "method.net.context=4", "data.batch_size=32"]


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"))


def settings(train, folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("pretrain", ["method=dt", f"data.train={train}", f"run.dir={folder}", *TINY, *overrides])


def train(data, folder, *overrides):
    return execute(pretrain.main.function, settings(data, folder, *overrides))


@pytest.fixture(scope="module")
def learned(pushes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    options = ["steps=400", "method.optimizer.lr=2e-3", "method.optimizer.warmup_steps=20", "method.net.dropout=0"]
    return folder, train(pushes, folder, *options, "data.validation=0.2", "validate_every=200")


def achieved(bundle, target, episodes=20):
    played = play(SequenceActor(bundle, target), [Push() for _ in range(5)], list(range(episodes)))
    return float(np.mean([episode.returns for episode in played]))


def test_the_policy_does_what_is_asked_for(learned):
    """Returns from -8 to 8 were seen; the policy that is told which one to get comes near each, in order."""
    bundle = hub.load(learned[0])
    targets = (-6.0, -2.0, 2.0, 6.0)
    got = [achieved(bundle, target) for target in targets]
    assert got == sorted(got)
    assert max(abs(a - b) for a, b in zip(got, targets, strict=True)) < 1.5
    random = play(UniformActor(SPACES), [Push() for _ in range(5)], list(range(20)))
    assert got[-1] > np.mean([episode.returns for episode in random]) + 3


def test_a_list_of_targets_is_played_through(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "make", lambda task, seed=None, **options: Push())
    asked = ["task=reacher2d", "target=[-6,6]", "episodes=4", "baselines=[]"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("evaluate", [*asked, f"policy={learned[0]}", f"run.dir={tmp_path}"])
    numbers = execute(evaluate.main.function, cfg)
    assert numbers["evaluate/target=-6/return"] < -3 and numbers["evaluate/target=6/return"] > 3


def test_held_out_error_beats_the_mean_action(learned, pushes):
    summary = learned[1]
    assert summary["validation/mse"] < 0.75 * 1 / 3  # either dimension is uniform in [-1, 1], the second for nothing


def test_the_hub_folder_says_how_to_use_the_policy(learned):
    bundle = hub.load(learned[0])
    assert bundle.config["spaces"]["state_dim"] == 3
    assert {"state_mean", "state_std", "returns_scale", "returns", "context_size"} <= bundle.statistics.keys()
    assert bundle.statistics["context_size"] == 4 and bundle.config["condition"] == "return"


def test_acting_normalises_counts_down_and_clips(learned):
    bundle = hub.load(learned[0])
    actor, world = SequenceActor(bundle, 5.0), Push()
    seen = []
    step = actor.policy.step
    actor.policy.step = lambda now, first, state: (seen.append(now), step(now, first, state))[1]
    play(actor, [world], [3])
    scale = bundle.statistics["returns_scale"]
    asked = [float(now["condition"]) * scale for now in seen[:LENGTH]]
    actions = [now["action"][0] for now in seen[1:LENGTH]]
    rewards = [float(a[0].clamp(-1, 1)) * world.side for a in actions]
    np.testing.assert_allclose(asked, 5.0 - np.cumsum([0, *rewards]), atol=1e-4)
    assert [int(now["timestep"]) for now in seen[:LENGTH]] == list(range(LENGTH))
    elapsed = [float(now["observation"][0, 2]) for now in seen[:LENGTH]]
    mean, std = bundle.statistics["state_mean"][2], bundle.statistics["state_std"][2]
    np.testing.assert_allclose(np.array(elapsed) * std + mean, 10 * np.arange(LENGTH), atol=1e-3)


def test_auxiliary_predictions_and_discrete_actions_train(pushes, tmp_path):
    both = ["method.net.auxiliary=true", "method.auxiliary.state=1", "method.auxiliary.condition=0.5"]
    summary = train(pushes, tmp_path / "auxiliary", "steps=3", *both)
    assert summary["train/state"] > 0 and summary["train/condition"] > 0
    levers = write_pushes(tmp_path / "levers", discrete=True)
    summary = train(levers, tmp_path / "discrete", "steps=3", "data.normalise=task")
    assert 0 <= summary["train/accuracy"] <= 1
    with pytest.raises(DataError, match="set both, or neither"):
        train(pushes, tmp_path / "half", "steps=3", "method.net.auxiliary=true")


@pytest.mark.parametrize(
    ("condition", "layout"), [("delayed", "interleaved"), ("delayed", "merged"), ("none", "interleaved")]
)
def test_what_is_asked_for_stays_the_same(pushes, tmp_path, condition, layout):
    train(pushes, tmp_path, "steps=2", f"data.condition={condition}", f"method.net.layout={layout}")
    bundle = hub.load(tmp_path)
    actor, seen = SequenceActor(bundle, 4.0), []
    step = actor.policy.step
    actor.policy.step = lambda now, first, state: (seen.append(float(now["condition"])), step(now, first, state))[1]
    play(actor, [Push()], [0])
    wanted = 4.0 / bundle.statistics["returns_scale"] if condition == "delayed" else 0.0
    assert seen == [pytest.approx(wanted)] * len(seen) and seen


def test_targets(caplog):
    statistics = {"returns": {"0": 0.0, "0.5": 10.0, "1": 20.0}}
    assert target_return("q0.75", statistics) == 15.0
    assert target_return(None, statistics) == pytest.approx(18.0)
    assert target_return(7, statistics) == 7.0 and not caplog.text
    with pytest.raises(DataError, match="target=nan"):
        target_return(float("nan"), statistics)
    assert target_return(21, statistics) == 21.0 and "beyond the best return" in caplog.text
    for bad in ("best", "q2", "q"):
        with pytest.raises(DataError, match=r"q0\.9"):
            target_return(bad, statistics)
    with pytest.raises(DataError, match="give a number"):
        target_return("q0.5", {})


def test_options_of_the_data(pushes, tmp_path):
    def data(**change):
        options = {**settings(pushes, tmp_path).data, **change}
        options.pop("_target_")
        return TrajectoryData(**options, steps=5, seed=0)

    assert len(data().data) == 60
    assert {tags["task"] for tags in data(where={"task": "push"}).data.tags} == {"push"}
    assert len(data(episodes=7).data) == 7
    held = data(validation=0.25)
    assert (len(held.data), len(held.validation.data)) == (45, 15)
    best = data(sampling="topk", top=0.1)
    assert best.data.returns[best.weights > 0].min() >= np.sort(best.data.returns)[-6]
    for change, message in (({"train": None}, "foundation.collect"), ({"episodes": 61}, "the data hold 60"),
                            ({"sampling": "best"}, "sampling 'best'")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            data(**change)


def test_right_padding_changes_nothing(learned, pushes):
    net = hub.load(learned[0]).net
    windows = TrajectoryData(**{k: v for k, v in settings(pushes, "unused").data.items() if k != "_target_"},
                             steps=1, seed=0).dataset  # fmt: skip
    batch = windows.__getitems__([0, LENGTH - 2])  # the second window is half padding
    assert batch["mask"].sum(1).tolist() == [4, 2]
    alone = {name: value[1:, :2] for name, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(net(batch)[0].mean[1:, :2], net(alone)[0].mean, rtol=0, atol=1e-6)
