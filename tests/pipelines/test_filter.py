import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pipelines import embedding
from pipelines import filter as artifact_filter
from pipelines.classifier import Classifier, fit
from pipelines.command import CONFIGS
from pipelines.contaminate import ARTIFACTS, artifact_of, contaminate, contaminate_shards
from pipelines.embedding import Clip, Statistics
from pipelines.filter import Kept, decide, smooth
from pipelines.schema import KEYS, DataError
from pipelines.shards import Shards, ShardWriter

RULES = {"median": 3, "threshold": 0.0, "max_flagged": 0.25}


def world(n, seed, size=(64, 80)):
    """Frames of a textured corridor that moves: uint8 [n h w c]."""
    rng = np.random.default_rng(seed)
    h, w = size
    wall = rng.integers(30, 120, (h // 4, w, 3)).repeat(4, 0).astype(np.float32)
    light = np.linspace(0.5, 1.2, h)[:, None, None]
    frames = [np.roll(wall, int(s), 1) * light for s in rng.integers(0, w, n)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def config(**values):
    cfg = OmegaConf.load(f"{CONFIGS}/filter.yaml")
    cfg.merge_with({key: str(value) if key in ("clips", "clean", "out", "model", "labels") else value
                    for key, value in values.items()})  # fmt: skip
    return cfg


def images(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:03d} ü.png")
    return folder


# artifacts


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_an_artifact_is_drawn_once_per_clip_by_its_seed(kind):
    clip = np.repeat(world(1, 0), 6, 0)
    drawn = contaminate(clip, kind, seed=3)
    assert (drawn == contaminate(clip, kind, seed=3)).all()
    assert (drawn != contaminate(clip, kind, seed=4)).any()
    assert drawn.dtype == np.uint8
    assert drawn.shape == clip.shape
    changed = (drawn != clip).any(-1)  # t h w
    assert 0.01 < changed.mean() < (1.01 if kind == "menu" else 0.6)
    if kind != "webcam":  # what is filmed there moves
        assert (drawn == drawn[:1]).all()
    assert (clip == world(1, 0)).all()


def test_bad_artifacts_are_refused():
    with pytest.raises(DataError, match="choose from webcam"):
        contaminate(world(1, 0), "cat", 0)
    with pytest.raises(DataError, match=r"uint8 \[t h>=16 w>=16 3\]"):
        contaminate(world(1, 0).astype(float), "logo", 0)


def test_the_share_of_contaminated_clips_is_kept_and_nested():
    keys = [f"clip-{i}" for i in range(2000)]
    few, many = ({k: artifact_of(k, share, 0) for k in keys} for share in (0.1, 0.4))
    assert np.mean([kind is not None for kind in few.values()]) == pytest.approx(0.1, abs=0.025)
    assert np.mean([kind is not None for kind in many.values()]) == pytest.approx(0.4, abs=0.04)
    assert all(many[k] == kind for k, kind in few.items() if kind)
    assert set(many.values()) == {None, *ARTIFACTS}
    assert all(artifact_of(k, 0.0, 0) is None and artifact_of(k, 1.0, 0) for k in keys)


# embeddings


def test_statistics_tell_colour_edges_and_place():
    embed = Statistics()
    grey = np.full((1, 64, 80, 3), 128, np.uint8)
    red, box = grey.copy(), grey.copy()
    red[..., 1:] = 0
    box[:, 10:30, 10:30] = 255
    features = embed(np.concatenate([grey, red, box, box[:, :, ::-1]]))
    assert features.dtype == np.float32
    distance = np.linalg.norm(features[:, None] - features, axis=-1)
    assert (distance[np.triu_indices(4, 1)] > 0.5).all()
    assert np.isfinite(features).all()
    batches = np.concatenate([embed(part) for part in np.split(world(100, 0), [7])])
    assert np.allclose(embed(world(100, 0)), batches, atol=1e-6)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP model in transformers' own format, tiny, with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    text = {**small, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
            "projection_dim": 24}  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder


def test_clip_features_are_those_of_the_model(clip_folder):
    import torch
    from transformers import CLIPModel

    embed = Clip(clip_folder, batch=4)
    frames = world(6, 0, (32, 32))
    features = embed(frames)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(embedding.CLIP_MEAN)[:, None, None]) / torch.tensor(embedding.CLIP_STD)[
        :, None, None
    ]
    with torch.no_grad():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    expected = torch.nn.functional.normalize(projected, dim=-1).numpy()
    assert features.shape == (6, 24)
    assert np.allclose(features, expected, atol=1e-5)
    assert embed.name == Clip(clip_folder).name


def test_missing_clip_models_are_named(tmp_path):
    with pytest.raises(DataError, match="embedding=statistics"):
        Clip(tmp_path)
    with pytest.raises(DataError, match="clip_model="):
        embedding.build("clip")
    with pytest.raises(DataError, match="statistics or clip"):
        embedding.build("resnet")


# classifier


def test_a_separable_problem_is_solved_and_stored(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    features = rng.normal(size=(200, 5)).astype(np.float32) + 5 * labels[:, None] * np.array(
        [1, 0, 0, 0, 0], np.float32
    )
    classifier, metrics = fit(features, labels, np.arange(200), "some embedding", c=1.0)
    assert metrics["frame_auc"] > 0.99
    assert metrics["majority_frame_accuracy"] == pytest.approx(0.7, abs=0.12)
    assert 0.15 < metrics["held_out_frames"] / 200 < 0.35
    classifier.save(tmp_path / "filter.npz")
    loaded = Classifier.load(tmp_path / "filter.npz", "some embedding")
    assert (loaded.scores(features) == classifier.scores(features)).all()
    assert loaded.fingerprint() == classifier.fingerprint()
    with pytest.raises(DataError, match="fitted on the embedding 'some embedding'"):
        Classifier.load(tmp_path / "filter.npz", "another")
    with pytest.raises(DataError, match="all 200 labelled frames are clean"):
        fit(features, np.zeros(200), np.arange(200), "e")


def test_damaged_and_pickled_classifiers_are_refused(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "pickle.npz", weight=np.array([object()], dtype=object))
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    for name in ("torn", "pickle", "other"):
        with pytest.raises(DataError):
            Classifier.load(tmp_path / f"{name}.npz")


def test_scores_by_hand():
    classifier = Classifier(np.array([2.0, -1.0], np.float32), 0.5, np.array([1, 0]), np.array([2, 1]), "e")
    assert classifier.scores([[3.0, 4.0]]) == [(3 - 1) / 2 * 2 - 4 + 0.5]


# decisions


def test_smoothing_ignores_single_frames_and_continues_ends():
    assert smooth([0, 0, 9, 0, 0], 3).tolist() == [0, 0, 0, 0, 0]
    assert smooth([9, 9, 0, 0, 0], 3).tolist() == [9, 9, 0, 0, 0]


def test_decisions_by_hand():
    keep, score, flagged, runs = decide([-1, -1, -1, 5, 5, 5, -1, -1], 16, 120, RULES)
    assert (keep, flagged, runs) == (False, 3 / 8, [[0, 48], [96, 120]])
    assert score == pytest.approx((15 - 5) / 8)
    assert decide([-1, -1, -1, 9, -1, -1], 4, 24, RULES) == (True, -1.0, 0.0, [[0, 24]])  # one odd frame
    assert decide([2, 2], 8, 16, RULES) == (False, 2.0, 1.0, [])
    assert decide([-2], 16, 3, RULES) == (True, -2.0, 0.0, [[0, 3]])
    assert decide([2, 2], 8, 16, {**RULES, "max_flagged": 1.0})[0]


# the command


def clean_shards(make_play, root):
    return make_play(root, videos=6, clips=2, length=32, seed=1)


def test_the_filter_drops_contaminated_clips_and_keeps_the_others(tmp_path, make_play):
    train = clean_shards(make_play, tmp_path / "train")
    test = Shards(make_play(tmp_path / "test", videos=8, clips=2, length=32, seed=2))
    counts = contaminate_shards(test, tmp_path / "dirty", 0.5, seed=0, samples_per_shard=4)
    assert sum(counts.values()) == 16
    cfg = config(
        clips=tmp_path / "dirty", clean=train, artifact="synthetic", out=tmp_path / "out", every=8, train_every=2
    )
    summary = artifact_filter.main.function(cfg)
    assert summary["clips"] == 16
    assert summary["clip_auc"] > 0.9
    assert summary["frame_auc"] > 0.8 > summary["majority_frame_accuracy"]
    assert summary["clean_clips_kept"] > 0.7 < summary["artifact_clips_dropped"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "filtered.jsonl").read_text().splitlines()[1:]]
    assert [line["key"] for line in lines] == [entry.key for entry in test.entries]
    assert {line["reason"] for line in lines} == {"", "artifact"}
    kept = Kept(tmp_path / "dirty", tmp_path / "out" / "keep.txt")
    assert [e.key for e in kept.entries] == [line["key"] for line in lines if line["keep"]]
    assert len(kept) == summary["kept"] < 16
    assert kept.fingerprint() != Shards(tmp_path / "dirty").fingerprint()
    dropped = next(line["key"] for line in lines if not line["keep"])
    with pytest.raises(DataError, match="no sample"):
        kept.arrays(dropped)


def test_contaminated_shards_keep_keys_arrays_and_clean_video(tmp_path, play_shards):
    clips = Shards(play_shards)
    contaminate_shards(clips, tmp_path / "a", 0.5, seed=1)
    contaminate_shards(clips, tmp_path / "b", 0.5, seed=1)
    a, b = Shards(tmp_path / "a", verify=True), Shards(tmp_path / "b")
    assert a.fingerprint() == b.fingerprint() != clips.fingerprint()
    for entry in a.entries:
        assert (a.arrays(entry.key)[KEYS] == clips.arrays(entry.key)[KEYS]).all()
        same = a.read(entry.key, "mp4") == clips.read(entry.key, "mp4")
        assert same == (entry.meta["tags"]["artifact"] == "")


def test_an_interrupted_filter_goes_on_and_unreadable_clips_are_dropped(tmp_path, make_play, monkeypatch):
    clean = clean_shards(make_play, tmp_path / "clean")
    source = Shards(clean)
    with ShardWriter(tmp_path / "clips") as writer:
        for i, entry in enumerate(source.entries):
            video = b"no video" if i == 3 else source.read(entry.key, "mp4")
            writer.write(entry.key, {"mp4": video, "npz": source.read(entry.key, "npz"), "json": entry.meta})
    values = {"clips": tmp_path / "clips", "clean": clean, "artifact": "synthetic", "every": 8}
    artifact_filter.main.function(config(out=tmp_path / "straight", **values))
    judge, calls = artifact_filter.judge, []

    def killed(shards, entry, *rest):
        calls.append(entry.key)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return judge(shards, entry, *rest)

    monkeypatch.setattr(artifact_filter, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        artifact_filter.main.function(config(out=tmp_path / "out", **values))
    assert not (tmp_path / "out" / "filtered.jsonl").exists()
    part = tmp_path / "out" / "filtered.jsonl.part"
    part.write_text(part.read_text() + '{"key": "torn')
    summary = artifact_filter.main.function(config(out=tmp_path / "out", **values))
    assert calls == [e.key for e in source.entries[:6]] + [e.key for e in source.entries[5:]]
    for name in ("filter.npz", "filtered.jsonl", "keep.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert sum(value for name, value in summary.items() if name.startswith("dropped/")) == 12 - summary["kept"]
    assert source.entries[3].key not in (tmp_path / "out" / "keep.txt").read_text()
    artifact_filter.main.function(config(out=tmp_path / "out", **values))
    assert len(calls) == 13  # the finished list is taken as it is


def test_images_labels_and_a_stored_model(tmp_path, play_shards):
    frames = world(40, 0)
    dirty = np.concatenate([contaminate(f[None], ARTIFACTS[i % 4], i) for i, f in enumerate(world(40, 1))])
    clean, artifact = images(tmp_path / "clean", frames), images(tmp_path / "artifact", dirty)
    summary = artifact_filter.main.function(config(clean=clean, artifact=str(artifact), out=tmp_path / "a"))
    assert summary["labelled_frames"] == 80
    lines = [{"image": f"clean/{p.name}", "label": "clean"} for p in clean.iterdir()]
    lines += [{"image": f"artifact/{p.name}", "label": "artifact"} for p in artifact.iterdir()]
    lines += [{"key": Shards(play_shards).entries[0].key, "frames": [0, 8], "label": "clean"}]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    values = {"clips": play_shards, "train_every": 4}
    summary = artifact_filter.main.function(
        config(labels=tmp_path / "labels.jsonl", out=tmp_path / "b", max_flagged=1, **values)
    )
    assert summary["labelled_frames"] == 82
    assert summary["kept"] == 4
    model = Classifier.load(tmp_path / "b" / "filter.npz")
    artifact_filter.main.function(
        config(clips=play_shards, model=tmp_path / "b" / "filter.npz", out=tmp_path / "c", max_flagged=1)
    )
    assert Classifier.load(tmp_path / "c" / "filter.npz").fingerprint() == model.fingerprint()


def test_what_the_user_can_get_wrong(tmp_path, play_shards):
    labels = tmp_path / "labels.jsonl"
    wrong = [
        ({}, "no labelled frames"),
        ({"clean": play_shards}, "all .* labelled frames are clean"),
        ({"clean": tmp_path / "missing"}, "not a folder"),
        ({"every": 0}, "at least 1"),
        ({"labels": labels}, r"labels.jsonl:2: expected"),
    ]
    image = images(tmp_path / "images", world(1, 0))
    labels.write_text(
        json.dumps({"image": f"images/{next(image.iterdir()).name}", "label": "clean"}) + '\n{"label": "x"}\n'
    )
    for values, message in wrong:
        with pytest.raises(DataError, match=message):
            artifact_filter.main.function(config(out=tmp_path / "out", **values))
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        artifact_filter.main.function(config(clean=tmp_path / "images", out=tmp_path / "out"))
    (tmp_path / "keep.txt").write_text("unknown\n")
    with pytest.raises(DataError, match="the list was made from other clips"):
        Kept(play_shards, tmp_path / "keep.txt")
