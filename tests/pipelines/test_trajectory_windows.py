import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipelines.schema import DataError
from pipelines.trajectories import Spaces, Trajectories
from pipelines.trajectory_windows import (
    EpisodeWindows,
    Normalizer,
    WindowSampler,
    as_is,
    episode_weights,
    split,
)


def flat(lengths, rewards=None, tags=None, s=3, seed=0, discrete=False):
    """Trajectories without a disk: observation[i] starts with i, final_observation with -(e + 1)."""
    n, generator = sum(lengths), np.random.default_rng(seed)
    observation = generator.normal(size=(n, s)).astype(np.float32)
    observation[:, 0] = np.arange(n)
    final = generator.normal(size=(len(lengths), s)).astype(np.float32)
    final[:, 0] = -1 - np.arange(len(lengths))
    last = np.zeros(n, bool)
    last[np.cumsum(lengths) - 1] = True
    action = generator.integers(0, 4, n) if discrete else generator.uniform(-1, 1, (n, 2)).astype(np.float32)
    return Trajectories(
        observation=observation, action=action, terminated=last, truncated=np.zeros(n, bool), final_observation=final,
        reward=np.asarray(np.ones(n) if rewards is None else rewards, np.float32), offsets=np.cumsum([0, *lengths]),
        tags=tuple(tags or [{}] * len(lengths)), fps=10.0,
        spaces=Spaces(s, 1, n_actions=4) if discrete else Spaces(s, 2, low=(-1.0, -1.0), high=(1.0, 1.0)),
    )  # fmt: skip


# statistics


def test_statistics_are_those_of_the_steps_and_constant_dimensions_keep_their_scale():
    data = flat([3, 5, 2000])
    data.observation[:, 2] = 0.7
    normalizer = Normalizer.of(data)
    np.testing.assert_allclose(normalizer.mean[0], data.observation.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(
        normalizer.std[0, :2], data.observation[:, :2].std(0, dtype=np.float64) + 1e-6, rtol=1e-6
    )
    assert normalizer.std[0, 2] == 1
    np.testing.assert_allclose(normalizer.invert(normalizer(data.observation)), data.observation, rtol=1e-5, atol=1e-3)


def test_statistics_by_task_and_through_a_file():
    data = flat([2, 3, 4], tags=[{"task": "b"}, {"task": "a"}, {"task": "b"}])
    normalizer = Normalizer.from_dict(Normalizer.of(data, by="task").to_dict())
    assert normalizer.names == ("a", "b")
    np.testing.assert_array_equal(normalizer.rows(data.tags), [1, 0, 1])
    np.testing.assert_allclose(normalizer.mean[0], data.observation[2:5].mean(0), rtol=1e-6)
    rest = data.observation[[0, 1, 5, 6, 7, 8]]
    np.testing.assert_allclose(normalizer.std[1], rest.std(0, dtype=np.float64) + 1e-6, rtol=1e-5)
    windows = EpisodeWindows(data, 2, normalizer)
    state = windows.__getitems__([0, 2])["observation"]
    np.testing.assert_allclose(state[1], normalizer(data.observation[2:4], 0), rtol=1e-6)
    np.testing.assert_allclose(state[0], normalizer(data.observation[0:2], 1), rtol=1e-6)
    with pytest.raises(DataError, match="no statistics for task"):
        normalizer.rows([{"task": "c"}])


DAMAGED = [{}, {"state_mean": [0.0], "state_std": [0.0]}, {"state_mean": [0], "state_std": [1, 2]}]


@pytest.mark.parametrize("values", [*DAMAGED, {"state_mean": "x", "state_std": [1]}, None])
def test_damaged_statistics_are_refused(values):
    with pytest.raises(DataError, match="missing or damaged"):
        Normalizer.from_dict(values)


# which episodes


def test_weights_by_hand():
    data = flat([1, 2, 1], rewards=[0, 1, 1, 4])  # returns 0, 2, 4
    np.testing.assert_allclose(episode_weights(data, "length"), [1 / 4, 1 / 2, 1 / 4])
    raw = np.array([1, 2 * np.e**5, np.e**10])  # exp(w / 0.1) for w = 0, 0.5, 1, per step
    np.testing.assert_allclose(episode_weights(data, "return"), raw / raw.sum(), rtol=1e-9)
    np.testing.assert_allclose(episode_weights(data, "return", alpha=1e9), [1 / 4, 1 / 2, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(episode_weights(data, "return", gamma=0.5), discounted(), rtol=1e-6)


def discounted():
    raw = np.array([1, 2 * np.exp(1.5 / 4 / 0.1), np.e**10])  # returns 0, 1.5, 4
    return raw / raw.sum()


def test_topk_keeps_ties_at_the_cut():
    data = flat([1, 3, 2, 4], rewards=[1, 2, 0, 0, 2, 0, 5, 0, 0, 0])  # returns 1, 2, 2, 5
    np.testing.assert_allclose(episode_weights(data, "topk", top=0.25), [0, 0, 0, 1])
    np.testing.assert_allclose(episode_weights(data, "topk", top=0.5), [0, 3 / 9, 2 / 9, 4 / 9])
    np.testing.assert_allclose(episode_weights(data, "topk", top=1.0), [0.1, 0.3, 0.2, 0.4])


def test_advantage_removes_what_the_first_state_explains():
    data = flat([1] * 8)
    data.observation[:, 0] = np.arange(8)
    data.observation[:, 1:] = 0
    data.reward[:] = 3 * np.arange(8) + np.array([1, -1, -1, 1, 1, -1, -1, 1])  # the rest is orthogonal to the line
    raw = np.exp(np.array([1, 0, 0, 1, 1, 0, 0, 1]) / 0.1)
    np.testing.assert_allclose(episode_weights(data, "advantage"), raw / raw.sum(), rtol=1e-5)
    data.reward[:] = 3 * np.arange(8)
    np.testing.assert_allclose(episode_weights(data, "advantage"), np.full(8, 1 / 8))  # nothing but the first state
    with pytest.raises(DataError, match="no advantage is left"):
        episode_weights(flat([4, 4]), "advantage")


@pytest.mark.parametrize("kind", ["length", "return", "advantage", "topk"])
def test_equal_episodes_are_drawn_by_length(kind):
    data = flat([2, 2, 4, 2, 2, 8], rewards=[1, 1, 1, 1, 2, 0, 0, 0, 1, 1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0])
    weights = episode_weights(data, kind)
    np.testing.assert_allclose(weights, np.array([2, 2, 4, 2, 2, 8]) / 20, rtol=1e-6)
    assert weights.dtype == np.float64


def test_bad_settings():
    for settings in ({"kind": "no"}, {"kind": "return", "alpha": 0}, {"kind": "topk", "top": 0}):
        with pytest.raises(DataError, match="sampling"):
            episode_weights(flat([2]), **settings)
    for settings in ({"condition": "no"}, {"condition": np.zeros((3, 1))}, {"length": 0}, {"scale": 0}):
        with pytest.raises(DataError):
            EpisodeWindows(flat([2]), **{"length": 2, **settings})
    with pytest.raises(DataError, match="2 weights for 1 episodes"):
        WindowSampler(np.ones(2), [0, 3], 4, 1)
    with pytest.raises(DataError, match="leaves one part empty"):
        split(flat([2]), 0.5)


def test_a_split_holds_out_whole_episodes_of_every_task():
    data = flat([2, 3] * 10, tags=[{"task": "a"}, {"task": "b"}] * 10)
    train, held = split(data, 0.2, seed=1, by="task")
    assert (len(train), len(held)) == (16, 4)
    assert sorted(tags["task"] for tags in held.tags) == ["a", "a", "b", "b"]
    rows = np.concatenate([train.observation[:, 0], held.observation[:, 0]])
    np.testing.assert_array_equal(np.sort(rows), np.arange(50))
    np.testing.assert_array_equal(split(data, 0.2, seed=1)[1].observation, split(data, 0.2, seed=1)[1].observation)


# which windows


def test_windows_are_drawn_as_often_as_their_weight_says():
    lengths, weights = [4, 1, 5], np.array([0.5, 0.0, 0.5])
    sampler = WindowSampler(weights, np.cumsum([0, *lengths]), batch_size=1000, total_steps=40, seed=3)
    assert len(sampler) == 40
    share = np.bincount(np.concatenate(list(sampler)), minlength=10) / 40_000
    np.testing.assert_allclose(share, [0.125] * 4 + [0] + [0.1] * 5, atol=0.006)


def test_a_batch_depends_on_seed_and_step_alone_and_ranks_share_it():
    def make(**changes):
        settings = {"batch_size": 8, "total_steps": 6, **changes}
        return WindowSampler(np.full(3, 1 / 3), [0, 5, 9, 20], **settings)

    straight, resumed = list(make()), list(make(start_step=4))
    np.testing.assert_array_equal(straight[4:], resumed)
    assert not np.array_equal(straight[0], straight[1]) and not np.array_equal(straight[0], make(seed=1).batch(0))
    ranks = [make(batch_size=4, rank=rank, world_size=2).batch(3) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(ranks), straight[3])


def test_a_window_by_hand():
    data = flat([3, 2], rewards=[1, 2, 4, 8, 16])
    batch = EpisodeWindows(data, 4, scale=2.0).__getitems__([1, 3])
    assert batch["mask"].tolist() == [[True, True, False, False]] * 2
    assert batch["observation"][..., 0].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert batch["next_observation"][..., 0].tolist() == [[2, -1, 0, 0], [4, -2, 0, 0]]
    assert batch["condition"][..., 0].tolist() == [[3, 2, 0, 0], [12, 8, 0, 0]]
    assert batch["timestep"].tolist() == [[1, 2, 0, 0], [0, 1, 0, 0]]
    assert batch["reward"].tolist() == [[2, 4, 0, 0], [8, 16, 0, 0]]
    assert batch["terminated"].tolist() == [[False, True, False, False]] * 2
    assert batch["weight"].tolist() == [[1, 1, 0, 0]] * 2
    assert not any(value[:, 2:].any() for value in batch.values())
    assert batch["observation"].dtype == batch["condition"].dtype == torch.float32
    assert batch["timestep"].dtype == torch.int64


def test_conditions():
    data = flat([2, 1], rewards=[1, 2, 4], discrete=True)

    def ask(condition):
        return EpisodeWindows(data, 2, condition=condition).__getitems__([0, 2])["condition"]

    assert ask("delayed")[..., 0].tolist() == [[3, 3], [4, 0]]
    assert ask("none").shape == (2, 2, 1) and not ask("none").any()
    goals = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert ask(goals).tolist() == [[[0, 1], [2, 3]], [[4, 5], [0, 0]]]
    assert ask(lambda rows: rows[..., None]).tolist() == [[[0], [1]], [[2], [0]]]
    assert goals.tolist() == [[0, 1], [2, 3], [4, 5]]  # padding wrote into no array of the caller
    batch = EpisodeWindows(data, 2, following=False).__getitems__([0])
    assert batch["action"].dtype == torch.int64 and batch["action"].shape == (1, 2) and "next_observation" not in batch


def test_every_window_equals_the_slow_way_and_the_cover_holds_each_step_once():
    data = flat([3, 1, 7, 4])
    normalizer = Normalizer.of(data)
    windows = EpisodeWindows(data, 3, normalizer)
    to_go = data.returns_to_go()
    for i in range(len(windows)):
        episode = next(e for e in range(4) if data.offsets[e] <= i < data.offsets[e + 1])
        stop = min(i + 3, data.offsets[episode + 1])
        one = windows[i]
        np.testing.assert_array_equal(one["action"][: stop - i], data.action[i:stop])
        np.testing.assert_array_equal(one["observation"][: stop - i], normalizer(data.observation[i:stop]))
        np.testing.assert_array_equal(one["condition"][: stop - i, 0], to_go[i:stop])
        assert one["mask"].sum() == stop - i
    batch = EpisodeWindows(data, 3).__getitems__(windows.cover())
    assert sorted(batch["observation"][batch["mask"]][:, 0].tolist()) == list(range(15))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_takes_batches_as_they_are(workers):
    data = flat([6, 9])
    sampler = WindowSampler(episode_weights(data), data.offsets, 4, 5, seed=2, start_step=2)
    windows = EpisodeWindows(data, 3)
    loader = DataLoader(windows, batch_sampler=sampler, collate_fn=as_is, num_workers=workers)
    for step, batch in zip(range(2, 5), loader, strict=True):
        expected = windows.__getitems__(sampler.batch(step))
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_batches_are_gathered_without_python_per_sample():
    data = flat([1000] * 100, s=11)
    windows = EpisodeWindows(data, 20, Normalizer.of(data), scale=1000.0)
    sampler = WindowSampler(episode_weights(data), data.offsets, 64, 200)
    start = time.process_time()
    for indices in sampler:
        windows.__getitems__(indices)
    assert (time.process_time() - start) / 200 < 0.003  # measured 0.2 ms; a loop over samples takes 7 ms
