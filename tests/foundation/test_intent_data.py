"""Batches of states, outcomes and intents: shares as in the paper, one state later, the same pictures moved alike."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from foundation.pretraining.intent_data import IntentData, Intents
from pipelines import schema
from pipelines.schema import DataError
from tests.foundation.running import config
from tests.foundation.vector_world import LENGTH, write_pushes
from tests.pipelines.grey_clips import write_clips

PAPER = {"p_current": 0.2, "p_trajectory": 0.5, "p_random": 0.3, "within": "uniform", "gamma": 0.99}
COUNT = 40_000
NAMES = schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL, schema.INTENT


def intents(offsets, skip=1, goals=PAPER, p_samegoal=0.5, **options):
    states = SimpleNamespace(offsets=np.asarray(offsets))
    return Intents(states, 4, (0, 0), skip, goals, p_samegoal, **options)


@cache
def configured():
    return OmegaConf.to_container(config("pretrain", "method=icvf"), resolve=True)["data"]


def opened(train, **options):
    """The data module with the settings of method=icvf."""
    settings = {**configured(), "train": train, "steps": 10, "seed": 0, "batch_size": 8, **options}
    data = IntentData(**{name: value for name, value in settings.items() if name != "_target_"})
    data.dataset.load()
    return data


def test_shares_are_those_of_the_paper():
    """Of 10 trajectories of 1000 states, a random goal is 9 times of 10 in another one."""
    data = intents(1000 * np.arange(11))
    s, after, goal, z = data.draw(np.random.default_rng(0), COUNT)
    assert abs(np.bincount(s // 1000) / COUNT - 0.1).max() < 0.01
    last = s % 1000 == 999
    assert np.array_equal(after[~last], s[~last] + 1)
    for drawn in (goal, z):
        assert np.mean(drawn // 1000 != s // 1000) == pytest.approx(0.3 * 0.9, abs=0.01)
        assert np.mean(drawn == s) == pytest.approx(0.2 + 0.5 * np.mean(1 / (1000 - s % 1000)), abs=0.01)
        within = drawn[(drawn // 1000 == s // 1000) & (drawn != s)]
        assert len(within) / COUNT == pytest.approx(0.5 + 0.03, abs=0.01)
    early = (z > s) & (z // 1000 == s // 1000) & (s % 1000 < 500)
    share = (z - s)[early] / (999 - s % 1000)[early]
    assert np.mean(share < 0.5) == pytest.approx(0.5, abs=0.03)  # uniform over the rest
    # half of the outcomes are the intent; of the others some happen to be: both current (0.04)
    assert np.mean(goal == z) == pytest.approx(0.5 + 0.5 * 0.04, abs=0.01)


def test_the_last_state_meets_itself_as_often_as_others_do():
    data = intents(5 * np.arange(101))
    s, after, goal, z = data.draw(np.random.default_rng(0), COUNT)
    last = s % 5 == 4
    assert (after[last] == s[last]).all() and (goal[last] == s[last]).all() and (z[last] == s[last]).all()
    assert last.mean() == pytest.approx(0.2 / 5, abs=0.005)
    none = intents(5 * np.arange(101), goals=PAPER | {"p_current": 0.0, "p_random": 0.5})
    s, *_ = none.draw(np.random.default_rng(0), COUNT)
    assert not (s % 5 == 4).any()


def test_outcomes_can_all_be_the_intent_or_independent():
    offsets = 1000 * np.arange(3)
    _, _, goal, z = intents(offsets, p_samegoal=1.0).draw(np.random.default_rng(0), COUNT)
    assert np.array_equal(goal, z)
    _, _, goal, z = intents(offsets, p_samegoal=0.0).draw(np.random.default_rng(0), COUNT)
    assert np.mean(goal == z) < 0.06


def test_a_step_is_frame_skip_states():
    offsets = np.array([0, 40, 47])
    data = intents(offsets, skip=5)
    s, after, goal, z = (data.rows[rows] for rows in data.draw(np.random.default_rng(0), COUNT))
    assert set(np.unique(after - s)) == {0, 5}
    for drawn in (goal, z):
        same = (drawn >= s) & ((drawn < 40) == (s < 40))
        assert np.mean((drawn - s)[same] % 5 == 0) > 0.8  # but for random ones, which may be of another phase
    assert set(s) == {*range(40), 40, 41, 45, 46}  # of seven frames, the middle ones are in no step of five


@pytest.mark.parametrize("kind", ["frames", "vectors"])
def test_batches(kind, make_play, tmp_path):
    root = make_play(tmp_path, actions=False) if kind == "frames" else write_pushes(tmp_path, 20)
    data = opened(root, frame_skip=2)
    batch = data.dataset[3]
    shape = (8, 32, 40, 3) if kind == "frames" else (8, 3)
    for name in NAMES:
        assert batch[name].shape == shape
        assert batch[name].dtype == (torch.uint8 if kind == "frames" else torch.float32)
    same = (batch[schema.OBSERVATION] == batch[schema.GOAL]).flatten(1).all(1)
    assert same[batch[schema.REACHED]].all()
    if kind == "vectors":
        later = batch[schema.NEXT_OBSERVATION][:, 2] - batch[schema.OBSERVATION][:, 2]
        assert set(later.tolist()) <= {0.0, 20.0}
        assert data.dataset.values[:, 2].max() == 10 * LENGTH  # final observations too
    again = opened(root, frame_skip=2).dataset
    assert all(torch.equal(again[3][name], batch[name]) for name in batch)
    assert not torch.equal(again[4][schema.OBSERVATION], batch[schema.OBSERVATION])
    halves = []
    for rank in range(2):  # the global batch is that of (seed, step), whoever takes which part
        part = opened(root, frame_skip=2, batch_size=4).dataset
        part.rank, part.world_size = rank, 2
        halves.append(part[3])
    assert all(torch.equal(torch.cat([half[name] for half in halves]), batch[name]) for name in batch)


@pytest.mark.parametrize("goals", ["same", "own"])
def test_a_state_and_the_next_are_shifted_alike(goals, make_play, tmp_path):
    root = make_play(tmp_path, actions=False)
    plain = opened(root).dataset[0]
    shift = {"pad": 3, "probability": 1.0, "goals": goals}
    moved = opened(root, shift=shift).dataset[0]
    offsets = {name: [offset(a, b) for a, b in zip(plain[name], moved[name], strict=True)] for name in NAMES}
    assert len(set(offsets[schema.OBSERVATION])) > 4
    assert offsets[schema.OBSERVATION] == offsets[schema.NEXT_OBSERVATION]
    assert (offsets[schema.GOAL] == offsets[schema.OBSERVATION]) == (goals == "same")
    assert (offsets[schema.INTENT] == offsets[schema.OBSERVATION]) == (goals == "same")
    never = opened(root, shift=shift | {"probability": 0.0}).dataset[0]
    assert all(torch.equal(never[name], plain[name]) for name in plain)


def offset(before, after):
    """By how many pixels (down, right) the middle of a picture [h w c] moved."""
    inner = after[3:-3, 3:-3]
    h, w = inner.shape[:2]
    places = [(y, x) for y in range(-3, 4) for x in range(-3, 4)]
    return next((y, x) for y, x in places if torch.equal(before[3 - y : 3 - y + h, 3 - x : 3 - x + w], inner))


def test_frames_beyond_the_cache_are_kept_in_a_file(make_play, tmp_path):
    data = opened(make_play(tmp_path / "shards", actions=False))
    before = data.dataset[0]
    data.dataset.load(0.0, tmp_path / "frames.npy")
    assert (tmp_path / "frames.npy").stat().st_size > data.frames * 32 * 40 * 3
    assert all(torch.equal(data.dataset[0][name], before[name]) for name in before)


def test_trajectories_without_a_step_are_set_aside(tmp_path):
    """Of two videos: one whole, one with a frame before a gap."""
    root = write_clips(tmp_path, {"a": [(0, 9)], "b": [(0, 1), (3, 9)]})
    data = opened(root)
    assert data.set_aside == {"data/set_aside_trajectories": 1} and len(data.dataset.offsets) == 3
    assert opened(root, frame_skip=7).set_aside == {"data/set_aside_trajectories": 2}
    with pytest.raises(DataError, match="none of the 3 trajectories has more than 9 states"):
        opened(root, frame_skip=9)


def test_what_does_not_fit_is_told(make_play, tmp_path):
    frames, vectors = make_play(tmp_path / "frames", actions=False), write_pushes(tmp_path / "vectors", 6)
    with pytest.raises(DataError, match=r"frames 32x40 at 17\.5 Hz, but method\.net\.encoder=none; set it to impala"):
        opened(frames).derive({"encoder": "none"})
    with pytest.raises(DataError, match=r"states at 10 Hz, but method\.net\.encoder=resnet; set it to none"):
        opened(vectors).derive({"encoder": "resnet"})
    with pytest.raises(DataError, match=r"vectors; set data\.shift=null"):
        opened(vectors, shift={"pad": 3, "probability": 1.0, "goals": "same"})
    with pytest.raises(DataError, match="expected at least 1, 0 to 1, one of"):
        opened(frames, shift={"pad": 3, "probability": 1.0, "goals": "other"})
    with pytest.raises(DataError, match=r"data\.train 3-dimensional states"):
        opened(vectors, validation=str(frames))
    with pytest.raises(DataError, match="add up to 1"):
        opened(vectors, goals={**PAPER, "p_random": 0.5})
    with pytest.raises(DataError, match="p_samegoal"):
        opened(vectors, p_samegoal=1.5)
