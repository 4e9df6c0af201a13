"""Single steps of frames: what belongs together, returns, the share of prior data, made-up rewards, tasks."""

from functools import cache

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from foundation.pretraining.frame_steps import FrameStepData, returns
from pipelines import schema
from pipelines.actions import ActionCodec
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter
from tests.foundation.maze_shards import write_mazes
from tests.foundation.running import config
from tests.foundation.vector_world import write_pushes

FIDGETING = "clips.fidgeting=0.3"


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_mazes(tmp_path_factory.mktemp("train"), "task.env.maps=2", FIDGETING)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return write_mazes(tmp_path_factory.mktemp("prior"), "task.env.maps=4", "run.seed=1", episodes=10)


@cache
def configured():
    return OmegaConf.to_container(config("pretrain", "method=cql"), resolve=True)["data"]


def opened(train, **options):
    """The data module with the settings of method=cql, its frames decoded."""
    settings = {**configured(), "train": str(train), "steps": 10, "seed": 0, "batch_size": 8, "shift": None, **options}
    data = FrameStepData(**{name: value for name, value in settings.items() if name != "_target_"})
    for dataset in (data.dataset, data.validation):
        if dataset is not None:
            dataset.load(1.0, None)
    return data


def test_a_step_is_a_frame_its_action_and_the_next_frame(train):
    data = opened(train)
    source, codec = data.dataset.sources[0], ActionCodec(data.spec)
    states = source.states
    assert data.frames == len(source.steps) == sum(states.offsets[1:] - states.offsets[:-1] - 1)
    assert np.array_equal(source.after, source.steps + 1)
    place = 0
    for start, (_, clips, at) in zip(states.offsets, states.runs, strict=False):
        arrays, n = states.shards.arrays(clips[0]), len(at) - 1
        own = slice(place, place + n)
        assert source.steps[own].tolist() == list(range(start, start + n))
        joint = np.stack([2 * source.action[own], np.full(n, codec.camera_null)], -1)  # every other class has the mouse
        keys, _ = codec.from_joint(joint)
        held = arrays[schema.KEYS][:n].copy()
        for pair in ([0, 1], [2, 3]):
            held[np.ix_(held[:, pair].all(1), pair)] = 0  # opposite keys are none
        assert np.array_equal(keys, held)
        assert np.array_equal(source.rewards[own], arrays[schema.REWARD][:n])
        assert source.terminated[own].tolist() == [False] * (n - 1) + [True]
        left = np.arange(n - 1, -1, -1)  # steps at -1 after this one
        assert source.returns[own] == pytest.approx(-(1 - 0.96**left) / 0.04, abs=1e-4)
        place += n


def test_returns_by_hand():
    ends = np.array([False, False, True])
    assert returns(np.array([-1.0, -1.0, 10.0]), ends, 0.5).tolist() == [-1 - 0.5 + 2.5, -1 + 5, 10]
    assert returns(np.array([-1.0, -1.0]), np.zeros(2, bool), 0.5).tolist() == [-2.0, -2.0]  # cut: goes on at -1
    assert len(returns(np.zeros(0), np.zeros(0, bool), 0.5)) == 0


def test_rewards_of_the_last_steps(train):
    source = opened(train, reward={"last": 3, "value": 10, "other": -1}).dataset.sources[0]
    ends = np.flatnonzero(source.terminated)
    assert len(ends) == 6
    begins = np.r_[0, ends[:-1] + 1]
    for a, b in zip(begins, ends, strict=True):
        n = b + 1 - a
        assert source.rewards[a : b + 1].tolist() == [-1] * (n - 3) + [10] * min(3, n)
    with pytest.raises(DataError, match="last: steps"):
        opened(train, reward={"last": 3})


def test_batches_are_a_function_of_seed_and_step(train, prior):
    one, other = (opened(train, prior=str(prior), shift={"pad": 2, "probability": 1.0}).dataset for _ in range(2))
    batch = one[3]
    assert batch[schema.OBSERVATION].shape == batch[schema.NEXT_OBSERVATION].shape == (8, 16, 16, 3)
    kinds = {name: value.dtype for name, value in batch.items()}
    assert kinds == {
        schema.OBSERVATION: torch.uint8, schema.NEXT_OBSERVATION: torch.uint8, schema.ACTION: torch.int64,
        schema.REWARD: torch.float32, schema.RETURN: torch.float32, schema.TERMINATED: torch.bool,
    }  # fmt: skip
    assert all(torch.equal(other[3][name], value) for name, value in batch.items())
    assert not torch.equal(one[4][schema.OBSERVATION], batch[schema.OBSERVATION])
    halves = []
    for rank in range(2):
        part = opened(train, prior=str(prior), shift={"pad": 2, "probability": 1.0}, batch_size=4).dataset
        part.rank, part.world_size = rank, 2
        halves.append(part[3])
    assert all(torch.equal(torch.cat([half[name] for half in halves]), value) for name, value in batch.items())


def test_s_and_the_next_are_shifted_alike(train):
    plain, moved = (opened(train, shift=shift).dataset[0] for shift in (None, {"pad": 1, "probability": 1.0}))
    for i in range(8):
        cut = (slice(1, 15), slice(1, 15))
        at = [
            {(y, x) for y in range(3) for x in range(3)
             if torch.equal(moved[name][i][cut], plain[name][i][y : y + 14, x : x + 14])}
            for name in (schema.OBSERVATION, schema.NEXT_OBSERVATION)
        ]  # fmt: skip
        assert at[0] & at[1]


def test_the_share_of_prior_data(train, prior):
    """Within three standard deviations of 0.9, from the step that is told; before it all rows are prior ones."""
    steps, b = 400, 16
    data = opened(train, prior=str(prior), mix_from=100, batch_size=b, steps=100 + steps).dataset
    drawn = [data.draw(np.random.default_rng((0, 0, step)), b, step) for step in range(100 + steps)]
    assert all((source == 1).all() for source, _ in drawn[:100])
    assert any((source == 0).any() for source, _ in drawn[100:105])
    share = np.mean([source.mean() for source, _ in drawn[100:]])
    assert abs(share - 0.9) < 3 * np.sqrt(0.9 * 0.1 / (steps * b))
    for i, size in enumerate(data.sizes):
        own = np.concatenate([index[source == i] for source, index in drawn])
        assert own.min() >= 0 and own.max() < size and len(np.unique(own)) > 0.9 * min(size, 100)
    assert all((opened(train).dataset.draw(np.random.default_rng(0), b, step)[0] == 0).all() for step in (0, 500))


def test_rows_stay_together_in_a_mixed_batch(train, prior):
    data = opened(train, prior=str(prior), prior_share=0.5, batch_size=32).dataset
    batch, source_and_index = data[7], data.draw(np.random.default_rng((0, 0, 7)), 32, 7)
    for row, (source, index) in enumerate(zip(*source_and_index, strict=True)):
        one = data.sources[source]
        assert np.array_equal(batch[schema.OBSERVATION][row], one.frames[one.steps[index]])
        assert np.array_equal(batch[schema.NEXT_OBSERVATION][row], one.frames[one.after[index]])
        assert batch[schema.ACTION][row] == one.action[index] and batch[schema.RETURN][row] == one.returns[index]


def test_tasks_are_told_apart_by_a_tag(train, prior):
    data = opened(train, prior=str(prior), tasks={"map": [3, 2, 1, 0]})
    assert data.derive({"tasks": None})["tasks"] == 4
    for source in data.dataset.sources:
        for clip in {run[1][0] for run in source.states.runs}:
            number = source.states.shards.entry(clip).meta["tags"]["map"]
            assert (source.condition[:, 3 - number] == 1).any()
    condition = data.dataset[0][schema.CONDITION]
    assert condition.shape == (8, 4) and condition.sum(1).tolist() == [1.0] * 8
    with pytest.raises(DataError, match="add it"):
        opened(train, tasks={"map": [7]})
    with pytest.raises(DataError, match="one tag"):
        opened(train, tasks={"map": [0], "goal": [1]})


def test_held_out_episodes(train):
    data = opened(train, validation=0.34)
    episodes = [set(dataset.sources[0].states.groups) for dataset in (data.dataset, data.validation)]
    assert [len(part) for part in episodes] == [4, 2] and not episodes[0] & episodes[1]
    assert len(data.validation) == 16 and set(data.validation[0]) == set(data.dataset[0])


def test_video_without_actions_is_refused_by_name(train, tmp_path):
    video = write_mazes(tmp_path, episodes=2, actions=False)
    for options, what in (({"train": video}, "labels"), ({"train": train, "prior": str(video)}, "prior_labels")):
        with pytest.raises(DataError, match=rf"label it first: python -m pipelines\.label clips=.* data\.{what}="):
            opened(**options)


def test_labels_take_the_place_of_recorded_keys(train, tmp_path):
    """Label shards of other keys: those are learned from, while rewards and ends stay the recorded ones."""
    shards = Shards(str(train))
    with ShardWriter(tmp_path, "labels") as writer:
        for entry in shards.entries:
            meta, arrays = shards.meta(entry.key), shards.arrays(entry.key)
            labelled = {name: arrays[name] for name in (schema.KEYS, schema.MOUSE, schema.COVERAGE)}
            labelled[schema.KEYS] = np.tile(np.uint8([1, 0, 0, 0]), (len(arrays[schema.KEYS]), 1))
            writer.write(entry.key, {"npz": labelled, "json": meta})
    plain, found = opened(train).dataset.sources[0], opened(train, labels=str(tmp_path)).dataset.sources[0]
    assert len(set(plain.action)) > 2 and len(set(found.action)) == 1
    assert np.array_equal(found.rewards, plain.rewards) and np.array_equal(found.steps, plain.steps)


def test_what_does_not_fit_is_told(train, prior, play_shards, tmp_path):
    for wrong, words in (
        ({"prior_share": 1.0}, "prior_share=1.0"), ({"mix_from": 5}, "data.prior, which is not set"),
        ({"mix_from": -1}, "mix_from=-1"), ({"batch_size": 0}, "batch_size=0"),
        ({"shift": {"pad": 0, "probability": 1.0}}, "data.shift"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            opened(train, **wrong)
    with pytest.raises(DataError, match=r"before data\.train is in a batch"):
        opened(train, prior=str(prior), mix_from=10)
    with pytest.raises(DataError, match="moves the mouse"):
        opened(play_shards)
    with pytest.raises(DataError, match="other keys, sizes or rates"):
        opened(train, prior=str(write_mazes(tmp_path, "task.env.size=[20,20]", episodes=1)))
    with pytest.raises(DataError, match="takes trajectory shards of frames"):
        opened(write_pushes(tmp_path / "pushes", 4))
