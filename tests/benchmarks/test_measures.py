"""The measuring functions of benchmarks on tiny play; their timings are for machines without other work."""

import hydra
import numpy as np
import pytest
import torch

from benchmarks import behaviour_cloning, label_noise, window_position
from foundation.pretrain import main
from models.video_policy import VideoPolicy
from pipelines.actions import DOOM, ActionCodec
from pipelines.command import CONFIGS, execute

NET = {"channels": "[8,16,16,16,16]", "dim": 32, "heads": 2, "window": 16, "dropout": 0}


@pytest.fixture(scope="module")
def labeller(play_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("idm")
    options = ["method.optimizer.warmup_steps=5", "method.optimizer.lr=0.003", "method.optimizer.schedule=constant"]
    options += [f"method.net.{name}={value}" for name, value in NET.items()]
    options += [f"run.dir={folder}", f"data.train={play_shards}", "data.stride=4", "data.augment=null", "steps=80"]
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = hydra.compose("pretrain", ["method=idm", "data.batch_size=8", *options])
    execute(main.function, cfg)
    return folder


def test_label_noise_scores_every_variant_and_a_shift_costs_events(labeller, play_shards):
    result = label_noise.measure(labeller, play_shards)
    assert list(result) == ["as they are", "jpeg 40", "shifted -1", "shifted +1"]
    plain = result["as they are"]
    assert plain["event_f1_collar0"] > 0.5
    for variant in ("shifted -1", "shifted +1"):
        assert result[variant]["event_f1_collar0"] < plain["event_f1_collar0"] - 0.2
        assert result[variant]["event_f1_collar2"] > plain["event_f1_collar2"] - 0.1  # within the collar
        assert result[variant]["camera_r2"] < plain["camera_r2"]


def test_a_shift_moves_labels_later_and_repeats_the_ends():
    assert label_noise.shifted(np.arange(5), 1).tolist() == [0, 0, 1, 2, 3]
    assert label_noise.shifted(np.arange(5), -1).tolist() == [1, 2, 3, 4, 4]


def test_jpeg_changes_pixels_a_little():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    poor = label_noise.jpeg(frames, 40)
    assert poor.shape == frames.shape and poor.dtype == np.uint8 and (poor != frames).any()
    flat = np.full((1, 16, 16, 3), 100, np.uint8)
    assert np.abs(label_noise.jpeg(flat, 40).astype(int) - 100).max() <= 3


def test_window_position_reports_ratios_with_intervals(labeller, held_out_shards):
    result = window_position.measure(labeller, held_out_shards, edge=2)
    assert result["window"] == 16 and result["windows"] == (96 - 16) // 4 + 1
    for row in result["errors"].values():
        low, high = row["intervals"]["first_ratio"]
        assert np.isnan(row["first_ratio"]) or low <= row["first_ratio"] <= high
    assert {"joint_exact", "camera_bin", "nll", "keys:attack"} <= set(result["errors"])


def test_cloning_frame_by_frame_has_the_loss_and_nearly_the_gradient_of_a_chunk():
    codec = ActionCodec(DOOM)
    classes = (codec.n_buttons, codec.n_camera, codec.camera_on, codec.camera_null)
    torch.manual_seed(0)
    policy = VideoPolicy(16, 20, *classes, context=4, channels=(4, 4), dim=16, layers=1, heads=2)
    window, action = behaviour_cloning.random_play((16, 20), codec, 6)
    found = {}
    for length in (1, 6):
        loss = behaviour_cloning.clone(policy, window, action, length)
        found[length] = loss, policy.head.buttons.weight.grad.clone()
    assert found[1][0] == pytest.approx(found[6][0], abs=1e-5)
    torch.testing.assert_close(found[1][1], found[6][1], atol=1e-5, rtol=1e-4)  # of the head: memory has no part in it
