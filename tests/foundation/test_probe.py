"""What a frozen encoder knows: linear targets are read, noise is not; encoders of every kind; the command."""

import numpy as np
import pytest
import torch

from foundation import hub
from foundation.envs.maze_video import MazeVideo
from foundation.probe import drawn, encoder_of, features, linear_probe, main, part_of, untrained
from models.icvf import Icvf
from models.inverse_dynamics import InverseDynamics
from pipelines import checkpoint
from pipelines.schema import DataError
from tests.foundation.running import config

SMALL = ("task.env.rooms=2", "states=60")


def test_a_probe_reads_what_is_linear_and_not_what_is_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    target = x @ np.arange(5) + 0.1 * rng.normal(size=600)
    noise = rng.normal(size=600)

    def probe(x, y):
        return linear_probe(x[:400], y[:400], x[400:], y[400:])

    assert min(probe(x, target)) > 0.99
    assert probe(x[:, :1], target).r2 < 0.2
    assert max(probe(x, noise)) < 0.15
    assert 0.4 < probe(x, np.stack([target, noise], 1)).r2 < 0.6
    assert probe(x, -(x[:, 0] ** 3)).rank > 0.9 > probe(x, -(x[:, 0] ** 3)).r2
    constant = np.concatenate([x, np.full((600, 1), 3, np.float32)], 1)
    constant[500, 5] += 1e-3  # a feature that varies only where it is scored
    assert probe(constant, target).r2 > 0.99
    with pytest.raises(DataError, match="400 and 200 states have 400 and 100 targets"):
        linear_probe(x[:400], target[:400], x[400:], target[400:500])


def saved(folder, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"height": 32, "width": 32, "dim": 8, "encoder": "impala", "channels": [4, 4], **options}
    net = Icvf(**sizes)
    checkpoint.save(folder, {"_target_": "models.icvf.Icvf", **sizes}, net, {"size": [32, 32]}, "card")
    return net


def test_the_command_scores_an_encoder_beside_pixels_and_itself_untrained(tmp_path):
    saved(tmp_path / "net", seed=5)
    cfg = config("probe", f"policy={tmp_path / 'net'}", f"run.dir={tmp_path / 'run'}", *SMALL)
    found = main.function(cfg)
    assert found == main.function(cfg) and (found["states"], found["states/held_out"]) == (48, 12)
    names = ("probe", "probe/untrained", "probe/pixels")
    assert all(found[f"{name}/r2"] <= 1 and -1 <= found[f"{name}/rank"] <= 1 for name in names)
    assert found["probe/r2"] != found["probe/untrained/r2"] and -1 <= found["probe/value_rank"] <= 1


def test_states_are_scored_by_the_steps_that_a_player_needs():
    size = type("Bundle", (), {"config": {"size": [32, 32]}})
    task = {"name": "maze_video", "env": {"_target_": "foundation.envs.maze_video.MazeVideo", "rooms": 2},
            "evaluation": {"env": {"split": "heldout"}}}  # fmt: skip
    state, goal, distance = drawn(task, size, 5, seed=1)
    assert state.shape == goal.shape == (5, 32, 32, 3)
    for number in range(5):
        env = MazeVideo((32, 32), rooms=2, split="heldout")
        np.testing.assert_array_equal(env.reset(seed=5 + number)[0], state[number])
        player, steps, done = env.player(), 0, False
        cells = [env.cell]
        while not done:
            _, _, done, _, _ = env.step(player.act())
            steps += env.cell != cells[-1]
            cells.append(env.cell)
        assert steps == distance[number] and (env.goal == goal[number]).all()


@pytest.mark.parametrize(("given", "message"), [
    ("policy=null", "give policy="), ("part=head", "part='head'"), ("states=3", "states=3"),
    ("held_out=0", "held_out"), ("task=doom_my_way_home", "does not know how far"),
])  # fmt: skip
def test_bad_input_is_named(tmp_path, given, message):
    saved(tmp_path / "net")
    with pytest.raises(DataError, match=message):
        main.function(config("probe", f"policy={tmp_path / 'net'}", f"run.dir={tmp_path}", given))


def test_a_network_of_vectors_has_no_frames_to_be_probed_on(tmp_path):
    checkpoint.save(tmp_path, {"_target_": "models.icvf.Icvf", "state_dim": 3}, Icvf(state_dim=3), {}, "card")
    with pytest.raises(DataError, match="no frames as observations"):
        main.function(config("probe", f"policy={tmp_path}", f"run.dir={tmp_path}"))


def test_encoders_of_every_kind_can_be_probed():
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), np.uint8)
    torch.manual_seed(0)
    icvf = Icvf(height=32, width=40, dim=8, encoder="impala", channels=[4, 4]).eval()
    idm = InverseDynamics(32, 40, 6, 11, channels=[4, 4], dim=16, layers=1, heads=2).eval()
    assert features(encoder_of(icvf), frames).shape == (5, 8)
    assert features(encoder_of(idm), frames, at_once=2).shape == (5, 16)
    assert features(part_of(icvf, "encoder"), frames).shape == (5, 256)
    assert features(part_of(icvf, "features"), frames).shape == (5, 8)
    with pytest.raises(DataError, match="set part=features"):
        part_of(Icvf(state_dim=3), "encoder")
    with pytest.raises(DataError, match="neither `phi` nor `encode`"):
        encoder_of(torch.nn.Linear(1, 1))


def test_an_untrained_copy_is_another_network_of_the_same_kind(tmp_path):
    torch.manual_seed(7)
    config = {"_target_": "models.icvf.Icvf", "state_dim": 3, "dim": 8}
    net = Icvf(state_dim=3, dim=8)
    checkpoint.save(tmp_path, config, net, {}, "card")
    bundle, x = hub.load(tmp_path), torch.randn(4, 3)
    one, same, other = (untrained(bundle, seed).phi(x) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, bundle.net.phi(x))
