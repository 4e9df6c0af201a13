"""method=icvf: targets follow from before the step, clips need no actions, a saved model, a world it learns."""

from collections import deque

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from foundation import hub, pretrain
from foundation.pretraining.icvf import IntentValueTask, towards
from foundation.probe import untrained
from models.icvf import ENCODER, Icvf
from pipelines import schema
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode
from tests.foundation.running import run
from tests.foundation.vector_world import write_pushes

SMALL = ("method.net.dim=8", "data.batch_size=4", "steps=3")
SIDE, LENGTH = 4, 60  # of the grid, of a walk
MOVES = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])


def train(folder, shards, *overrides):
    return run(pretrain, "pretrain", "method=icvf", f"data.train={shards}", f"run.dir={folder}", *SMALL, *overrides)


def checkpoints(folder):
    names = ("last-2.ckpt", "last-1.ckpt", "last.ckpt")
    return [torch.load(folder / name, weights_only=True)["state_dict"] for name in names]


@pytest.mark.parametrize("more", [[], ["trainer.accumulate_grad_batches=2"]])
def test_targets_follow_the_parameters_from_before_the_step(more, tmp_path):
    train(tmp_path / "run", write_pushes(tmp_path / "shards", 8), "checkpoint_every=1", "keep_checkpoints=3",
          "method.tau=0.1", *more)  # fmt: skip
    states = checkpoints(tmp_path / "run")
    for before, after in zip(states, states[1:], strict=False):
        for name in (n.removeprefix("net.") for n in before if n.startswith("net.")):
            expected = before[f"target.{name}"].lerp(before[f"net.{name}"], 0.1)
            assert torch.equal(after[f"target.{name}"], expected), name
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0] if n.startswith("target."))


def batch(n=16):
    torch.manual_seed(0)
    reached = torch.arange(n) % 3 == 0
    s, after, goal, z = torch.randn(4, n, 3)
    names = schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL, schema.INTENT
    return dict(zip(names, (s, after, goal, z), strict=True)) | {
        schema.REACHED: reached,
        schema.INTENT_REACHED: ~reached,
    }


def task(**options):
    torch.manual_seed(0)
    made = IntentValueTask(Icvf(state_dim=3, dim=8), {}, **{"gamma": 0.9, "expectile": 0.9, "tau": 0.1, **options})
    with torch.no_grad():  # away from the network, or a swap of the two would not show
        for parameter in made.target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def test_the_loss_is_built_from_the_right_values():
    """Member by member in float64, from values asked for one by one."""
    found, data = task().double(), {n: v.double() if v.is_floating_point() else v for n, v in batch().items()}
    s, after, goal, z = (data[n] for n in (schema.OBSERVATION, schema.NEXT_OBSERVATION, schema.GOAL, schema.INTENT))
    v, t = found.net, found.target
    advantage = torch.where(data[schema.INTENT_REACHED], 0, -1 + 0.9 * t(after, z, z).amin(0)) - t(s, z, z).mean(0)
    weight = torch.where(advantage >= 0, torch.tensor(0.9).double(), torch.tensor(0.1).double())
    target = torch.where(data[schema.REACHED], 0, -1 + 0.9 * t(after, goal, z))
    expected = (weight * (target.detach() - v(s, goal, z)) ** 2).mean(1).sum()
    loss, metrics = found.losses(data)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["helpful"].item() == pytest.approx((advantage >= 0).float().mean().item())
    ours = torch.autograd.grad(loss, list(v.parameters()))
    theirs = torch.autograd.grad(expected, list(v.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None and not p.requires_grad for p in t.parameters())


def test_without_intents_every_step_weighs_alike():
    data = batch()
    found = task(no_intent=True)
    loss, _ = found.losses(data)
    assert loss.item() == found.losses(data | {schema.INTENT: torch.randn(16, 3)})[0].item()
    ones = torch.ones(16, 3)
    goal = data[schema.GOAL]
    target = torch.where(data[schema.REACHED], 0, -1 + 0.9 * found.target(data[schema.NEXT_OBSERVATION], goal, ones))
    error = target - found.net(data[schema.OBSERVATION], goal, ones)
    assert loss.item() == pytest.approx(0.9 * error.square().mean(1).sum().item(), rel=1e-5)


@pytest.mark.parametrize("encoder", ["impala", "resnet"])
def test_clips_need_no_actions(encoder, make_play, tmp_path):
    shards, held_out = make_play(tmp_path / "a", actions=False), make_play(tmp_path / "b", actions=False, seed=1)
    net = [f"method.net.encoder={encoder}", "method.net.channels=[4,4]"]
    data = [f"data.validation={held_out}", "data.frame_skip=3", "data.shift={pad: 3, probability: 0.5, goals: same}"]
    summary = train(tmp_path / "run", shards, *net, *data)
    assert summary["train/loss"] > 0 and summary["validation/loss"] > 0 and -1 <= summary["validation/order"] <= 1
    bundle = hub.load(tmp_path / "run")
    assert bundle.size == (32, 40) and bundle.fps == 17.5 and bundle.spec is None
    assert (bundle.config["frame_skip"], bundle.config["gamma"]) == (3, 0.99)
    frames = torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8)
    assert bundle.net.phi(frames).shape == (2, 2, 8)
    assert any(name.startswith(ENCODER) for name in bundle.net.state_dict())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "feature-extraction" in card and "without actions" in card
    assert train(tmp_path / "again", shards, f"init={tmp_path / 'run'}", *net)["steps"] == 3


def test_settings_that_make_no_sense_are_told(tmp_path):
    for wrong in ({"gamma": 1.0}, {"expectile": 0.0}, {"tau": 0.0}, {"advantage": "max"}):
        with pytest.raises(DataError, match="method: "):
            task(**wrong)
    shards = write_pushes(tmp_path / "shards", 6)
    with pytest.raises(DataError, match="encoder=impala; set it to none"):
        train(tmp_path / "run", shards, "method.net.encoder=impala")


# a world that can be learned: walks without purpose through two rooms with one door; a cell shows a code without sense


def free(x, y):
    return 0 <= x < SIDE and 0 <= y < SIDE and (x != 2 or y == SIDE - 1)


CELLS = [(x, y) for x in range(SIDE) for y in range(SIDE) if free(x, y)]


CODES = np.random.default_rng(5).normal(size=(len(CELLS), 8)).astype(np.float32)


def states(cells):
    return CODES[[CELLS.index(cell) for cell in cells]]


def distances(goal):
    """Steps from every cell to `goal`, int [cells]."""
    steps, queue = {goal: 0}, deque([goal])
    while queue:
        x, y = queue.popleft()
        for cell in ((x + dx, y + dy) for dx, dy in MOVES):
            if free(*cell) and cell not in steps:
                steps[cell] = steps[x, y] + 1
                queue.append(cell)
    return np.array([steps[cell] for cell in CELLS])


def write_walks(root, walks, seed=0):
    rng = np.random.default_rng(seed)
    with ShardWriter(root, "episodes") as writer:
        for i in range(walks):
            path, move = [CELLS[rng.integers(len(CELLS))]], MOVES[0]
            for _ in range(LENGTH):
                move = MOVES[rng.integers(4)] if rng.random() < 0.5 else move
                ahead = tuple(int(v) for v in path[-1] + move)
                path.append(ahead if free(*ahead) else path[-1])
            seen, none = states(path), np.zeros(LENGTH)
            arrays = {"observation": seen[:-1], "final_observation": seen[-1], "action": none[:, None], "reward": none,
                      "terminated": none.astype(bool), "truncated": np.arange(LENGTH) == LENGTH - 1}  # fmt: skip
            write_episode(writer, f"w{i:04d}", arrays, Spaces(8, 1, low=(-1.0,), high=(1.0,)), 10.0, "rooms")
    return root


def order(value):
    """Mean over goals of the rank correlation of -value(states, goals) with the distance."""
    every = torch.from_numpy(states(CELLS))
    found = []
    for i, goal in enumerate(CELLS):
        far = -value(every, every[i].expand(len(CELLS), -1))
        found.append(spearmanr(far, distances(goal)).statistic)
    return float(np.mean(found))


def test_values_order_states_by_their_distance(tmp_path):
    train(tmp_path / "run", write_walks(tmp_path / "walks", 100), "steps=600", "data.batch_size=256",
          "method.net.dim=64", "method.optimizer.lr=2e-3", "method.tau=0.05", "method.gamma=0.95")  # fmt: skip
    bundle = hub.load(tmp_path / "run")
    before = order(lambda s, g: towards(untrained(bundle), s, g).mean(0))
    learned = order(lambda s, g: towards(bundle.net, s, g).mean(0))
    assert learned > 0.7 and before < 0.3, (learned, before)
