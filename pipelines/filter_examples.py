"""Labelled frames for the artifact filter: folders of images, clip shards, a file of labels, or made-up artifacts."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines import untrusted
from pipelines.contaminate import ARTIFACTS, contaminate
from pipelines.folders import files_below
from pipelines.schema import VIDEO, DataError
from pipelines.shards import Shards
from pipelines.video import open_clip

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LABELS = {"clean": False, "artifact": True}
MAX_PIXELS = 3840 * 2160
MAX_LABELS_BYTES = 1 << 28
SYNTHETIC = "synthetic"


def collect(cfg, embed):
    """All labelled examples that `cfg` names -> (features [n d], labels bool [n], groups str [n]).

    `clean` and `artifact`: a folder of images or of clip shards; `artifact=synthetic` draws artifacts on the clean
    frames. `labels`: lines {"image": path} or {"key": clip, "frames": [a, b]}, each with "label": clean | artifact;
    clips are those of `clips`.
    """
    parts = []
    for label in LABELS:
        where = cfg[label]
        if where and where != SYNTHETIC:
            parts += [(frames, label, group) for frames, group in examples(where, cfg.train_every)]
    if cfg.artifact == SYNTHETIC:
        clean = [part for part in parts if part[1] == "clean"]
        parts += [(draw_over(frames, i), "artifact", group) for i, (frames, _, group) in enumerate(clean)]
    if cfg.labels:
        parts += list(from_labels(cfg.labels, cfg.clips, cfg.train_every))
    if not parts:
        raise DataError(
            "no labelled frames: give clean=<folder> and artifact=<folder>|synthetic, labels=<file.jsonl>,"
            " or model=<filter.npz> of an earlier run"
        )
    features = [embed(frames) for frames, *_ in parts]
    counts = [len(f) for f in features]
    labels = np.repeat([LABELS[label] for _, label, _ in parts], counts)
    return np.concatenate(features), labels, np.repeat([group for *_, group in parts], counts)


def examples(folder, every):
    """Frames of a folder -> (uint8 [t h w c], group) per image or clip."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; expected a folder of images ({', '.join(IMAGES)}) or of clip shards"
        )
    images = files_below(folder, lambda name: Path(name).suffix.lower() in IMAGES)
    if images:
        return ((read_image(path), path.relative_to(folder).as_posix()) for path in images)
    shards = Shards(folder)
    if not shards.entries:
        raise DataError(f"{folder} holds neither images ({', '.join(IMAGES)}) nor clip shards")
    return ((read_clip(shards, e, every), e.meta["source_sha256"]) for e in shards.entries)


def read_image(path):
    """An image file -> uint8 [1 h w 3]."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
            return np.asarray(image.convert("RGB"))[None]
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); remove it from the folder") from error


def read_clip(shards, entry, every, span=None):
    """Every `every`-th frame of a clip, or of its frames [start, stop) -> uint8 [t h w c]."""
    start, stop = span or (0, entry.meta["frames"][1] - entry.meta["frames"][0])
    return open_clip(shards.read(entry.key, VIDEO), entry.meta).frames(range(start, stop, every))


def draw_over(frames, seed):
    """Another overlay on every frame, all kinds in turn: a filter learns from overlays, not from one of each."""
    return np.concatenate(
        [
            contaminate(frame[None], ARTIFACTS[(seed + i) % len(ARTIFACTS)], 1_000_003 * seed + i)
            for i, frame in enumerate(frames)
        ]
    )


def from_labels(path, clips, every):
    """Yields (frames, label, group) for the lines of a file of labels."""
    shards = None
    for number, line in untrusted.read_lines(path, MAX_LABELS_BYTES):
        if not line.strip():
            continue
        entry = _parse(path, number, line)
        if "image" in entry:
            image = Path(path).parent / entry["image"]
            yield read_image(image), entry["label"], str(entry["image"])
            continue
        if not clips:
            raise DataError(f"{path}:{number} labels a clip; give clips=<shards> it is in")
        shards = shards or Shards(clips)
        clip = shards.entry(entry["key"])
        yield read_clip(shards, clip, every, entry.get("frames")), entry["label"], clip.meta["source_sha256"]


def _parse(path, number, line):
    try:
        entry = untrusted.parse_json(line, path)
        if entry["label"] in LABELS and ("image" in entry) != ("key" in entry):
            return entry
    except (DataError, KeyError, TypeError):
        pass
    raise DataError(
        f'{path}:{number}: expected {{"image": path, "label": "clean"}} or {{"key": clip, "label": "artifact"}},'
        f" got {line[:120]!r}"
    )
