import csv
import json

import hydra
import pytest

from foundation import hub
from foundation.checkpoints import resume_path
from foundation.pretrain import main
from foundation.pretraining.task import rate
from foundation.training import made
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.video import scan
from tests.foundation.vector_world import write_pushes

SMALL = {
    "idm": ["method.net.channels=[4,8,8]", "method.net.dim=32", "method.net.heads=2", "method.net.window=16",
            "data.stride=8", "method.net.dropout=0", "data.augment=null", "method.optimizer.warmup_steps=5",
            "method.optimizer.lr=0.003"],
    "vpt": ["method.net.channels=[4,8,8,8]", "method.net.dim=32", "method.net.heads=2", "method.net.context=8",
            "data.length=16", "method.optimizer.warmup_steps=5"],
}  # fmt: skip


def configure(method, folder, train, *overrides):
    small = [f"method={method}", f"run.dir={folder}", f"data.train={train}", "data.batch_size=4", *SMALL[method]]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose("pretrain", [*small, *overrides])


def run(*args):
    return execute(main.function, configure(*args))


@pytest.mark.parametrize("method", ["idm", "vpt"])
def test_two_steps_leave_a_model_that_loads(method, play_shards, held_out_shards, tmp_path):
    summary = run(method, tmp_path, play_shards, "steps=2", f"data.validation={held_out_shards}")
    assert summary["steps"] == 2
    assert json.loads((tmp_path / "summary.json").read_text())["frames/train"] == 192
    bundle = hub.load(tmp_path)
    assert bundle.size == (32, 40)
    assert bundle.fps == 17.5
    assert bundle.spec.name == "doom"
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch") or "train/loss" in (
        tmp_path / "metrics.csv"
    ).read_text()


def test_idm_learns_the_keys_and_turns_of_another_recording(make_play, held_out_shards, tmp_path):
    train = make_play(tmp_path / "train", videos=10)
    options = ["steps=120", f"data.validation={held_out_shards}", "data.batch_size=8"]
    options += ["method.optimizer.schedule=constant", "method.net.channels=[16,16,32]"]
    summary = run("idm", tmp_path, train, *options)
    assert summary["idm/camera_r2_yaw"] > 0.6  # predicting the mean scores 0
    assert summary["idm/button_f1"] > summary["idm/majority_f1"] + 0.3
    assert summary["idm/nll"] < 0.7 * summary["idm/majority_nll"]
    assert len(scan(tmp_path / "heldout.mp4")) == 96  # frames, with predicted and true actions drawn on them
    report = json.loads((tmp_path / "label_report.json").read_text())
    assert report["keys"]["attack"]["recall"] > 0.8


def test_soft_targets_and_null_handling_are_options(play_shards, tmp_path):
    for nulls in ("drop", "mask", "keep"):
        run("vpt", tmp_path / nulls, play_shards, "steps=1", f"data.nulls={nulls}")
    with pytest.raises(DataError, match="pseudo-labels"):
        run("vpt", tmp_path / "soft", play_shards, "steps=1", "data.targets=soft")


@pytest.mark.parametrize("method", ["idm", "vpt"])
def test_a_stopped_run_continues_to_the_same_weights(method, play_shards, tmp_path):
    straight = run(method, tmp_path / "straight", play_shards, "steps=6", "method.optimizer.schedule=constant")
    run(method, tmp_path / "stopped", play_shards, "steps=3", "method.optimizer.schedule=constant")
    resumed = run(method, tmp_path / "stopped", play_shards, "steps=6", "method.optimizer.schedule=constant")
    assert straight["steps"] == resumed["steps"] == 6
    one, other = (hub.load(tmp_path / name).net.state_dict() for name in ("straight", "stopped"))
    assert all((one[name] == other[name]).all() for name in one)
    again = run(method, tmp_path / "stopped", play_shards, "steps=6", "method.optimizer.schedule=constant")
    assert again["train/loss"] == resumed["train/loss"] == straight["train/loss"]
    lines = (tmp_path / "stopped" / "metrics.csv").read_text().splitlines()
    steps = [int(row["step"]) for row in csv.DictReader(lines)]
    assert steps[0] < 3 <= steps[-1]  # the first part's rows are still there


def test_init_continues_from_a_model_of_the_same_build_only(play_shards, tmp_path):
    run("vpt", tmp_path / "first", play_shards, "steps=1")
    run("vpt", tmp_path / "second", play_shards, "steps=1", f"init={tmp_path / 'first'}")
    with pytest.raises(DataError, match="context"):
        run("vpt", tmp_path / "third", play_shards, "steps=1", f"init={tmp_path / 'first'}", "method.net.context=4")


def losses(folder):
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "validation/loss") if row.get(name)]


def test_cached_features_give_the_losses_of_frames(play_shards, held_out_shards, tmp_path):
    frozen = ["method.train_encoder=false", f"data.validation={held_out_shards}"]
    run("vpt", tmp_path / "init", play_shards, "steps=1")
    for features in ("frames", "cached"):
        options = [*frozen, f"init={tmp_path / 'init'}", f"data.features={features}", "steps=3"]
        run("vpt", tmp_path / features, play_shards, *options)
    one, other = losses(tmp_path / "frames"), losses(tmp_path / "cached")
    assert len(one) >= 2
    assert other == pytest.approx(one, rel=1e-3)
    before, after = (hub.load(tmp_path / name).net.state_dict() for name in ("init", "cached"))
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed and not any(name.startswith("encoder") for name in changed)


def test_cached_features_of_a_trained_or_random_encoder_are_refused(play_shards, tmp_path):
    cached = "data.features=cached"
    with pytest.raises(DataError, match="train_encoder=false"):
        run("vpt", tmp_path, play_shards, cached, "init=somewhere")
    with pytest.raises(DataError, match="train_encoder=false"):
        run("idm", tmp_path, play_shards, cached)
    with pytest.raises(DataError, match="random encoder"):
        run("vpt", tmp_path, play_shards, cached, "method.train_encoder=false")
    with pytest.raises(DataError, match=r"one of .*stem"):
        run("vpt", tmp_path, play_shards, "data.features=disk")


def test_missing_or_actionless_data_is_explained(make_play, tmp_path):
    with pytest.raises(DataError, match=r"data\.train"):
        run("idm", tmp_path, "null")
    make_play(tmp_path / "clips", videos=1, actions=False)
    with pytest.raises(DataError, match="label it first"):
        run("vpt", tmp_path / "run", tmp_path / "clips")
    with pytest.raises(DataError, match=r"trajectories of vectors, e.g. .*method=dt"):
        run("vpt", tmp_path, write_pushes(tmp_path / "pushes", 2))


def test_an_unknown_schedule_is_refused(play_shards, tmp_path):
    with pytest.raises(DataError, match="constant"):
        run("vpt", tmp_path, play_shards, "steps=1", "method.optimizer.schedule=zigzag")


def test_schedules():
    assert [rate(t, 2, 6, "linear") for t in range(7)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rate(4, 2, 6, "cosine") == pytest.approx(0.5)
    assert rate(5, 2, 6, "constant") == 1


def test_a_damaged_checkpoint_is_told(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK but not much more")
    with pytest.raises(DataError, match="whole"):
        resume_path(tmp_path, "auto", {})
    assert resume_path(tmp_path, "never", {}) is None


@pytest.mark.parametrize("node", [{}, {"_target_": "collections.Nothing"}, {"_target_": "nowhere.Thing"},
                                  {"_target_": "fractions.Fraction", "top": 1}])  # fmt: skip
def test_a_config_that_does_not_fit_its_class_is_told(node):
    with pytest.raises(DataError, match="does not fit it"):
        made(node)
    assert made({"_target_": "fractions.Fraction", "numerator": 1}, denominator=2) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps=0", "steps=0"),
        ("data.batch_size=0", "batch_size=0"),
        ("best=validation/loss", "set data.validation"),
        ("method.optimizer.lr=-1", "method.optimizer: Invalid learning rate"),
        ("method.optimizer.lr=1e30", "training diverged"),
    ],
)
def test_runs_that_would_train_or_keep_nothing_are_refused(change, message, play_shards, tmp_path):
    with pytest.raises(DataError, match=message):
        run("idm", tmp_path, play_shards, change)
