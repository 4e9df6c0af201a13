"""The VPT nets against the original's own output, and the promises of a policy's memory."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models.vpt import VptInverseDynamics, VptPolicy

DATA = Path(__file__).parents[1] / "data"
TINY = {
    "hidsize": 64, "attention_heads": 4, "attention_memory_size": 8, "timesteps": 8, "impala_width": 0.5,
    "img_shape": [32, 32, 8], "n_recurrence_layers": 2, "recurrence_type": "transformer", "single_output": True,
    "conv3d_params": {"inchan": 3, "outchan": 8, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
    "impala_kwargs": {"post_pool_groups": 1}, "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
}  # fmt: skip


def golden_parameter(key, shape):
    """The rule of tests/data/README.md: a parameter is a function of its name."""
    v = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("b_nd"):
        v = 0.2 * v
    elif len(shape) > 1:
        v = v / np.sqrt(np.prod(shape[1:]))
    else:
        v = 0.1 * v + key.endswith(("norm.weight", ".n.weight", "ln.weight"))
    return torch.as_tensor(np.asarray(v), dtype=torch.float32)


def golden_fill(net):
    state = {key: golden_parameter(key, tuple(value.shape)) for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


@pytest.fixture(scope="module")
def idm():
    return golden_fill(VptInverseDynamics(**TINY))


@pytest.fixture(scope="module")
def policy():
    net = VptPolicy(
        n_buttons=17, hidsize=32, attention_heads=4, attention_memory_size=12, timesteps=6, n_recurrence_layers=2,
        img_shape=[16, 16, 3], impala_width=0.25,
    )  # fmt: skip
    return golden_fill(net)  # norms and biases away from 1 and 0


@pytest.fixture(scope="module")
def golden():
    frames = np.random.RandomState(7).randint(0, 256, (1, 8, 32, 32, 3)).astype(np.uint8)
    assert frames.sum(dtype=np.int64) == 3_103_990
    assert frames[0, 0, 0, 0].tolist() == [175, 196, 25]
    with np.load(DATA / "vpt_golden" / "golden_idm_tiny.npz") as arrays:
        return torch.from_numpy(frames), {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def largest_error(answer, expected):
    return max(
        (answer.key_log_probs - expected["buttons"]).abs().max().item(),
        (answer.camera_log_probs - expected["camera"]).abs().max().item(),
    )


def random_frames(b, t, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, t, size, size, 3), dtype=torch.uint8, generator=generator)


def features_like(b, t, width=32, seed=0):
    return torch.randn(b, t, width, generator=torch.Generator().manual_seed(seed))


# the release's arithmetic


def test_golden_parameters_follow_the_rule():
    weight = golden_parameter("net.conv3d_layer.layer.weight", (8, 3, 5, 1, 1))
    torch.testing.assert_close(weight.flatten()[:3], torch.tensor([0.0189972, 0.0150096, 0.0782587]), atol=1e-6, rtol=0)
    assert weight.sum().item() == pytest.approx(2.789916, abs=1e-5)
    gain = golden_parameter("net.img_process.cnn.stacks.0.firstconv.norm.weight", (8,))
    torch.testing.assert_close(gain[:3], torch.tensor([0.9455133, 1.0879843, 0.9355406]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_idm_equals_the_release(idm, golden):
    frames, expected = golden
    answer = idm(frames)
    assert largest_error(answer, expected) < 1e-5  # the fixture allows 1e-4
    torch.testing.assert_close(answer.key_log_probs.exp().sum(-1), torch.ones(1, 8, 20))
    torch.testing.assert_close(answer.camera_log_probs.exp().sum(-1), torch.ones(1, 8, 2))


@torch.no_grad()
def test_idm_features_have_the_release_statistics(idm, golden):
    features = idm.encode(golden[0])
    assert features.mean().item() == pytest.approx(0.385407, abs=1e-5)
    assert features.std().item() == pytest.approx(0.586272, abs=1e-5)
    assert features[0, 0, :3].tolist() == pytest.approx([0.131850, 0, 0], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("change", ["lastlayer", "temperature"])
def test_golden_output_notices_a_changed_net(golden, change):
    frames, expected = golden
    changed = {"lastlayer": {"idm_skip_lastlayer": False}, "temperature": {"temperature": 1.0}}[change]
    assert largest_error(golden_fill(VptInverseDynamics(**TINY, **changed))(frames), expected) > 0.5


@torch.no_grad()
def test_channels_last_and_bf16_compute_the_same_function(golden):
    frames, expected = golden
    net = golden_fill(VptInverseDynamics(**TINY)).to(memory_format=torch.channels_last)
    assert net.net.conv3d_layer.layer.weight.shape == (8, 3, 5, 1, 1)
    assert not net.net.img_process.cnn.stacks[0].firstconv.layer.weight.is_contiguous()
    assert largest_error(net(frames), expected) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        answer = net(frames)
    assert answer.key_log_probs.dtype == torch.float32
    assert largest_error(answer, expected) < 0.1  # random nets differ by 0.05-0.07 in the original as well


@pytest.mark.parametrize(("name", "entries", "total"), [
    ("1x", 134, 71_326_654), ("2x", 134, 248_495_294), ("3x", 134, 531_520_958), ("idm", 100, 482_330_046),
    ("tiny", 100, 221_086),
])  # fmt: skip
def test_names_and_shapes_equal_the_official_files(name, entries, total):
    path = "vpt_golden/golden_idm_tiny_keys.json" if name == "tiny" else f"vpt_keys/keys_{name}.json"
    expected = json.loads((DATA / path).read_text())
    with torch.device("meta"):
        net = {
            "1x": lambda: VptPolicy(hidsize=1024, impala_width=4),
            "2x": lambda: VptPolicy(),
            "3x": lambda: VptPolicy(hidsize=3072, impala_width=12),
            "idm": lambda: VptInverseDynamics(),
            "tiny": lambda: VptInverseDynamics(**TINY),
        }[name]()
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert shapes == expected
    assert (len(shapes), sum(math.prod(s) for s in shapes.values())) == (entries, total)


def test_unknown_keywords_are_ignored_and_unsupported_values_are_not():
    VptInverseDynamics(**TINY, keyword_of_a_later_release=3)
    with pytest.raises(ValueError, match="use_pre_lstm_ln"):
        VptInverseDynamics(**TINY, use_pre_lstm_ln=True)
    with pytest.raises(ValueError, match="clipped_causal"):
        VptPolicy(attention_mask_style="none")


# inverse dynamics


@torch.no_grad()
def test_idm_trunk_has_no_notion_of_order(idm):
    features = features_like(2, 8, 64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    straight, shuffled = idm.decode(features), idm.decode(features[:, order])
    assert (straight.key_log_probs[:, order] - shuffled.key_log_probs).abs().max() < 1e-5


@torch.no_grad()
def test_idm_feature_sees_two_frames_either_side(idm):
    frames = random_frames(1, 9, 32)
    changed = frames.clone()
    changed[:, 4] = 255 - changed[:, 4]
    moved = (idm.encode(frames) - idm.encode(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


@torch.no_grad()
def test_idm_keeps_the_features_asked_for(idm):
    frames = random_frames(2, 7, 32)
    close(idm.encode(frames, keep=(2, 5)), idm.encode(frames)[:, 2:5])


@torch.no_grad()
def test_idm_mask_hides_padding(idm):
    features = features_like(2, 8, 64)
    mask = torch.arange(8) < 5
    padded = idm.decode(features, mask.expand(2, 8))
    alone = idm.decode(features[:, :5])
    torch.testing.assert_close(padded.key_log_probs[:, :5], alone.key_log_probs, atol=1e-5, rtol=0)


def test_encoding_in_pieces_equals_encoding_at_once(idm, golden, monkeypatch):
    whole = idm.encode(golden[0]).detach()
    monkeypatch.setattr(VptInverseDynamics, "frames_at_once", 3)
    with torch.no_grad():
        torch.testing.assert_close(idm.encode(golden[0]), whole, atol=1e-5, rtol=0)


def test_idm_gradients_reach_what_is_alive(golden):
    net = golden_fill(VptInverseDynamics(**TINY)).train()
    answer = net(golden[0])
    answer.log_prob(torch.zeros(1, 8, 20), torch.full((1, 8, 2), 5)).mean().backward()
    silent = {name for name, p in net.named_parameters() if p.grad is None}
    dead = ("r_layer.weight", "r_layer.bias", "b_nd")
    assert {name for name in silent if not name.endswith(dead)} == {
        "net.lastlayer.norm.weight", "net.lastlayer.norm.bias", "net.lastlayer.layer.weight",
    }  # fmt: skip


def test_wrong_frames_say_what_to_do(idm, policy):
    with pytest.raises(ValueError, match="resize"):
        idm.encode(random_frames(1, 4, 16))
    with pytest.raises(ValueError, match="uint8"):
        policy.encode(random_frames(1, 4).float())


def test_idm_for_another_world_and_size():
    net = VptInverseDynamics(6, 13, height=16, width=24, **TINY)
    answer = net(torch.zeros(2, 3, 16, 24, 3, dtype=torch.uint8))
    assert answer.key_log_probs.shape == (2, 3, 6, 2)
    assert answer.camera_log_probs.shape == (2, 3, 2, 13)


# the policy's memory; this one sees 6 frames


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frame_by_frame_equals_one_chunk(policy):
    frames = random_frames(2, 14)
    first = torch.zeros(2, 14, dtype=torch.bool)
    first[0, 5] = first[1, 9] = True
    latents, _ = policy.latent({"observation": frames, "first": first})
    state = policy.initial_state(2)
    for t in range(14):
        joint, latent, state = policy.step(frames[:, t], first[:, t], state)
        close(latent, latents[:, t])
        close(joint.buttons_log_probs, policy.head(latents[:, t]).buttons_log_probs)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(7, 7, 7), (1, 12, 8), (20, 1)])
def test_carried_chunks_equal_one(policy, lengths):
    features = features_like(2, sum(lengths))
    whole, _ = policy.latent({"features": features})
    state, parts = None, []
    for chunk in features.split(lengths, 1):
        latent, state = policy.latent({"features": chunk}, state)
        parts.append(latent)
    close(torch.cat(parts, 1), whole)


@torch.no_grad()
def test_first_inside_a_chunk_equals_splitting_there(policy):
    features = features_like(2, 11)
    first = torch.zeros(2, 11, dtype=torch.bool)
    first[:, 4] = True
    _, state = policy.latent({"features": features_like(2, 3, seed=9)})
    joined, after = policy.latent({"features": features, "first": first}, state)
    before, _ = policy.latent({"features": features[:, :4]}, state)
    fresh, _ = policy.latent({"features": features[:, 4:]})
    close(joined, torch.cat([before, fresh], 1))
    more = features_like(2, 5, seed=3)
    long, _ = policy.latent({"features": torch.cat([features[:, 4:], more], 1)})
    close(policy.latent({"features": more}, after)[0], long[:, 7:])  # the carried memory holds the new episode only


@torch.no_grad()
def test_zeroed_rows_of_the_state_are_reset_rows(policy):
    features, more = features_like(2, 9), features_like(2, 4, seed=2)
    _, (valid, memories) = policy.latent({"features": features})
    keep = torch.tensor([True, False])
    state = (valid & keep[:, None], tuple((k * keep[:, None, None], v * keep[:, None, None]) for k, v in memories))
    reset, _ = policy.latent({"features": more}, state)
    fresh, _ = policy.latent({"features": more})
    close(reset[1], fresh[1])
    assert (reset[0] - fresh[0]).abs().max() > 1e-3


def visible_steps(net, t, width):
    """Which inputs the last of t frames depends on."""
    features = features_like(1, t, width).requires_grad_()
    latent, _ = net.latent({"features": features})
    latent[0, -1].square().sum().backward()
    return features.grad[0].abs().amax(-1) > 0


def test_one_block_sees_exactly_the_band():
    net = VptPolicy(
        n_buttons=5, hidsize=8, attention_heads=2, attention_memory_size=256, timesteps=128, n_recurrence_layers=1,
        img_shape=[8, 8, 3], impala_width=0.0625,
    )  # fmt: skip
    seen = visible_steps(golden_fill(net), 140, 8)
    assert seen.nonzero()[0].item() == 139 - 127  # the oldest visible frame is exactly 127 back
    assert seen[12:].all()


def test_the_future_does_not_change_the_past(policy):
    features = features_like(1, 10)
    changed = features.clone()
    changed[:, 6:] = features_like(1, 4, seed=5)
    with torch.no_grad():
        a, b = policy.latent({"features": features})[0], policy.latent({"features": changed})[0]
    assert torch.equal(a[:, :6], b[:, :6])
    assert (a[:, 6:] - b[:, 6:]).abs().amax(-1).min() > 1e-3


def test_every_parameter_of_the_policy_learns():
    net = VptPolicy(
        n_buttons=8, hidsize=16, attention_heads=2, attention_memory_size=8, timesteps=4, n_recurrence_layers=2,
        img_shape=[16, 16, 3], impala_width=0.25,
    )  # fmt: skip
    _, state = net({"observation": random_frames(2, 3, seed=1)})
    latent, _ = net.latent({"observation": random_frames(2, 6)}, state)
    loss = -net.head(latent).log_prob(torch.tensor([1, 7]).expand(2, 6, 2)).mean() + net.value_head(latent).sum()
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_policy_head_is_hierarchical(policy):
    latent, _ = policy.latent({"observation": random_frames(2, 3)})
    joint = policy.head(latent)
    assert (joint.buttons_log_probs.shape, joint.camera_log_probs.shape) == ((2, 3, 17), (2, 3, 121))
    assert joint.camera_on.tolist() == [i % 2 == 1 for i in range(17)]
    action = joint.sample(torch.Generator().manual_seed(0))
    still = ~joint.camera_on[action[..., 0]]
    assert (action[..., 1][still] == 60).all()
    with pytest.raises(ValueError, match="camera_on"):
        VptPolicy(n_buttons=17, camera_on=[True])


def test_policy_runs_under_bf16_with_carried_state(policy):
    frames = random_frames(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        joint, state = policy({"observation": frames})
        _, latent, _ = policy.step(frames[:, 0], torch.tensor([False, True]), state)
    assert joint.buttons_log_probs.dtype == torch.float32
    assert latent.shape == (2, policy.width)
    assert torch.isfinite(latent).all()
