"""Batches of tasks that are drawn anew: functions of (seed, step), cut by rank, of the lengths asked for."""

import pytest
import torch

from foundation.envs.dark_room import DarkRoom
from foundation.pretraining.token_data import TRAIN
from foundation.pretraining.world_data import Batches, WorldData, lengths_of
from pipelines.schema import ACTION, FLOOR, NEXT_OBSERVATION, OBSERVATION, PLACE, QUERY, REWARD, TARGET, DataError

BANDIT = {"_target_": "foundation.envs.bandits.GaussianBandit", "arms": 4}
ROOM = {"_target_": "foundation.envs.dark_room.DarkRoom", "size": 5}
LINEAR = {"_target_": "foundation.envs.bandits.LinearBandit", "arms": 4}


def data(world=BANDIT, **options):
    usual = {"length": [6], "shares": None, "queries": None, "batch_size": 4, "validation": 8, "workers": 0}
    return WorldData(world, **{**usual, "steps": 10, "seed": 0, **options})


def batches(given, seed=0, rank=0, world_size=1):
    return Batches(given, (seed, TRAIN), "train", None, rank, world_size)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("world", [BANDIT, ROOM, LINEAR], ids=lambda node: node["_target_"].rpartition(".")[2])
def test_a_batch_is_a_function_of_seed_and_step(world):
    first, again = batches(data(world)), batches(data(world))
    assert same(again[7], first[7]) and same(first[0], again[0])  # in any order
    assert not same(first[0], first[1])
    assert not same(first[0], batches(data(world), seed=1)[0])


@pytest.mark.parametrize("queries", [None, 3])
def test_ranks_make_up_the_batch_of_one_process(queries):
    whole = batches(data(batch_size=12, queries=queries))[2]
    cut = [batches(data(batch_size=4, queries=queries), rank=rank, world_size=3)[2] for rank in range(3)]
    for name, value in whole.items():
        joined = cut[0][name] if name == PLACE else torch.cat([part[name] for part in cut])
        assert torch.equal(joined, value), name


def test_shapes_and_what_is_asked():
    shapes = {name: tuple(value.shape) for name, value in batches(data(ROOM))[0].items()}
    context = {OBSERVATION: (4, 6, 2), NEXT_OBSERVATION: (4, 6, 2), ACTION: (4, 6), REWARD: (4, 6)}
    assert shapes == {**context, QUERY: (4, 1, 2), PLACE: (7,), TARGET: (4, 7)}
    assert batches(data(ROOM))[0][PLACE].tolist() == list(range(7))
    several = data(ROOM, queries=3)
    several.one_query = False
    batch = batches(several)[0]
    assert batch[QUERY].shape == (4, 3, 2) and batch[TARGET].shape == (4, 3)
    assert batch[PLACE].tolist() == sorted(batch[PLACE].tolist()) and batch[PLACE].max() <= 6
    assert not torch.equal(batch[PLACE], batches(several)[1][PLACE])


def test_labels_are_the_best_actions_of_the_task_that_made_the_context():
    batch = batches(data(BANDIT, length=[4000], batch_size=16))[0]
    means = torch.stack([torch.where(batch[ACTION] == a, batch[REWARD], torch.nan).nanmean(1) for a in range(4)], 1)
    known = ((batch[ACTION][..., None] == torch.arange(4)).sum(1) > 200).all(1)
    assert known.any() and (means.argmax(1) == batch[TARGET][:, 0])[known].float().mean() > 0.8


def test_held_out_tasks_are_one_batch_that_training_never_draws():
    given = data(ROOM, validation=50)
    batch, of_another_run = given.validation[0], data(ROOM, validation=50, seed=5).validation[0]
    assert len(given.validation) == 1 and same(batch, given.validation[0]) and same(batch, of_another_run)
    assert batch[FLOOR].shape == (50, 7) and (batch[FLOOR] >= 0).all()
    rewarded, goals = batch[REWARD] > 0, DarkRoom(size=5).unknown
    assert rewarded.any()
    for cell in batch[NEXT_OBSERVATION][rewarded]:
        assert (goals["heldout"] == cell).all(1).any()
    drawn = batches(data(ROOM, batch_size=200))[0]
    for cell in drawn[NEXT_OBSERVATION][drawn[REWARD] > 0].unique(dim=0):
        assert (goals["train"] == cell).all(1).any()


def test_places_of_held_out_tasks_span_the_longest_context():
    assert data(length=[500], validation=2).validation[0][PLACE].tolist()[::32] == [0, 500]
    assert FLOOR not in data(LINEAR).validation[0]  # its posterior is not known here


def test_lengths_take_turns():
    assert lengths_of([40, 100, 500], [0.5, 0.3, 0.2], 10) == {0: 40, 5: 100, 8: 500}
    assert lengths_of(7, None, 10) == {0: 7} and lengths_of([2, 4], None, 10) == {0: 2, 5: 4}
    given = data(length=[4, 9], shares=[0.8, 0.2])
    assert [given.length_at(step) for step in range(10)] == [4] * 8 + [9] * 2
    assert [given.rows(0), given.rows(9)] == [8, 4]  # 40 tokens both
    assert given.frames == 8 * 8 * 4 + 2 * 4 * 9 and given.longest == 9
    assert batches(given)[7][REWARD].shape == (8, 4) and batches(given)[8][REWARD].shape == (4, 9)


def test_a_length_counts_updates_however_many_batches_one_has():
    given = data(length=[4, 9], shares=[0.5, 0.5], steps=2)
    parts = Batches(given, (0, TRAIN), "train", parts=3)
    assert len(parts) == 6
    assert [parts[i][REWARD].shape[1] for i in range(6)] == [4, 4, 4, 9, 9, 9]
    assert not same(parts[0], parts[1])


def test_pictures_without_an_encoder_are_told(caplog):
    net = {"_target_": "models.in_context.InContext", "state_dim": None, "query": "last", "encoder": None}
    given = data(ROOM)
    given.world.pictures = True
    given.derive(net)
    assert "PictureEncoder" in caplog.text
    caplog.clear()
    given.derive({**net, "encoder": {"_target_": "models.vision.PictureEncoder"}})
    assert not caplog.text


def test_what_the_network_is_told():
    net = {"state_dim": None, "n_actions": None, "action_dim": None, "context": None, "query": "last"}
    derived = data(ROOM, length=[6, 9]).derive(net)
    assert derived == {"state_dim": 2, "n_actions": 5, "action_dim": 1, "context": 9, "query": "last"}
    assert data(ROOM).derive({**net, "context": 70})["context"] == 70
    with pytest.raises(DataError, match=r"models.language.GPT does not learn from contexts.*method=dpt"):
        data(ROOM).derive({"_target_": "models.language.GPT", "state_dim": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": [0]}, "lengths of at least 1"),
        ({"length": []}, "lengths of at least 1"),
        ({"length": [4, 6], "shares": [1.0]}, "for each a share"),
        ({"length": [4, 6], "shares": [0.5, 0.6]}, "add up to 1"),
        ({"length": [4, 6], "shares": [1.5, -0.5]}, "add up to 1"),
        ({"queries": 0}, "data.queries=0"),
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"validation": 0}, "data.validation=0"),
        ({"world": {**BANDIT, "arms": 1}}, "arms=1"),
        ({"world": None}, "expected a config with a _target_"),
        ({"world": {**BANDIT, "noise": float("nan")}}, "noise=nan"),
        ({"world": {**BANDIT, "goal": 1}}, "goal"),
        ({"world": {"_target_": "foundation.learners.Uniform", "n_actions": 3}}, "expected a _target_"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        data(**options)
