from collections import Counter

import numpy as np
import pytest

from pipelines import schema
from pipelines.actions import DOOM, ActionCodec
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.stream import (
    FrameStore,
    LaneSampler,
    StepSampler,
    Track,
    WindowDataset,
    confidence,
    handle_nulls,
    load_tracks,
)

CODEC = ActionCodec(DOOM)


def track(n, **changes):
    values = dict(
        source="s", clip=np.repeat("c", n), row=np.arange(n), keys=np.ones((n, 6), np.uint8),
        mouse=np.zeros((n, 2), np.float32), first=np.zeros(n, bool), loss=np.ones(n, bool),
    )  # fmt: skip
    return Track(**{**values, **changes})


@pytest.fixture
def dataset(play_shards):
    shards = Shards(play_shards)
    return WindowDataset(load_tracks(shards), FrameStore(shards), CODEC, length=20, seed=3)


def test_clips_of_a_source_join_into_one_track_in_order(play_shards):
    tracks = load_tracks(Shards(play_shards))
    assert [len(t) for t in tracks] == [96, 96]
    assert tracks[0].clip[0].endswith("00000000") and tracks[0].clip[95].endswith("00000048")


def test_windows_cross_clips_and_pad_the_tail(dataset):
    assert dataset.windows == [(t, s) for t in (0, 1) for s in (0, 20, 40, 60, 80)]
    crossing = dataset[(2, 0, False)]  # frames 40..59, the clip ends at 48
    assert crossing[schema.OBSERVATION].shape == (20, 32, 40, 3) and bool(crossing[schema.MASK].all())
    tail = dataset[(4, 0, False)]
    assert tail[schema.MASK].sum() == 16 and tail[schema.WEIGHT][16:].sum() == 0
    assert dataset[(4, 0, True)][schema.FIRST].tolist() == [True] + [False] * 19


def test_decoding_once_equals_decoding_each_time(play_shards):
    shards = Shards(play_shards)
    tracks = load_tracks(shards)
    cached = WindowDataset(tracks, FrameStore(shards, cache_gb=1), CODEC, length=20)
    direct = WindowDataset(tracks, FrameStore(shards, cache_gb=0), CODEC, length=20)
    for index in (0, 2, 7):
        one, other = cached[(index, 0, True)], direct[(index, 0, True)]
        np.testing.assert_array_equal(one[schema.OBSERVATION], other[schema.OBSERVATION])


def test_video_without_actions_is_told_to_be_labelled_first(make_play, tmp_path):
    make_play(tmp_path / "clips", videos=1, actions=False)
    with pytest.raises(DataError, match=r"pipelines\.label"):
        load_tracks(Shards(tmp_path / "clips"))


def test_nulls_are_dropped_masked_or_kept():
    keys = np.zeros((6, 6), np.uint8)
    keys[[0, 3, 4], 0] = 1
    mouse = np.zeros((6, 2), np.float32)
    mouse[1, 1] = 0.01  # below the first bin edge: null all the same
    first = np.array([True, False, True, False, False, False])
    whole = track(6, keys=keys, mouse=mouse, first=first)
    dropped = handle_nulls(whole, CODEC, "drop")
    assert dropped.row.tolist() == [0, 3, 4]
    assert dropped.first.tolist() == [True, True, False]  # the second episode began at a dropped frame
    assert handle_nulls(whole, CODEC, "mask").loss.tolist() == [True, False, False, True, True, False]
    assert handle_nulls(whole, CODEC, "keep") is whole
    with pytest.raises(DataError, match="drop, mask or keep"):
        handle_nulls(whole, CODEC, "no")


def test_confidence_is_the_geometric_mean_over_keys_and_axes():
    window = track(
        1, keys=np.array([[1, 0, 0, 0, 0, 0]], np.uint8),
        key_probabilities=np.array([[0.5, 0.5, 0, 0, 0, 0]], np.float32),
        camera_probabilities=np.full((1, 2, 11), 0.25, np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(confidence(window, np.full((1, 2), 5)), (0.5**2 * 0.25**2) ** (1 / 8), rtol=1e-5)


def test_soft_targets_need_probabilities(play_shards):
    shards = Shards(play_shards)
    with pytest.raises(DataError, match="pseudo-labels"):
        WindowDataset(load_tracks(shards), FrameStore(shards), CODEC, length=20, labels="soft")


def test_every_epoch_shows_every_window_once_in_another_order():
    sampler = StepSampler(n_items=12, batch_size=4, total_steps=6, seed=1)
    seen = [i for batch in sampler for i, _, _ in batch]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12)) and seen[:12] != seen[12:]
    assert [s for batch in sampler for _, s, _ in batch] == sorted(list(range(6)) * 4)


@pytest.mark.parametrize("start", [1, 3, 4, 5])
def test_a_resumed_sampler_continues_the_sequence(start):
    straight = list(StepSampler(10, 4, 6, seed=1))
    resumed = StepSampler(10, 4, 6, seed=1, start_step=start)
    assert list(resumed) == straight[start:] and len(resumed) == 6
    lanes = [(t, s) for t in range(3) for s in range(0, 40, 10)]
    assert list(LaneSampler(lanes, 2, 12, 1, start)) == list(LaneSampler(lanes, 2, 12, 1))[start:]


def test_ranks_share_the_global_batch():
    whole = [i for i, _, _ in StepSampler(50, 8, 3, seed=2).batch(1)]
    parts = [StepSampler(50, 4, 3, seed=2, rank=r, world_size=2).batch(1) for r in (0, 1)]
    assert [i for part in parts for i, _, _ in part] == whole


def test_lanes_continue_until_their_track_ends():
    windows = [(t, s) for t, n in enumerate((5, 3, 4)) for s in range(n)]
    sampler = LaneSampler(windows, batch_size=2, total_steps=12, seed=0)
    assert sampler.steps_per_epoch == 6
    batches = list(sampler)
    for before, after in zip(batches[:5], batches[1:6], strict=True):
        for (i, _, _), (j, _, reset) in zip(before, after, strict=True):
            continues = j == i + 1 and windows[j][0] == windows[i][0]
            assert reset != continues
    assert all(reset for _, _, reset in batches[0]) and all(reset for _, _, reset in batches[6])
    assert Counter(i for batch in batches[:6] for i, _, _ in batch) == dict.fromkeys(range(12), 1)


def test_augmentation_is_keyed_by_window_and_step(play_shards):
    shards = Shards(play_shards)

    def noise(frames, rng):
        return frames + rng.integers(0, 5, frames.shape, dtype=np.uint8)

    dataset = WindowDataset(load_tracks(shards), FrameStore(shards), CODEC, length=20, augment=noise)
    a, b, c = (dataset[(1, step, True)][schema.OBSERVATION] for step in (4, 4, 5))
    assert (a == b).all() and (a != c).any()
