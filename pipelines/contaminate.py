"""Puts on clean frames what people put on their videos: webcam boxes, logos, menus, messages.

Used to measure the artifact filter, and by the experiment that asks what such clips cost a policy. An overlay is drawn
once per clip from a seed and stays where it is; only what is filmed in a webcam box moves.
"""

import hashlib
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipelines.schema import ARRAYS, META, VIDEO, DataError
from pipelines.shards import ShardWriter
from pipelines.video import encode, open_reader

WORDS = (
    "SUBSCRIBE", "LIKE", "LIVE", "REC", "PAUSED", "NEW", "GAME", "OPTIONS", "LOAD", "SAVE", "QUIT", "RESUME", "LEVEL",
    "FOUND", "SECRET", "AREA", "PICKED", "UP", "ARMOR", "SHELLS", "KEY", "DOOR", "PRESS", "ANY", "TO", "CONTINUE",
    "DONATION", "THANKS", "PART", "EPISODE", "HELLO", "CHAT",
)  # fmt: skip


def contaminate(frames, kind, seed):
    """frames uint8 [t h w c] -> the same with an overlay of `kind` (one of ARTIFACTS), decided by the seed alone."""
    if kind not in ARTIFACTS:
        raise DataError(f"artifact {kind!r} is unknown; choose from {', '.join(ARTIFACTS)}")
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or min(frames.shape[1:3]) < 16:
        raise DataError(f"expected frames uint8 [t h>=16 w>=16 3], got {frames.dtype} {list(frames.shape)}")
    return DRAWERS[kind](frames, np.random.default_rng([ARTIFACTS.index(kind), seed]))


def artifact_of(key, share, seed):
    """Which artifact clip `key` gets when a `share` of all clips is contaminated; None for the others.

    A larger share contaminates the same clips and more, so that arms of one experiment are nested.
    """
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 >= share:
        return None
    return ARTIFACTS[digest[8] % len(ARTIFACTS)]


def seed_of(key, seed):
    """Seed of the overlay on clip `key`."""
    return int.from_bytes(hashlib.sha256(f"overlay {seed} {key}".encode()).digest()[:7], "big")


def contaminate_shards(clips, out, share, seed, samples_per_shard=256):
    """Copies shards, drawing on a `share` of the clips; keys, arrays and so labels stay. Returns clips per artifact.

    Every clip is tagged `artifact` (its kind, or "") so that a filter can be measured; only drawn-on video is encoded
    again. clips: `Shards`; out: a new folder.
    """
    counts = Counter()
    with ShardWriter(out, samples_per_shard=samples_per_shard) as writer:
        for entry in clips.entries:
            kind = artifact_of(entry.key, share, seed)
            data = clips.read(entry.key, VIDEO)
            if kind is not None:
                data = redraw(data, kind, seed_of(entry.key, seed), entry.meta["fps"])
            meta = {**entry.meta, "tags": {**entry.meta.get("tags", {}), "artifact": kind or ""}}
            members = {VIDEO: data, ARRAYS: clips.read(entry.key, ARRAYS), META: meta}
            writer.write(entry.key, members)
            counts[kind or "clean"] += 1
    return dict(counts)


def redraw(data, kind, seed, fps):
    """MP4 bytes of a clip -> the same clip with an overlay."""
    reader = open_reader(data)
    frames = reader.frames(range(len(reader.table)))
    return encode(contaminate(frames, kind, seed), fps)


def _webcam(frames, random):
    """A streamer filmed before a room, in a box in a corner."""
    t, h, w, _ = frames.shape
    size = int(h * random.uniform(0.26, 0.4)), int(w * random.uniform(0.2, 0.34))
    room, shirt = random.integers(40, 235, 3), random.integers(0, 255, 3)
    skin, lamp = random.integers((120, 80, 60), (240, 200, 170)), random.uniform(-0.5, 0.5)
    sway = np.cumsum(random.normal(0, 0.01, (t, 2)), 0).clip(-0.12, 0.12)  # t 2, share of the box
    y, x = _corner(random, (h, w), size)
    edge, out = random.integers(0, 255), frames.copy()
    for i in range(t):
        out[i, y : y + size[0], x : x + size[1]] = _person(size, room, skin, shirt, lamp, sway[i])
    out[:, [y, y + size[0] - 1], x : x + size[1]] = edge
    out[:, y : y + size[0], [x, x + size[1] - 1]] = edge
    return out


def _person(size, room, skin, shirt, lamp, sway):
    """Head and shoulders, uint8 [h w 3]; drawn at four times the size and reduced, so its edges are soft."""
    h, w = (4 * s for s in size)
    image = Image.new("RGB", (w, h))
    pen = ImageDraw.Draw(image)
    for i in range(h):  # light falls off over the room's wall
        shade = 0.65 + 0.35 * np.cos(3 * (i / h - 0.3 - lamp))
        pen.line((0, i, w, i), fill=_ints(room * shade))
    x, y, r = w * (0.5 + sway[0]), h * (0.42 + sway[1]), 0.22 * h
    pen.ellipse((x - 2.1 * r, y + 1.1 * r, x + 2.1 * r, h * 1.5), fill=_ints(shirt))
    pen.ellipse((x - 0.8 * r, y - r, x + 0.8 * r, y + r), fill=_ints(skin))
    pen.pieslice((x - 0.85 * r, y - 1.15 * r, x + 0.85 * r, y + 0.7 * r), 180, 360, fill=(50, 35, 25))
    for eye in (x - 0.3 * r, x + 0.3 * r):
        pen.ellipse((eye - 0.09 * r, y - 0.05 * r, eye + 0.09 * r, y + 0.13 * r), fill=(25, 20, 20))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(2)).resize(size[::-1], Image.Resampling.BOX))


def _logo(frames, random):
    """A channel's mark: a bright shape with letters in a corner, at times translucent."""
    _, h, w, _ = frames.shape
    side = max(9, int(h * random.uniform(0.15, 0.27)))
    size = side, min(int(side * random.uniform(1.0, 2.4)), w // 2)
    colour, ink = _vivid(random), (255, 255, 255) if random.random() < 0.7 else (20, 20, 20)
    layer = Image.new("RGBA", (4 * size[1], 4 * size[0]))
    pen = ImageDraw.Draw(layer)
    radius = int(random.choice([0, side, 2 * side]))  # a box, a badge, a pill
    pen.rounded_rectangle((0, 0, 4 * size[1] - 1, 4 * size[0] - 1), radius, fill=(*colour, 255))
    _write(pen, (2 * size[1], 2 * size[0]), str(random.choice(WORDS)), ink, 2.2 * side, 3.6 * size[1])
    layer = layer.resize(size[::-1], Image.Resampling.BOX)
    return _paste(frames, layer, _corner(random, (h, w), size), random.uniform(0.7, 1))


def _menu(frames, random):
    """A menu over a dimmed game: a panel with a list of entries, one of them chosen."""
    _, h, w, _ = frames.shape
    layer = Image.new("RGBA", (2 * w, 2 * h), (0, 0, 0, int(random.uniform(90, 170))))
    pen = ImageDraw.Draw(layer)
    width, height = random.uniform(0.45, 0.8) * 2 * w, random.uniform(0.55, 0.85) * 2 * h
    left, top = (2 * w - width) / 2, (2 * h - height) / 2
    panel, edge = (*_dull(random), 235), (*_vivid(random), 255)
    pen.rounded_rectangle((left, top, left + width, top + height), 6, fill=panel, outline=edge, width=3)
    rows = int(random.integers(3, 6))
    chosen, bar = random.integers(rows), height / (2.6 * rows)
    for i in range(rows):
        y = top + height * (i + 1) / (rows + 1)
        if i == chosen:
            pen.rectangle((left + 8, y - bar, left + width - 8, y + bar), fill=(*_vivid(random), 255))
        _write(pen, (w, y), _phrase(random, 2), (225, 225, 225), 1.1 * height / (rows + 2), 0.85 * width)
    return _paste(frames, layer.resize((w, h), Image.Resampling.BOX), (0, 0), 1.0)


def _message(frames, random):
    """Lines of text over the game: a caption, a game message, a donation."""
    _, h, w, _ = frames.shape
    layer = Image.new("RGBA", (2 * w, 2 * h))
    pen, colour = ImageDraw.Draw(layer), _vivid(random) if random.random() < 0.6 else (255, 255, 255)
    font, lines = _font(2 * h * random.uniform(0.09, 0.14)), int(random.integers(1, 4))
    y, boxed = 2 * h * random.uniform(0.04, 0.7), random.random() < 0.5
    for i in range(lines):
        place, phrase = (w, y + 1.25 * i * font.size), _phrase(random, int(random.integers(2, 5)))
        if boxed:
            box = pen.textbbox(place, phrase, font, anchor="ma")
            pen.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), fill=(0, 0, 0, 190))
        pen.text(place, phrase, (*colour, 255), font, anchor="ma", stroke_width=2, stroke_fill=(0, 0, 0, 255))
    return _paste(frames, layer.resize((w, h), Image.Resampling.BOX), (0, 0), 1.0)


DRAWERS = {"webcam": _webcam, "logo": _logo, "menu": _menu, "message": _message}
ARTIFACTS = tuple(DRAWERS)


def _paste(frames, layer, place, opacity):
    """Blends an RGBA image over every frame at (y, x)."""
    layer = np.asarray(layer, np.float32)
    y, x = place
    h, w = layer.shape[:2]
    alpha = layer[..., 3:] / 255 * opacity  # h w 1
    out = frames.copy()
    under = out[:, y : y + h, x : x + w]
    out[:, y : y + h, x : x + w] = (under * (1 - alpha) + layer[..., :3] * alpha).round().astype(np.uint8)
    return out


def _write(pen, place, phrase, colour, pixels, width):
    """Text centred at a place, made smaller until it fits the width."""
    pixels *= min(1.0, width / _font(pixels).getlength(phrase))
    pen.text(place, phrase, (*colour, 255), _font(pixels), anchor="mm")


def _corner(random, outer, inner):
    margin = max(1, outer[0] // 40)
    y, x = ((margin, o - i - margin)[random.integers(2)] for o, i in zip(outer, inner, strict=True))
    return int(y), int(x)


def _vivid(random):
    return _ints(random.permutation([random.integers(180, 256), random.integers(0, 256), random.integers(0, 80)]))


def _dull(random):
    return _ints(random.integers(10, 90, 3))


def _ints(colour):
    return tuple(int(c) for c in colour)


def _phrase(random, n):
    return " ".join(random.choice(WORDS, n))


def _font(pixels):
    return ImageFont.load_default(max(6.0, float(pixels)))
