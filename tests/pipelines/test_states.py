"""Trajectories of states: what belongs to one, every n-th state, held-out videos, shifts."""

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.states import Clips, Vectors, divided, every, open_states
from pipelines.transforms import shifted
from tests.foundation.vector_world import LENGTH, write_pushes
from tests.pipelines.grey_clips import SIZE, write_clips


def test_clips_of_a_video_follow_one_another_until_one_is_missing(tmp_path):
    spans = {"a": [(0, 4), (4, 10), (12, 15)], "b": [(0, 5)]}
    states, _ = open_states(write_clips(tmp_path, spans), "data.train")
    assert isinstance(states, Clips) and states.size == (SIZE, SIZE)
    assert np.diff(states.offsets).tolist() == [10, 3, 5]
    frames = states.load(1.0, None)
    assert frames.dtype == np.uint8 and frames.shape == (18, SIZE, SIZE, 3)
    expected = 4 * np.array([*range(10), *range(12, 15), *range(5)])
    assert np.abs(frames.mean((1, 2, 3)) - expected).max() < 3  # video is lossy


def test_episodes_are_trajectories_of_their_own(tmp_path):
    states, _ = open_states(write_clips(tmp_path, {"a": [(0, 6), (6, 12)]}, first=[0, 5, 9]), "data.train")
    assert np.diff(states.offsets).tolist() == [5, 4, 3]


def test_vectors_end_with_their_final_observation(tmp_path):
    states, _ = open_states(write_pushes(tmp_path, 6), "data.train")
    assert isinstance(states, Vectors) and np.diff(states.offsets).tolist() == [LENGTH + 1] * 6
    values = states.load()
    elapsed = values[:, 2].reshape(6, LENGTH + 1)
    assert np.array_equal(elapsed, np.tile(10 * np.arange(LENGTH + 1), (6, 1)))


def test_every_second_state_makes_two_trajectories():
    rows, offsets, dropped = every(np.array([0, 5, 7, 9, 12]), 2)
    parts = [rows[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
    assert parts == [[0, 2, 4], [1, 3], [9, 11]] and dropped == 2  # those of two states have no step
    rows, offsets, dropped = every(np.array([0, 1, 4]), 1)
    assert rows.tolist() == [1, 2, 3] and offsets.tolist() == [0, 3] and dropped == 1
    with pytest.raises(DataError, match="none of the 2 trajectories has more than 3 states"):
        every(np.array([0, 3, 5]), 3)
    with pytest.raises(DataError, match="expected at least 1"):
        every(np.array([0, 3]), 0)


def test_whole_videos_are_held_out(tmp_path):
    spans = {name: [(0, 3), (5, 9)] for name in "abcd"}
    states, _ = open_states(write_clips(tmp_path, spans), "data.train")
    train, held = divided(states, 0.25, seed=0)
    assert len(set(train.groups)) == 3 and len(set(held.groups)) == 1 and not set(train.groups) & set(held.groups)
    assert np.diff(held.offsets).tolist() == [3, 4] and divided(states, 0.25, seed=0)[1].groups == held.groups
    for share in (0.0, 1.0, 2.0):
        with pytest.raises(DataError, match=r"data\.validation"):
            divided(states, share, seed=0)


def test_episodes_can_be_held_out(tmp_path):
    states, _ = open_states(write_pushes(tmp_path, 10), "data.train")
    train, held = divided(states, 0.2, seed=0)
    both = np.concatenate([train.load(), held.load()])
    assert len(held.offsets) == 3 and len(np.unique(both, axis=0)) == len(np.unique(states.load(), axis=0))


def test_what_cannot_be_used_is_told(tmp_path):
    with pytest.raises(DataError, match=r"data\.train is not set"):
        open_states(None, "data.train")
    with pytest.raises(DataError, match="mixes sizes or rates"):
        open_states(write_clips(tmp_path, {"a": [(0, 3)], "b": [(0, 3)]}, heights={"b": 2 * SIZE}), "data.train")


def test_shifts_repeat_the_edge():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert np.array_equal(shifted(frames, np.zeros((2, 2), int), 3), frames)
    moved = shifted(frames, np.array([[1, 0], [0, -2]]), 2)
    assert np.array_equal(moved[0, 1:], frames[0, :-1]) and np.array_equal(moved[0, 0], frames[0, 0])
    assert np.array_equal(moved[1, :, :-2], frames[1, :, 2:]) and np.array_equal(moved[1, :, -1], frames[1, :, -1])
