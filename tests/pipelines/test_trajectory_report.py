"""The report on episodes of vectors: numbers worked by hand."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines import peek
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode

SPACES = Spaces(2, 1, low=(-2.0,), high=(2.0,))


def write(root, episodes, spaces=SPACES):
    """episodes: (rewards, tags, states or None, actions or None)"""
    with ShardWriter(root) as writer:
        for i, (rewards, tags, states, actions) in enumerate(episodes):
            t = len(rewards)
            arrays = {
                "observation": np.zeros((t, 2)) if states is None else states, "reward": np.array(rewards, float),
                "action": np.zeros((t, 1)) if actions is None else actions, "final_observation": np.zeros(2),
                "terminated": (np.arange(t) == t - 1) & bool(i % 2), "truncated": (np.arange(t) == t - 1) & (not i % 2),
            }  # fmt: skip
            write_episode(writer, f"e{i:02d}", arrays, spaces, 10, "test", tags)
    return root


def look(root, out, **changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("peek")
    cfg.merge_with(OmegaConf.create({"shards": str(root), "run": {"dir": str(out)}, **changes}))
    return execute(peek.main.function, cfg)


@pytest.fixture
def mixed(tmp_path):
    """Task a: random 0, expert 10, medium 4; task b: random 100, expert 300, medium 250."""
    tags = [{"task": t, "behaviour": b, "success": b != "random"} for t in "ab" for b in ("random", "expert", "medium")]
    rewards = [[0, 0], [4, 6], [4], [50, 50], [300], [100, 150]]
    return write(tmp_path / "mixed", [(r, t, None, None) for r, t in zip(rewards, tags, strict=True)])


def test_returns_by_hand(mixed, tmp_path, capsys):
    summary = look(mixed, tmp_path / "run", random_return={"behaviour": "random"}, best_return={"behaviour": "expert"})
    assert (summary["episodes"], summary["steps"]) == (6, 10)
    assert (summary["length_min"], summary["length_median"], summary["length_max"]) == (1, 2, 2)
    assert (summary["return_min"], summary["return_median"], summary["return_max"]) == (0, 55, 300)
    assert (summary["terminated"], summary["truncated"]) == (0.5, 0.5)
    assert summary["success"] == pytest.approx(4 / 6, abs=1e-6)
    assert summary["behaviour/medium/success"] == 1 and summary["behaviour/random/success"] == 0
    assert summary["task/b/return_mean"] == pytest.approx(650 / 3, abs=1e-5)
    assert summary["task/a/tq"] == pytest.approx(14 / 3 / 10, abs=1e-6)
    assert summary["behaviour/medium/tq"] == pytest.approx((0.4 + 0.75) / 2)
    assert summary["tq"] == pytest.approx((14 / 30 + (650 / 3 - 100) / 200) / 2, abs=1e-6)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tq"] == summary["tq"]
    assert (tmp_path / "run" / "returns.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "behaviour expert: 2 episodes, return 155, success 100.0%, TQ 1.000" in printed
    assert "2 -> 1 vectors at 10.0 fps 6x" in printed


def test_quality_from_numbers(mixed, tmp_path):
    summary = look(mixed, tmp_path / "run", random_return=0, best_return=100.0)
    assert summary["task/a/tq"] == pytest.approx(14 / 3 / 100, abs=1e-6)
    assert "tq" not in look(mixed, tmp_path / "run", best_return=100.0)


def test_unique_pairs_and_coverage_by_hand(tmp_path):
    states = np.array([[0, 0], [1, 0], [4, 8], [0.9, 1.5], [4, 8]])  # ranges 0..4 and 0..8, four bins: 1 and 2 wide
    actions = np.array([[-2], [-2], [2], [-1.1], [-2]])  # bins 0, 0, 3, 0, 0
    one = write(tmp_path / "one", [(np.zeros(5), {}, states, actions)])
    summary = look(one, tmp_path / "run", bins=4)
    assert summary["unique_pairs"] == 4  # rows 0 and 3 fall into the same bins, 2 and 4 differ by the action
    assert summary["unique_share"] == 0.8
    more = write(tmp_path / "more", [(np.zeros(5), {}, states, actions), (np.zeros(1), {}, [[2, 2]], [[0]])])
    summary = look(one, tmp_path / "run", bins=4, reference=str(more))
    assert (summary["reference_unique_pairs"], summary["saco"]) == (5, 0.8)
    wider = write(tmp_path / "wider", [(np.zeros(2), {}, [[0, 0], [40, 80]], [[-2], [2]])])
    summary = look(one, tmp_path / "run", bins=4, reference=str(wider))
    assert (summary["unique_pairs"], summary["saco"]) == (2, 1.0)  # in the reference's range all states are alike
    assert "unique_pairs" not in look(one, tmp_path / "run", bins=0)


def test_discrete_actions_are_counted_as_they_are(tmp_path):
    spaces = Spaces(2, 1, n_actions=4)
    root = write(tmp_path / "d", [(np.zeros(4), {}, None, [0, 3, 3, 1])], spaces)
    assert look(root, tmp_path / "run")["unique_pairs"] == 3


def test_mixed_spaces_are_reported_together(tmp_path):
    write(tmp_path / "m", [([1.0], {"task": "a"}, None, None)])
    arrays = {
        "observation": np.zeros((2, 5)), "reward": np.ones(2), "action": np.zeros((2, 1)),
        "terminated": np.zeros(2, bool), "truncated": np.array([False, True]), "final_observation": np.zeros(5),
    }  # fmt: skip
    with ShardWriter(tmp_path / "m", "other") as writer:
        write_episode(writer, "b", arrays, Spaces(5, 1, low=(-1.0,), high=(1.0,)), 20, "test", {"task": "b"})
    summary = look(tmp_path / "m", tmp_path / "run")
    assert (summary["episodes"], summary["unique_pairs"], summary["task/b/return_mean"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_return": {"behaviour": "none"}, "best_return": 1}, "no episode of .* has the tags"),
        ({"random_return": 5, "best_return": 5}, "must be above"),
        ({"random_return": "low", "best_return": 5}, "expected a number, or tags"),
        ({"bins": -1}, "expected 1..65536"),
        ({"sheet": "a.png"}, "have none"),
    ],
)
def test_wrong_settings(mixed, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        look(mixed, tmp_path / "run", **changes)
    other = write(tmp_path / "other", [([1], {}, None, [0])], Spaces(2, 1, n_actions=4))
    with pytest.raises(DataError, match="no episodes with the spaces"):
        look(mixed, tmp_path / "run", reference=str(other))
