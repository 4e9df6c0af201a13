import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.actions import ActionCodec, ActionSpec
from pipelines.schema import DataError
from pipelines.scoring import Truth, calibration_error, label_report, r2, reliability

SPEC = ActionSpec(
    name="tiny", keys=("go", "fire"), groups=(("go",), ("fire",)), cancelling=(), exclusive=(), camera_max=10.0,
    camera_mu=10.0, camera_bins=5,
)  # fmt: skip
CODEC = ActionCodec(SPEC)


def world(n=400, seed=0):
    rng = np.random.default_rng(seed)
    keys = np.repeat(rng.random((n // 4, 2)) < [0.4, 0.1], 4, axis=0).astype(np.uint8)
    bins = rng.integers(0, 5, (n, 2))
    return Truth(keys, CODEC.from_bins(bins), np.repeat([0, 1], n // 2))


def certain(truth, p=1.0):
    """Predictions that put probability p on the truth."""
    keys = np.where(truth.keys != 0, p, 1 - p)
    camera = np.full((len(keys), 2, 5), (1 - p) / 4)
    np.put_along_axis(camera, CODEC.to_bins(truth.mouse)[..., None], p, -1)
    return keys, camera


def shifted(truth, by):
    return replace(truth, keys=np.roll(truth.keys, by, 0), mouse=np.roll(truth.mouse, by, 0))


def test_perfect_labels_score_perfectly():
    truth = world()
    scores = label_report(truth, *certain(truth), SPEC).scores
    for name in ("camera_r2", "button_event_f1", "button_f1", "button_ap", "joint_exact", "camera_bin_accuracy"):
        assert scores[f"idm/{name}"] == pytest.approx(1), name
    assert scores["idm/nll"] == pytest.approx(0, abs=1e-5)
    assert scores["idm/label_offset"] == 0
    assert scores["idm/keys_without_recall"] == 0
    assert scores["idm/frames"] == 400


def test_scores_by_hand():
    """Four frames: `go` held in two, guessed in one of them and once wrongly; `fire` never; yaw off by one once."""
    bins = np.array([[2, 2], [2, 3], [2, 2], [2, 1]])
    truth = Truth(np.array([[1, 0], [1, 0], [0, 0], [0, 0]]), CODEC.from_bins(bins), np.zeros(4, int))
    p = np.array([[0.8, 0.1], [0.4, 0.1], [0.6, 0.1], [0.2, 0.1]])
    camera = np.zeros((4, 2, 5))
    camera[:, 0, 2] = 1
    camera[[0, 1, 2, 3], 1, [2, 4, 2, 1]] = 1
    report = label_report(truth, p, camera, SPEC)
    scores, go = report.scores, report.keys["go"]
    assert (go["support"], go["recall"], go["precision"], go["f1"]) == (2, 0.5, 0.5, 0.5)
    assert go["ap"] == pytest.approx((1 + 2 / 3) / 2)  # ranked: held, released, held, released
    assert go["positive_rate_ratio"] == 1
    assert (go["events"], go["event_f1"]) == (1, pytest.approx(2 * 1 / (2 + 2)))  # releases at 2 and 1 match; 2 extra
    assert report.keys["fire"]["support"] == 0
    assert np.isnan(report.keys["fire"]["f1"])
    assert scores["idm/button_f1"] == 0.5  # macro over keys with support
    assert scores["idm/joint_exact"] == 0.5  # frames 0 and 3
    assert scores["idm/camera_bin_accuracy"] == pytest.approx(7 / 8)
    assert scores["idm/camera_bin_within_one"] == 1
    assert np.isnan(scores["idm/camera_r2_pitch"])
    assert scores["idm/key_accuracy"] == pytest.approx(6 / 8)
    keys_nll = -np.log([0.8, 0.4, 0.4, 0.8]).sum() - 4 * np.log(0.9)
    assert scores["idm/nll"] == pytest.approx((keys_nll - np.log(1e-6)) / 4)
    assert scores["idm/majority_nll"] == pytest.approx(np.log(2) + (2 * np.log(2) + 2 * np.log(4)) / 4)
    assert scores["idm/all_released_exact"] == 0.25  # frame 2
    assert scores["idm/persistence_exact"] == 0
    assert report.confusion["yaw"][3][4] == 1
    assert np.sum(report.confusion["yaw"]) == 4


def test_camera_r2_by_hand():
    true, guess = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0])
    assert r2(true, guess) == pytest.approx(0.5)
    both = np.stack([true, np.zeros(3)], 1), np.stack([guess, np.zeros(3)], 1)
    assert r2(*both) == pytest.approx(0.5)  # a still axis adds nothing
    on = np.array([[True, True], [True, True], [False, True]])
    assert r2(*both, on) == 1
    assert np.isnan(r2(np.ones(3), guess))


def test_camera_r2_uses_the_mean_of_the_distribution():
    truth = Truth(np.zeros((2, 2)), np.array([[0.0, -10.0], [0.0, 10.0]]), np.zeros(2, int))
    camera = np.zeros((2, 2, 5))
    camera[:, 0, 2] = 1
    camera[0, 1, [0, 4]] = [0.75, 0.25]  # mean -5 degrees
    camera[1, 1, [0, 4]] = [0.25, 0.75]
    report = label_report(truth, np.zeros((2, 2)), camera, SPEC)
    assert report.scores["idm/camera_r2_yaw"] == pytest.approx(0.75)
    assert report.scores["idm/camera_r2_ceiling"] == pytest.approx(1)


def test_baselines_by_hand():
    keys = np.array([[1, 0], [1, 0], [1, 0], [0, 1]])
    truth = Truth(keys, np.zeros((4, 2)), np.array([0, 0, 1, 1]))
    scores = label_report(truth, *certain(truth), SPEC).scores
    assert scores["idm/majority_exact"] == 0.75
    assert scores["idm/majority_f1"] == pytest.approx((6 / 7 + 0) / 2)  # go always guessed, fire never
    assert scores["idm/all_released_exact"] == 0
    assert scores["idm/all_released_key_accuracy"] == 0.5
    assert scores["idm/persistence_exact"] == 0.25  # frame 1; segments start from nothing
    assert scores["idm/chance_ap"] == pytest.approx((0.75 + 0.25) / 2)


def test_ineffective_actions_do_not_count_in_the_effective_view():
    keys = np.zeros((10, 2), np.uint8)
    keys[2:5, 0], keys[6:9, 1] = 1, 1
    effective = np.concatenate([keys != 0, np.zeros((10, 2), bool)], 1)
    effective[6:9, 1] = False  # fire did nothing
    mouse = np.zeros((10, 2))
    mouse[0, 0] = 10.0  # looked up at the limit: nothing moved
    truth = Truth(keys, mouse, np.zeros(10, int), effective)
    p, camera = certain(replace(truth, keys=keys * [1, 0], mouse=np.zeros((10, 2))))  # says what can be seen
    report = label_report(truth, p, camera, SPEC)
    assert report.keys["fire"]["recall"] == 0
    assert report.effective_keys["fire"]["support"] == 0
    assert report.scores["idm/joint_exact"] == 0.6
    assert report.scores["idm/effective/joint_exact"] == 1
    assert report.scores["idm/button_event_f1"] == 0.5
    assert report.scores["idm/effective/button_event_f1"] == 1
    assert report.scores["idm/effective/nll"] == pytest.approx(0, abs=1e-5)
    assert report.scores["idm/keys_without_recall"] == 1
    assert report.scores["idm/effective/keys_without_recall"] == 0


@pytest.mark.parametrize("late", [-2, 0, 1, 3])
def test_the_label_offset_is_found(late):
    truth = world()
    report = label_report(shifted(truth, late), *certain(truth, 0.9), SPEC)
    assert report.scores["idm/label_offset"] == late


def test_offset_needs_a_segment_long_enough():
    truth = replace(world(), segment=np.arange(400) // 4)
    assert np.isnan(label_report(truth, *certain(truth), SPEC).scores["idm/label_offset"])


def test_a_shift_of_one_frame_hurts_exactness_more_than_events():
    truth = world()
    scores = label_report(shifted(truth, 1), *certain(truth), SPEC).scores
    assert scores["idm/button_event_f1"] > 0.95 > scores["idm/button_f1"]


def test_masked_frames_are_not_scored_and_cut_segments():
    truth = world()
    p, camera = certain(truth)
    p[100:200], camera[100:200] = np.nan, np.nan
    mask = np.ones(400, bool)
    mask[100:200] = False
    scores = label_report(replace(truth, mask=mask), p, camera, SPEC).scores
    assert scores["idm/joint_exact"] == 1
    assert scores["idm/frames"] == 300
    with pytest.raises(DataError, match="NaN"):
        label_report(truth, p, camera, SPEC)
    with pytest.raises(DataError, match="nothing to score"):
        label_report(replace(truth, mask=mask & False), p, camera, SPEC)


def test_random_labels_are_not_better_than_their_baselines():
    truth, other = world(4000), world(4000, seed=1)
    scores = label_report(truth, *certain(other, 0.9), SPEC).scores
    assert scores["idm/button_ap"] == pytest.approx(scores["idm/chance_ap"], abs=0.05)
    assert scores["idm/camera_r2"] < 0
    assert scores["idm/nll"] > scores["idm/majority_nll"]


def test_reliability_by_hand():
    table = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([0, 1, 1, 1]))
    assert [row["count"] for row in table] == [2] + [0] * 8 + [2]
    assert table[0]["frequency"] == 0.5
    assert table[9]["confidence"] == pytest.approx(0.975)
    assert calibration_error(table) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_half_precision_probabilities_are_fine():
    truth = world()
    p, camera = (a.astype(np.float16) for a in certain(truth, 0.9))
    assert label_report(truth, p, camera, SPEC).scores["idm/nll"] == pytest.approx(-4 * np.log(0.9), abs=1e-3)


def test_the_report_is_plain_json():
    truth = replace(world(), effective=np.ones((400, 4), bool))
    values = label_report(truth, *certain(truth), SPEC, prefix="label").to_dict()
    assert json.loads(json.dumps(values, allow_nan=False))["keys"]["go"]["recall"] == 1
    assert "label/camera_r2" in values["scores"]


@pytest.mark.parametrize("field", ["mouse", "segment", "effective", "mask"])
def test_wrong_shapes_are_told(field):
    truth = world()
    with pytest.raises(DataError, match=field):
        label_report(replace(truth, **{field: np.zeros((7, 1))}), *certain(truth), SPEC)


def test_labels_of_another_spec_are_told():
    truth = world()
    p, camera = certain(truth)
    with pytest.raises(DataError, match="camera_probabilities has shape"):
        label_report(truth, p, np.concatenate([camera, camera], -1), SPEC)
