"""The command on the real game, shrunk: from scratch, from a hub folder, and its errors."""

import csv
import json

import pytest
import torch
from hydra import compose, initialize_config_dir

from foundation.evaluate import load_policy
from foundation.finetune import main
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError

TINY = (
    *("task.env.episode_tics=60", "episodes=2", "policy.size=[16,20]", "policy.net.dim=16", "policy.net.layers=1"),
    *("policy.net.heads=2", "policy.net.channels=[4,4]", "policy.net.context=8"),
    *("algo.stream.environments=2", "algo.stream.minibatches=2", "algo.stream.chunk=16", "frames=96"),
)


def finetune(folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("finetune", [f"run.dir={folder}", *TINY, *overrides])
    execute(main.function, cfg)
    with open(folder / "metrics.csv") as file:
        return json.loads((folder / "summary.json").read_text()), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    return folder, *finetune(folder)


def test_from_scratch_leaves_numbers_rows_and_a_policy(scratch):
    folder, summary, rows = scratch
    assert summary["finetune/iterations"] == len(rows) == 3
    assert 90 <= summary["finetune/train_frames"] <= 96  # final observations are not frames
    assert summary["finetune/train_frames"] == int(rows[-1]["frames"])
    for who in ("random", "initial", "finetune"):
        assert summary[f"{who}/return_low"] <= summary[f"{who}/return"] <= summary[f"{who}/return_high"]
        assert 0 <= summary[f"{who}/success_low"] <= summary[f"{who}/success_high"] <= 1
    assert (folder / "last.ckpt").exists()
    bundle = load_policy(folder)
    assert bundle.size == (16, 20)
    assert bundle.spec.name == "doom"
    assert "policy/kl" not in rows[0]


def test_from_a_hub_folder_it_is_anchored(scratch, tmp_path):
    folder, _, _ = scratch
    summary, rows = finetune(tmp_path, f"init={folder}", "evaluate_before=false", "algo.agent.train_encoder=false")
    assert [float(row["policy/rho"]) for row in rows] == pytest.approx([0.2, 0.2 * 0.9995, 0.2 * 0.9995**2], rel=1e-5)
    assert float(rows[0]["policy/step_mismatch"]) < 1e-4
    assert "initial/return" not in summary
    before, after = (load_policy(path).net.state_dict() for path in (folder, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("head") for name in changed)
    assert not any(name.startswith("encoder") for name in changed)


def test_kl_0_is_the_unanchored_arm(scratch, tmp_path):
    _, rows = finetune(tmp_path, f"init={scratch[0]}", "algo.kl=0", "evaluate_before=false", "episodes=1", "frames=32")
    assert "policy/kl" not in rows[0]


def test_user_errors_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="trainer=cpu"):
        finetune(tmp_path, "trainer.devices=2", "evaluate_before=false")
    with pytest.raises(DataError, match="do not divide"):
        finetune(tmp_path, "algo.stream.minibatches=3", "evaluate_before=false")
    with pytest.raises(DataError, match="not a hub folder"):
        finetune(tmp_path, "init=/no/such/folder")
