import numpy as np
import pytest
import torch
from torch import nn

from models.heads import Factored
from pipelines.actions import DOOM, ActionCodec
from pipelines.positions import edge_ratios, intervals, sliding, window_errors
from pipelines.schema import DataError
from pipelines.stream import Track

CODEC = ActionCodec(DOOM)
WINDOW, FORWARD = 32, DOOM.keys.index("forward")


class BlindAtTheEnds(nn.Module):
    """Reads the action that is painted into each frame, except within `blind` frames of the ends of its window."""

    window, reach = WINDOW, 0

    def __init__(self, blind=0):
        super().__init__()
        self.blind = blind
        self.anchor = nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        return frames[:, :, 0, :, 0].float()  # b t w: keys, then bins

    def decode(self, features, mask=None):
        keys, bins = features[..., : CODEC.n_keys].clone(), features[..., -2:].long()
        if self.blind:
            ends = [*range(self.blind), *range(WINDOW - self.blind, WINDOW)]
            keys[:, ends, FORWARD] = 1 - keys[:, ends, FORWARD]
        camera = nn.functional.one_hot(bins, CODEC.n_bins) * 20.0
        return Factored.from_logits(torch.stack([(1 - keys) * 20, keys * 20], -1), camera)


def recording(n=200, seed=0, effective=None):
    rng = np.random.default_rng(seed)
    keys = np.zeros((n, CODEC.n_keys), np.uint8)
    keys[:, FORWARD] = rng.random(n) < 0.5
    mouse = CODEC.from_bins(rng.integers(0, CODEC.n_bins, (n, 2)))
    return Track("s", np.repeat("c", n), np.arange(n), keys, mouse, np.zeros(n, bool), np.ones(n, bool),
                 effective=effective)  # fmt: skip


def painted(track):
    values = np.concatenate([track.keys, CODEC.to_bins(track.mouse)], 1).astype(np.uint8)
    return np.repeat(values[:, None, :, None], 3, -1)  # t 1 w c


def test_windows_slide_to_the_end_and_no_further():
    assert [w.start for w in sliding(50, 32, 8)] == [0, 8, 16]
    assert sliding(31, 32, 8) == []


def test_errors_are_where_the_model_is_blind():
    found = window_errors(BlindAtTheEnds(blind=2), [recording(), recording(90, 1)], painted, DOOM, stride=8)
    joint = found["joint_exact"]
    assert joint.shape == (22 + 8, WINDOW)
    assert (joint[:, [0, 1, -2, -1]] == 1).all() and joint[:, 2:-2].sum() == 0
    np.testing.assert_array_equal(found["keys:forward"], joint)
    assert found["camera_bin"].sum() == found["keys:left"].sum() == 0
    assert found["nll"][:, 0].min() > 10 > 1e-3 > found["nll"][:, 5].max()


def test_what_had_no_effect_is_no_error():
    effective = np.zeros((200, CODEC.n_keys + 2), bool)
    track = recording(effective=effective)
    found = window_errors(BlindAtTheEnds(blind=2), [track], painted, DOOM, stride=8)["joint_exact"]
    released = np.stack([track.keys[s : s + WINDOW, FORWARD] == 0 for s in range(0, 169, 8)])
    assert (found[:, 0] == released[:, 0]).all()  # a key held in vain may be missed, a released one not invented


def test_ratios_by_hand():
    errors = np.ones((4, 32))
    errors[:, :8], errors[:, -8:], errors[:, 8:24] = 0.6, 0.1, 0.2
    ratios = edge_ratios(errors)
    assert ratios["first_ratio"] == pytest.approx(3) and ratios["last_ratio"] == pytest.approx(0.5)
    low, high = intervals(errors)["first_ratio"]
    assert low == pytest.approx(3) and high == pytest.approx(3)
    assert np.isnan(edge_ratios(np.zeros((4, 32)))["first_ratio"])


def test_too_short_recordings_or_windows_are_explained():
    with pytest.raises(DataError, match="shorter than the labelling window"):
        window_errors(BlindAtTheEnds(), [recording(20)], painted, DOOM)
    with pytest.raises(DataError, match="no centre"):
        edge_ratios(np.ones((4, 16)))
