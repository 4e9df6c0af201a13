import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from models.inverse_dynamics import InverseDynamics
from pipelines import checkpoint, label, labeller, schema
from pipelines.actions import DOOM, MINECRAFT
from pipelines.command import CONFIGS, execute
from pipelines.labeller import Labeller, RunFrames, Settings, runs
from pipelines.pixels import encode
from pipelines.schema import DataError, SampleMeta
from pipelines.shards import Shards, ShardWriter
from pipelines.windows import label_run
from tests.foundation.vector_world import write_pushes

SIZE, FPS, CLIP = (32, 32), 17.5, 20
NET = {"_target_": "models.inverse_dynamics.InverseDynamics", "height": 32, "width": 32, "n_keys": 6, "n_bins": 15,
       "window": 16, "dim": 16, "heads": 2}  # fmt: skip


def make_idm(folder, report=None, seed=0, **extras):
    torch.manual_seed(seed)
    net = InverseDynamics(**{name: value for name, value in NET.items() if name != "_target_"})
    statistics = {"label_report": report} if report else {}
    extras = {"actions": DOOM, "size": SIZE, "fps": FPS, "statistics": statistics, **extras}
    return checkpoint.save(folder, NET, net, extras, "# test")


def video(n, seed):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8))


def make_clips(folder, videos=3, clips_per_video=3, per_shard=4, **fields):
    """Clip shards with `videos` x `clips_per_video` clips of CLIP frames, the last one of a video shorter."""
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for v in range(videos):
            source = hashlib.sha256(str(v).encode()).hexdigest()
            frames = video(CLIP * clips_per_video - 7, v)
            for c in range(clips_per_video):
                part = frames[c * CLIP : (c + 1) * CLIP]
                meta = SampleMeta(key=f"v{v}-{c}", source=f"vidéo {v}.mp4", source_sha256=source, height=32, width=32,
                                  frames=(c * CLIP, c * CLIP + len(part)), fps=FPS)  # fmt: skip
                members = {"mp4": encode(iter(part), FPS), "npz": {"pts": np.arange(len(part))},
                           "json": {**meta.to_dict(), **fields}}  # fmt: skip
                writer.write(meta.key, members)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("label")
    return make_clips(root / "clips"), make_idm(root / "idm")


def config(world, out, *overrides):
    clips, idm = world
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        given = [f"clips={clips}", f"idm={idm}", f"out={out}", f"run.dir={out}-run", "threads=1"]
        return compose("label", [*given, *overrides])


def run(world, out, *overrides):
    return execute(label.main.function, config(world, out, *overrides))


def content(folder):
    """Name -> bytes of everything readers follow."""
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix in (".json", ".tar")}


@pytest.fixture(scope="module")
def labelled(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("labelled") / "labels"
    return out, run(world, out)


def test_every_clip_gets_its_labels(world, labelled):
    out, summary = labelled
    clips, labels = Shards(world[0]), Shards(out)
    assert {e.key for e in labels.entries} == {e.key for e in clips.entries}
    total = 3 * (3 * CLIP - 7)
    assert (summary["label/frames"], summary["label/clips"], summary["label/rejected"]) == (total, 9, 0)
    assert summary["label/shards"] == summary["label/shards_finished"] == 3
    assert summary["label/frames_per_second"] > 0
    for entry in clips.entries:
        n = entry.meta["frames"][1] - entry.meta["frames"][0]
        arrays, meta = labels.arrays(entry.key), labels.meta(entry.key)
        assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
            schema.KEYS: ((n, 6), np.uint8), schema.MOUSE: ((n, 2), np.float32), schema.COVERAGE: ((n,), bool),
            schema.KEY_PROBABILITIES: ((n, 6), np.float16), schema.CAMERA_PROBABILITIES: ((n, 2, 15), np.float16),
        }  # fmt: skip
        assert arrays[schema.COVERAGE].all()
        assert (meta.provenance, meta.labeller) == (schema.PSEUDO, checkpoint.load(world[1]).sha256)
        assert meta.actions == DOOM.to_dict()
        assert (meta.source, meta.frames) == (entry.meta["source"], tuple(entry.meta["frames"]))


def test_clips_of_one_video_are_one_run(world, labelled):
    """Labels equal those of the whole video at once, cut at the shard's border only."""
    clips, labels, net = Shards(world[0]), Shards(labelled[0]), Labeller(world[1], Settings()).net
    for keys in (["v0-0", "v0-1", "v0-2"], ["v1-0"], ["v1-1", "v1-2"]):  # four clips per shard
        frames = np.concatenate([RunFrames(clips, [clips.entry(key)], SIZE, 99)[0:CLIP] for key in keys])
        whole = label_run(net, frames).key_probabilities
        stored = np.concatenate([labels.arrays(key)[schema.KEY_PROBABILITIES] for key in keys])
        np.testing.assert_allclose(stored, whole, atol=2e-3)


def test_labels_do_not_depend_on_what_is_decoded_at_once(world, labelled, tmp_path):
    run(world, tmp_path / "out", "frames_per_call=16")
    a, b = Shards(labelled[0]), Shards(tmp_path / "out")
    for entry in a.entries:
        np.testing.assert_allclose(a.arrays(entry.key)[schema.KEY_PROBABILITIES],
                                   b.arrays(entry.key)[schema.KEY_PROBABILITIES], atol=2e-3)  # fmt: skip


def test_running_again_does_nothing_and_equal_input_gives_equal_bytes(world, labelled, tmp_path):
    out = labelled[0]
    before = content(out)
    assert run(world, out)["label/frames_now"] == 0
    assert content(out) == before
    run(world, tmp_path / "again")
    assert content(tmp_path / "again") == before


def test_a_killed_run_continues_to_the_same_bytes(world, labelled, tmp_path, monkeypatch):
    out, write, calls = tmp_path / "out", ShardWriter.write, []

    def dying(self, key, members):
        calls.append(key)
        if len(calls) == 6:  # inside the second shard
            raise KeyboardInterrupt
        write(self, key, members)

    monkeypatch.setattr(ShardWriter, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        run(world, out)
    assert len(Shards(out).manifests) == 1
    monkeypatch.setattr(ShardWriter, "write", write)
    assert run(world, out)["label/frames_now"] == 2 * (3 * CLIP - 7) - CLIP
    assert content(out) == content(labelled[0])


def test_a_cut_label_shard_is_made_again(world, labelled, tmp_path):
    out = tmp_path / "out"
    run(world, out)
    victim = sorted(out.glob("*.tar"))[1]
    victim.write_bytes(victim.read_bytes()[:1000])
    run(world, out)
    assert content(out) == content(labelled[0])


def test_ranks_share_the_shards(world, labelled, tmp_path):
    out = tmp_path / "out"
    first = run(world, out, "rank=1", "world_size=2")
    assert first["label/shards"] == 1
    plan = run(world, out, "world_size=2", "dry_run=true")
    assert (plan["label/shards_finished"], plan["label/ranks_to_run"]) == (1, "0")
    run(world, out, "rank=0", "world_size=2")
    assert content(out) == content(labelled[0])


def test_ranks_to_run_is_compact(world, tmp_path):
    assert run(world, tmp_path / "out", "world_size=3", "dry_run=true")["label/ranks_to_run"] == "0-2"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_worker_processes_give_the_same_labels(world, labelled, tmp_path):
    out = tmp_path / "out"
    summary = run(world, out, "workers=2")
    assert summary["label/shards_finished"] == 3
    assert content(out) == content(labelled[0])


def test_the_command_runs(world, tmp_path):
    command = [sys.executable, "-m", "pipelines.label", f"clips={world[0]}", f"idm={world[1]}",
               f"out={tmp_path / 'out'}", f"run.dir={tmp_path / 'run'}", "threads=1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(CONFIGS).parent)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["label/clips"] == 9
    done = subprocess.run([*command, "idm=/nowhere"], capture_output=True, text=True, cwd=Path(CONFIGS).parent)
    assert done.returncode == 2
    assert "not a hub folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_labeller_or_setting_does_not_mix(world, labelled, tmp_path):
    other = make_idm(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=r"model: \w{12} -> \w{12}"):
        run((world[0], other), labelled[0])
    with pytest.raises(DataError, match="precision: fp32 -> bf16"):
        run(world, labelled[0], "precision=bf16")
    out = tmp_path / "out"
    run(world, out)
    run((world[0], other), out, "overwrite=true")
    assert {Shards(out).meta(e.key).labeller for e in Shards(out).entries} == {checkpoint.load(other).sha256}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 64}, r"64 high and 32 wide, the labeller takes 32x32; ingest .* size=\[32,32\]"),
        ({"fps": 20.0}, r"20 frames/s, the labeller was trained at 17.5; ingest .* fps=17.5"),
        ({"actions": MINECRAFT.to_dict()}, r"'minecraft' \(20 keys.*trained on the action spec 'doom' \(6 keys"),
    ],
)
def test_clips_that_do_not_fit_the_labeller_are_told(world, tmp_path, fields, message):
    clips = make_clips(tmp_path / "clips", videos=1, clips_per_video=1, **fields)
    with pytest.raises(DataError, match=message):
        run((clips, world[1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trajectories_of_vectors_are_told_as_such(world, tmp_path):
    with pytest.raises(DataError, match=r"trajectories of vectors, e.g. .*method=dt"):
        run((write_pushes(tmp_path / "pushes", 2), world[1]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clips_with_actions_of_the_same_spec_are_labelled_too(world, tmp_path):
    clips = make_clips(tmp_path / "clips", videos=1, clips_per_video=1, actions=DOOM.to_dict(), provenance="recorded")
    assert run((clips, world[1]), tmp_path / "out")["label/clips"] == 1
    assert Shards(tmp_path / "out").meta("v0-0").provenance == schema.PSEUDO


def test_a_model_that_says_nan_is_told(world, tmp_path, monkeypatch):
    def broken(idm, frames, *_):
        result = label_run(idm, frames)
        result.key_probabilities[0] = np.nan
        return result

    monkeypatch.setattr(labeller, "label_run", broken)
    with pytest.raises(DataError, match="NaN or infinity"):
        run(world, tmp_path / "out")


def test_expected_degrees(world, tmp_path):
    run(world, tmp_path / "out", "mouse=expected")
    arrays = Shards(tmp_path / "out").arrays("v0-0")
    centres = Labeller(world[1], Settings()).codec.from_bins(np.arange(15))
    expected = arrays[schema.CAMERA_PROBABILITIES].astype(np.float32) @ centres
    np.testing.assert_allclose(arrays[schema.MOUSE], expected, atol=0.05)


@pytest.mark.parametrize("override", ["precision=fp8", "mouse=mode", "rank=2", "workers=0"])
def test_bad_settings_are_told(world, tmp_path, override):
    with pytest.raises(DataError, match=override.split("=", maxsplit=1)[0]):
        run(world, tmp_path / "out", override)


def test_labels_never_go_among_the_clips(world):
    with pytest.raises(DataError, match="folder of their own"):
        run(world, world[0])


def test_runs_are_consecutive_frames_of_one_source(world):
    entries = Shards(world[0]).entries
    groups = [[e.key for e in group] for group in runs([e for e in entries if e.key != "v1-1"][::-1])]
    assert sorted(groups) == [["v0-0", "v0-1", "v0-2"], ["v1-0"], ["v1-2"], ["v2-0", "v2-1", "v2-2"]]


def test_frames_of_a_run_are_read_once_when_slices_overlap_little(world, monkeypatch):
    clips = Shards(world[0])
    frames, decoded = RunFrames(clips, [clips.entry(f"v0-{c}") for c in range(3)], SIZE, keep=30), []
    decode = frames._decode
    monkeypatch.setattr(frames, "_decode", lambda entry, n: decoded.append(entry.key) or decode(entry, n))
    whole = np.concatenate([frames[i : min(i + 16, len(frames))] for i in range(0, len(frames), 8)])
    assert decoded == ["v0-0", "v0-1", "v0-2"]
    assert len(whole) == sum(min(16, 53 - i) for i in range(0, 53, 8))
