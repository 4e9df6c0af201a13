import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from models.inverse_dynamics import InverseDynamics
from pipelines import checkpoint, schema, score
from pipelines.actions import DOOM, MINECRAFT, ActionCodec
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError, SampleMeta
from pipelines.shards import ShardWriter

CODEC = ActionCodec(DOOM)


def recorded(n, seed):
    rng = np.random.default_rng(seed)
    keys = np.repeat(rng.random((n // 4, 6)) < 0.3, 4, axis=0).astype(np.uint8)
    return keys, rng.integers(0, 15, (n, 2))


def write(folder, clips, make, spec=DOOM, n=40):
    """Shards with `make(keys, bins)` as arrays; clip i is frames [i n, i n + n) of one video."""
    with ShardWriter(folder) as writer:
        for i in clips:
            meta = SampleMeta(key=f"clip-{i}", source="a.mp4", source_sha256="0" * 64, frames=(i * n, i * n + n),
                              fps=17.5, height=4, width=4, actions=spec and spec.to_dict())  # fmt: skip
            writer.write(meta.key, {"npz": make(*recorded(n, i)), "json": meta})
    return folder


def truth(keys, bins):
    return {schema.KEYS: keys, schema.MOUSE: CODEC.from_bins(bins)}


def labels(keys, bins, p=0.9):
    camera = np.full((len(keys), 2, 15), (1 - p) / 14, np.float16)
    np.put_along_axis(camera, bins[..., None], p, -1)
    return {schema.KEY_PROBABILITIES: np.where(keys != 0, p, 1 - p).astype(np.float16),
            schema.CAMERA_PROBABILITIES: camera, schema.COVERAGE: np.ones(len(keys), bool)}  # fmt: skip


def run(root, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        paths = [f"labels={root / 'labels'}", f"truth={root / 'truth'}", f"run.dir={root / 'run'}"]
        return execute(score.main.function, compose("score", [*paths, *overrides]))


def test_right_labels_score_well(tmp_path, capsys):
    write(tmp_path / "truth", range(4), truth)
    write(tmp_path / "labels", range(3), labels)
    summary = run(tmp_path)
    assert summary["idm/joint_exact"] == 1
    assert summary["idm/frames"] == 120
    assert (summary["score/clips"], summary["score/clips_without_label"]) == (3, 1)
    report = json.loads((tmp_path / "run" / "label_report.json").read_text())
    assert report["keys"]["use"]["recall"] == 1
    assert report["effective_keys"] is None
    assert "whole action exact" in capsys.readouterr().out


def test_consecutive_clips_are_one_segment(tmp_path):
    """With 5-frame clips the offset needs neighbours across the border of clips."""
    late = 2

    def all_actions():
        keys, bins = zip(*(recorded(8, i) for i in range(40)), strict=True)
        return np.concatenate(keys), np.concatenate(bins)

    keys, bins = (np.roll(a, late, 0) for a in all_actions())
    parts = iter([truth(keys[i : i + 8], bins[i : i + 8]) for i in range(0, 320, 8)])
    write(tmp_path / "truth", range(40), lambda *_: next(parts), n=8)
    write(tmp_path / "labels", range(40), labels, n=8)
    assert run(tmp_path, "shifts=4")["idm/label_offset"] == late


def test_the_report_goes_into_the_labeller(tmp_path):
    net = {"height": 16, "width": 16, "n_keys": 6, "n_bins": 15, "window": 16, "dim": 16, "heads": 2}
    extras = {"actions": DOOM, "size": (16, 16), "fps": 17.5}
    config = {"_target_": "models.inverse_dynamics.InverseDynamics", **net}
    checkpoint.save(tmp_path / "idm", config, InverseDynamics(**net), extras, "")
    before = checkpoint.load(tmp_path / "idm").sha256
    write(tmp_path / "truth", range(2), truth)
    write(tmp_path / "labels", range(2), labels)
    run(tmp_path, f"idm={tmp_path / 'idm'}")
    bundle = checkpoint.load(tmp_path / "idm")
    assert bundle.statistics["label_report"]["keys"]["forward"]["recall"] == 1
    assert bundle.sha256 == before


def test_effective_actions_are_scored_where_known(tmp_path, capsys):
    write(tmp_path / "truth", range(2), lambda k, b: truth(k, b) | {schema.EFFECTIVE: np.ones((len(k), 8), bool)})
    write(tmp_path / "labels", range(2), labels)
    assert run(tmp_path)["idm/effective/joint_exact"] == 1
    assert "effective actions" in capsys.readouterr().out


def test_uncovered_frames_are_not_scored(tmp_path):
    write(tmp_path / "truth", range(2), truth)
    write(tmp_path / "labels", range(2), lambda k, b: labels(k, b) | {schema.COVERAGE: np.arange(len(k)) < 10})
    assert run(tmp_path)["idm/frames"] == 20


def test_mismatches_are_told(tmp_path):
    write(tmp_path / "truth", range(2), truth)
    cases = {
        "keys differ": dict(clips=range(2, 4), make=labels),
        "different actions": dict(clips=range(2), make=labels, spec=MINECRAFT),
        "carries no actions": dict(clips=range(2), make=labels, spec=None),
        "key_probabilities": dict(clips=range(2), make=truth),
        "labelled and 40 recorded": dict(clips=range(2), make=lambda k, b: labels(k[:9], b[:9])),
    }
    for i, (message, arguments) in enumerate(cases.items()):
        root = tmp_path / str(i)
        root.mkdir()
        (root / "truth").symlink_to(tmp_path / "truth")
        write(root / "labels", **arguments)
        with pytest.raises(DataError, match=message):
            run(root)


def test_missing_folders_are_told(tmp_path):
    with pytest.raises(DataError, match="no folder of shards"):
        run(Path(tmp_path))
