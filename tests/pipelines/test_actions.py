"""The action codec: bins, joint classes, null actions, soft labels, and the release's known departures."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from omegaconf import OmegaConf

from pipelines.actions import (
    DOOM,
    MINECRAFT,
    MINECRAFT_DEGREES_PER_PIXEL,
    ActionCodec,
    ActionSpec,
    ReleasedCodec,
    spec_from,
)
from pipelines.schema import DataError

MC, DM, RELEASED = ActionCodec(MINECRAFT), ActionCodec(DOOM), ReleasedCodec()
STILL = [5, 5]
CODECS = pytest.mark.parametrize("codec", [MC, DM], ids=["minecraft", "doom"])

TWO_EXCLUSIVE = ActionSpec(
    name="tiny", keys=("a", "b", "c", "menu", "map"), groups=(("a", "b", "c"),), cancelling=(),
    exclusive=("menu", "map"), camera_max=5.0, camera_mu=5.0, camera_bins=3,
)  # fmt: skip


def held(spec, *names):
    return np.array([key in names for key in spec.keys], dtype=np.uint8)


def buttons(codec, *names, bins=STILL):
    return int(codec.to_joint(held(codec.spec, *names), np.array(bins))[0])


def keys_of(codec, buttons_class):
    keys, _ = codec.from_joint(np.array([buttons_class, codec.camera_null]))
    return {name for name, on in zip(codec.spec.keys, keys, strict=True) if on}


# sizes and mouse bins


def test_sizes_of_the_action_spaces():
    assert (MC.n_buttons, MC.n_camera, MC.camera_null, MC.null_bin) == (8641, 121, 60, 5)
    assert (DM.n_buttons, DM.n_camera, DM.camera_null) == (72, 225, 112)
    assert len(MC.camera_on) == 8641
    assert sum(MC.camera_on) == 4320
    assert MINECRAFT.keys[:11] == (
        "attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory",
    )  # fmt: skip


def test_bin_centres_of_minecraft_and_doom():
    centres = [0, 0.615, 1.610, 3.215, 5.810, 10]
    expected = [-c for c in reversed(centres[1:])] + centres
    np.testing.assert_allclose(MC.from_bins(np.arange(11)), expected, atol=1e-3)
    centres = [0, 0.875, 2.006, 3.466, 5.352, 7.788, 10.935, 15]
    expected = [-c for c in reversed(centres[1:])] + centres
    np.testing.assert_allclose(DM.from_bins(np.arange(15)), expected, atol=1e-3)
    assert MC.from_bins(np.arange(11)).dtype == np.float32


def test_bin_edges_of_minecraft():
    for null_to_out, edge in enumerate([0.271, 1.053, 2.317, 4.358, 7.655]):
        assert MC.to_bins(np.array([edge - 2e-3, edge + 2e-3])).tolist() == [5 + null_to_out, 6 + null_to_out]
        assert MC.to_bins(np.array([2e-3 - edge, -edge - 2e-3])).tolist() == [5 - null_to_out, 4 - null_to_out]


@CODECS
def test_bins_round_trip_and_clip(codec):
    bins = np.arange(codec.n_bins)
    assert codec.to_bins(codec.from_bins(bins)).tolist() == bins.tolist()
    assert codec.to_bins(np.array([-1e9, 1e9, np.inf])).tolist() == [0, bins[-1], bins[-1]]


@CODECS
@given(degrees=hnp.arrays(np.float32, (4, 2), elements=st.floats(-30, 30, width=32)))
@settings(deadline=None)
def test_bins_are_monotone_and_odd(codec, degrees):
    bins = codec.to_bins(degrees)
    order = np.argsort(degrees, axis=None)
    assert (np.diff(bins.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(codec.to_bins(-degrees), codec.n_bins - 1 - bins)


def test_nan_motion_is_refused():
    with pytest.raises(DataError, match="NaN"):
        MC.to_bins(np.array([0.0, np.nan]))


# joint classes


def test_class_order_is_that_of_the_release():
    """Digits hotbar, fore_back, left_right, sprint_sneak, use, drop, attack, jump, mouse; the last is fastest."""
    assert buttons(MC) == 0
    assert buttons(MC, bins=[5, 6]) == 1
    assert buttons(MC, "jump") == 2
    assert buttons(MC, "attack") == 4
    assert buttons(MC, "drop") == 8
    assert buttons(MC, "use") == 16
    assert buttons(MC, "sprint") == 32
    assert buttons(MC, "sneak") == 64
    assert buttons(MC, "left") == 96
    assert buttons(MC, "forward") == 288
    assert buttons(MC, "back") == 576
    assert buttons(MC, "hotbar.1") == 864
    assert buttons(MC, "hotbar.9", "back", "right", "sneak", "use", "drop", "attack", "jump", bins=[0, 0]) == 8639
    assert buttons(MC, "inventory") == 8640


@CODECS
def test_every_class_round_trips_up_to_the_meta_rule(codec):
    """Where the mouse bit is off only the null camera survives; on with a null camera becomes off."""
    classes = np.stack(np.meshgrid(np.arange(codec.n_buttons), np.arange(codec.n_camera), indexing="ij"), -1)
    keys, bins = codec.from_joint(classes)
    again = codec.to_joint(keys, bins)
    on = np.array(codec.camera_on)[:, None]
    moves = on & (classes[..., 1] != codec.camera_null)
    expected_buttons = np.where(on & ~moves, classes[..., 0] - 1, classes[..., 0])
    np.testing.assert_array_equal(again[..., 0], expected_buttons)
    np.testing.assert_array_equal(again[..., 1], np.where(moves, classes[..., 1], codec.camera_null))


@CODECS
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decoding_is_a_projection(codec, data):
    """Decoding what was encoded keeps a simpler action that encodes to the same class; its keys were all held."""
    keys = data.draw(hnp.arrays(np.uint8, (3, codec.n_keys), elements=st.integers(0, 1)))
    bins = data.draw(hnp.arrays(np.int64, (3, 2), elements=st.integers(0, 10)))
    joint = codec.to_joint(keys, bins)
    kept, kept_bins = codec.from_joint(joint)
    assert (kept <= keys).all()
    np.testing.assert_array_equal(codec.to_joint(kept, kept_bins), joint)
    still = (kept_bins == codec.null_bin).all(-1)
    np.testing.assert_array_equal(still, ~np.array(codec.camera_on)[joint[:, 0]])


def test_opposite_keys_cancel_and_later_keys_win():
    assert keys_of(MC, buttons(MC, "forward", "back")) == set()
    assert keys_of(MC, buttons(MC, "left", "right", "jump")) == {"jump"}
    assert keys_of(MC, buttons(MC, "sprint", "sneak")) == {"sneak"}
    assert keys_of(MC, buttons(MC, "hotbar.2", "hotbar.7")) == {"hotbar.7"}
    assert keys_of(DM, buttons(DM, "forward", "backward", "left", "use")) == {"left", "use"}


def test_inventory_excludes_everything_and_holds_the_mouse():
    joint = MC.to_joint(held(MINECRAFT, "inventory", "attack"), np.array([0, 10]))
    assert joint.tolist() == [8640, 60]
    keys, bins = MC.from_joint(np.array([8640, 3]))
    assert keys.sum() == 1
    assert bins.tolist() == STILL


def test_camera_class_is_pitch_then_yaw():
    assert MC.to_joint(held(MINECRAFT), np.array([2, 7])).tolist() == [1, 29]
    assert MC.from_joint(np.array([1, 29]))[1].tolist() == [2, 7]
    assert MC.from_joint(np.array([0, 29]))[1].tolist() == STILL  # the mouse bit is off


def test_null_actions():
    assert MC.to_joint(held(MINECRAFT), np.array(STILL)).tolist() == [0, 60]
    assert MC.is_null(held(MINECRAFT), np.array(STILL))
    assert MC.is_null(held(MINECRAFT, "forward", "back"), np.array(STILL))
    assert MC.is_null(held(MINECRAFT), MC.to_bins(np.array([0.15, -0.15])))  # one pixel is below the first edge
    assert not MC.is_null(held(MINECRAFT), np.array([5, 6]))
    assert not MC.is_null(held(MINECRAFT, "inventory"), np.array(STILL))


def test_torch_and_numpy_agree_and_shapes_carry_over():
    keys = np.random.default_rng(0).integers(0, 2, (2, 3, 6)).astype(np.uint8)
    bins = np.random.default_rng(1).integers(0, 15, (2, 3, 2))
    joint = DM.to_joint(keys, bins)
    assert joint.shape == (2, 3, 2)
    assert joint.dtype == np.int64
    tensor = DM.to_joint(torch.from_numpy(keys), torch.from_numpy(bins))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), joint)
    np.testing.assert_array_equal(DM.to_joint(keys.astype(bool), bins.astype(np.uint8)), joint)
    keys.setflags(write=False)  # as read from a buffer
    np.testing.assert_array_equal(DM.to_joint(keys[:, ::-1], bins[:, ::-1]), joint[:, ::-1])
    decoded = DM.from_joint(tensor)
    assert decoded[0].dtype == torch.uint8
    assert DM.to_joint(np.zeros((0, 6), np.uint8), np.zeros((0, 2), np.int64)).shape == (0, 2)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MC.to_joint(np.zeros((4, 6)), np.full((4, 2), 5)), "needs 20"),
    (lambda: DM.to_joint(np.zeros((4, 6)), np.full((4, 2), 15)), "0..14"),
    (lambda: DM.from_joint(np.array([72, 0])), "another spec"),
    (lambda: DM.from_joint(np.array([-1, 0])), "0..71"),
    (lambda: DM.from_joint(np.array([0, 225])), "0..224"),
    (lambda: DM.joint_targets(np.zeros((1, 6)), np.ones((1, 2, 9))), "needs 15"),
])  # fmt: skip
def test_wrong_input_is_named(call, message):
    with pytest.raises(DataError, match=message):
        call()


# soft labels


def brute_force(codec, p, q):
    """Adds up the probability of every combination of keys and bins in its joint class."""
    target_buttons, target_camera = np.zeros(codec.n_buttons), np.zeros(codec.n_camera)
    axis_pairs = list(itertools.product(range(codec.n_bins), repeat=2))
    for keys in itertools.product((0, 1), repeat=codec.n_keys):
        weight = np.prod(np.where(keys, p, 1 - p))
        joint = codec.to_joint(np.tile(np.array(keys), (len(axis_pairs), 1)), np.array(axis_pairs))
        np.add.at(target_buttons, joint[:, 0], weight * np.array([q[0, y] * q[1, x] for y, x in axis_pairs]))
    for y, x in axis_pairs:
        if (y, x) != (codec.null_bin, codec.null_bin):
            target_camera[codec.n_bins * y + x] = q[0, y] * q[1, x]
    return target_buttons, target_camera / target_camera.sum()


@pytest.mark.parametrize("codec", [DM, ActionCodec(TWO_EXCLUSIVE)], ids=["doom", "two exclusive keys"])
def test_soft_labels_are_the_exact_distribution(codec):
    rng = np.random.default_rng(3)
    p = rng.random(codec.n_keys)
    q = rng.dirichlet(np.ones(codec.n_bins), 2)
    target_buttons, target_camera = codec.joint_targets(p.astype(np.float32), q.astype(np.float32))
    expected_buttons, expected_camera = brute_force(codec, p, q)
    np.testing.assert_allclose(target_buttons, expected_buttons, atol=1e-6)
    np.testing.assert_allclose(target_camera, expected_camera, atol=1e-6)


@CODECS
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_soft_labels_of_a_certain_action_are_one_hot(codec, data):
    keys = data.draw(hnp.arrays(np.uint8, codec.n_keys, elements=st.integers(0, 1)))
    bins = data.draw(hnp.arrays(np.int64, 2, elements=st.integers(0, codec.n_bins - 1)))
    one_hot = np.eye(codec.n_bins, dtype=np.float32)[bins]
    target_buttons, target_camera = codec.joint_targets(keys.astype(np.float32), one_hot)
    joint = codec.to_joint(keys, bins)
    assert target_buttons[joint[0]] == pytest.approx(1)
    assert target_buttons.sum() == pytest.approx(1)
    inventory_with_motion = not codec.camera_on[joint[0]] and bins.tolist() != [codec.null_bin] * 2
    if not inventory_with_motion:
        assert target_camera[joint[1]] == pytest.approx(1)


def test_soft_labels_of_stored_half_precision_sum_to_one():
    rng = np.random.default_rng(0)
    p = rng.random((16, 20)).astype(np.float16)
    q = rng.dirichlet(np.ones(11), (16, 2)).astype(np.float16)
    target_buttons, target_camera = MC.joint_targets(p, q)
    assert target_buttons.shape == (16, 8641)
    np.testing.assert_allclose(target_buttons.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(target_camera.sum(-1), 1, atol=1e-5)
    assert target_buttons.min() >= 0
    np.testing.assert_allclose(target_buttons[:, 8640], p[:, 10], atol=1e-6)  # inventory


def test_soft_labels_where_motion_is_impossible():
    _, camera = DM.joint_targets(np.zeros(6, np.float32), np.eye(15, dtype=np.float32)[[7, 7]])
    assert camera[112] == 1
    assert camera.sum() == 1


# the release's departures, and ours beside them


def test_release_cuts_degrees_to_integers():
    """Wrong by one bin for |px| in 2-6, 8-13, 16-19, 30-33, 52-53, always towards no motion."""
    pixels = np.arange(-80, 81)
    degrees = pixels * MINECRAFT_DEGREES_PER_PIXEL
    ours, theirs = MC.to_bins(degrees), RELEASED.to_bins(degrees)
    ranges = [(2, 6), (8, 13), (16, 19), (30, 33), (52, 53)]
    expected = [any(low <= abs(px) <= high for low, high in ranges) for px in pixels]
    np.testing.assert_array_equal(ours != theirs, expected)
    np.testing.assert_array_equal(np.abs(ours - 5) - np.abs(theirs - 5), np.array(expected, int))
    assert RELEASED.to_bins(np.array([6 * 0.15])).item() == 5  # small motion vanishes


def test_release_never_finds_a_null_action():
    nothing, still = np.zeros((3, 20), np.uint8), np.tile(STILL, (3, 1))
    assert not RELEASED.is_null(nothing, still).any()
    assert MC.is_null(nothing, still).all()


def test_release_moves_the_mouse_while_opening_the_inventory():
    assert RELEASED.from_joint(np.array([8640, 3]))[1].tolist() == [0, 3]
    assert MC.from_joint(np.array([8640, 3]))[1].tolist() == STILL


# specs


@pytest.mark.parametrize("spec", [MINECRAFT, DOOM, TWO_EXCLUSIVE], ids=lambda s: s.name)
def test_specs_survive_json_and_yaml(spec):
    assert ActionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec_from(OmegaConf.create(spec.to_dict())) == spec
    assert spec_from(spec) is spec
    assert hash(spec) == hash(spec_from(spec.to_dict()))


def test_fingerprints_differ_with_any_field():
    changed = ActionSpec.from_dict({**DOOM.to_dict(), "camera_max": 21.0})
    assert DOOM.fingerprint() == ActionSpec.from_dict(DOOM.to_dict()).fingerprint()
    assert len({DOOM.fingerprint(), MINECRAFT.fingerprint(), changed.fingerprint()}) == 3


@pytest.mark.parametrize(("change", "message"), [
    ({"camera_bins": 10}, "odd"),
    ({"cancelling": [2]}, "two keys"),
    ({"groups": [["forward", "backward"]]}, "exactly one group"),
    ({"exclusive": ["use"]}, "exactly one group"),
    ({"camera_max": 0}, "positive"),
    ({"colour": "red"}, "colour"),
])  # fmt: skip
def test_bad_specs_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        spec_from({**DOOM.to_dict(), **change})


def test_unknown_spec_names_the_known_ones():
    with pytest.raises(DataError, match="minecraft"):
        spec_from("quake")
    with pytest.raises(DataError, match="NoneType"):
        spec_from(None)
