"""The room of pictures: what the engine shows from a pose, steps between poses, labels that lead to a corner."""

import pytest
import torch

from foundation import collect, evaluate, hub, pretrain
from foundation.envs.doom_pictures import COLOURS, HEADINGS, SIZE, pictures
from foundation.envs.doom_room import FORWARD, LEFT, RIGHT, STAY, DoomRoom
from foundation.envs.worlds import per_row
from models.vision import PictureEncoder
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, DataError
from pipelines.trajectories import Trajectories
from tests.foundation.running import run

CELLS = 3
NET = ["method.net.encoder={_target_: models.vision.PictureEncoder}", "method.net.next_state=false"]
NET += ["method.net.width=16", "method.net.layers=1", "method=dpt"]


@pytest.fixture(scope="module")
def world():
    return DoomRoom(cells=CELLS, horizon=12)


def picture(world, x, y, heading):
    return world.states[(x * CELLS + y) * len(HEADINGS) + heading][:-2].reshape(SIZE, SIZE, 3)


def test_each_corner_shows_its_colour(world):
    for (x, y), rgb in zip(world.corners.tolist(), COLOURS.values(), strict=True):
        toward = HEADINGS.index((1 if x else -1, 1 if y else -1))
        seen = picture(world, x, y, toward).mean((0, 1))
        lit = torch.tensor([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255]).bool()
        assert seen[lit].min() > 2 * seen[~lit].max(), (x, y, seen)
    assert (world.states[:, :-2] >= 0).all() and (world.states[:, :-2] <= 1).all()
    assert torch.equal(pictures.__wrapped__(CELLS), pictures(CELLS))  # another engine draws the same


def test_a_pose_is_known_by_its_picture(world):
    assert torch.equal(world.row(world.states), torch.arange(len(world.states)))
    assert torch.equal(world.row(world.states.reshape(CELLS, -1, world.state_dim)).flatten(), world.row(world.states))


def test_steps_turn_and_go_from_cell_to_cell(world):
    tasks, start = {"corner": torch.zeros(1, dtype=torch.long)}, world.start({"corner": torch.zeros(1)})

    def after(*actions):
        shown, rewards = start, []
        for action in actions:
            reward, shown = world.step(tasks, shown, torch.tensor([action]))
            rewards.append(float(reward))
        row = int(world.row(shown))
        return (*world.place[row].tolist(), int(world.heading[row])), rewards

    assert after() == ((1, 1, 0), [])
    assert after(LEFT) == ((1, 1, 1), [0]) and after(RIGHT) == ((1, 1, 7), [0])
    assert after(FORWARD, FORWARD) == ((2, 1, 0), [0, 0])  # the wall holds
    assert after(LEFT, FORWARD, STAY, RIGHT) == ((2, 2, 0), [0, 1, 1, 1])
    assert after(*[LEFT] * 8) == ((1, 1, 0), [0] * 8)


def test_labels_lead_to_the_right_corner_from_everywhere(world):
    tasks = {"corner": torch.arange(4)}
    shown = world.states.expand(4, -1, -1)
    for _ in range(12):
        label = world.optimal(tasks, shown)
        reward, shown = world.step(per_row(tasks), shown, label)
    assert (reward == 1).all() and (world.optimal(tasks, shown) == STAY).all()


def test_contexts_are_single_transitions(world):
    g = torch.Generator().manual_seed(0)
    tasks = world.draw(64, g)
    context = world.context(tasks, 40, g)
    reward, following = world.step(per_row(tasks), context[OBSERVATION], context[ACTION])
    assert torch.equal(following, context[NEXT_OBSERVATION]) and torch.equal(reward, context[REWARD])
    assert 0 < reward.mean() < 0.3 and (world.queries(tasks, 2, g).shape) == (64, 2, world.state_dim)


def test_the_encoder_keeps_the_heading_and_has_the_release_s_sizes(world):
    encoder = PictureEncoder()
    out = encoder(world.states.reshape(CELLS, -1, world.state_dim))
    assert out.shape == (CELLS, CELLS * 8, encoder.out) and encoder.out == 10 and encoder.linear.in_features == 1600
    assert torch.equal(out[..., -2:].flatten(0, 1), world.states[:, -2:])


def test_it_is_trained_evaluated_and_collected_as_any_world(tmp_path):
    room = [f"data.world.cells={CELLS}", "data=doom_room", "data.length=[10]", "data.validation=4", "data.batch_size=4"]
    summary = run(pretrain, "pretrain", *NET, *room, "steps=2", f"run.dir={tmp_path / 'run'}")
    assert summary["validation/loss"] > summary["validation/floor"]
    assert hub.load(tmp_path / "run").net.encoder.out == 10
    task = ["task=doom_room", f"task.env.world.cells={CELLS}", "task.env.world.horizon=10"]
    small = ["task.protocol.tasks=3", "task.protocol.episodes=2", "task.protocol.context=10"]
    numbers = run(evaluate, "evaluate", *task, *small, f"policy={tmp_path / 'run'}", f"run.dir={tmp_path / 'e'}")
    assert any("policy" in name for name in numbers)
    plays = ["states.behaviour=context", "states.episodes=3", "workers=0", f"out={tmp_path / 's'}"]
    run(collect, "collect", *task, *plays, f"run.dir={tmp_path / 'c'}")
    data = Trajectories.load(tmp_path / "s")
    assert data.spaces.state_dim == 3 * SIZE**2 + 2 and data.optimal_action.max() <= STAY
    pinned = ["data=contexts", f"data.train={tmp_path / 's'}", "data.by=[task,seed]", "data.length=10"]
    pinned += ["data.shuffle=true", "data.normalise=null", "data.order=recorded", "data.cut=0"]
    pinned += ["steps=1", "data.batch_size=2"]
    assert run(pretrain, "pretrain", *NET, *pinned, f"run.dir={tmp_path / 'pinned'}")["train/loss"] > 0


def test_bad_settings_say_what_was_expected():
    with pytest.raises(DataError, match="odd"):
        DoomRoom(cells=4)
