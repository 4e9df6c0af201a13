"""Draws predicted and true keys and mouse on frames of play, and writes them as a video browsers can show."""

import io
import os
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont

from pipelines.schema import DataError
from pipelines.video import encode

BACKGROUND = (24, 26, 31)
CAP = (44, 48, 56)  # a released key
PREDICTED = (34, 139, 230)
TRUE = (255, 176, 32)  # amber: told from the blue by lightness too, so readable without colour vision
TEXT, FAINT = (240, 243, 248), (139, 147, 161)

PAD, GAP, ROW, DIAL, LEGEND = 8, 4, 24, 90, 18  # pixels; DIAL is the smallest mouse dial
READOUT = 2 * PAD + 82  # pixels beside the dial for the degrees in figures
COLUMN = {1: 188, 2: 92, 3: 84}  # columns of key caps -> width of one


def draw(frame, predicted, true, spec, scale=3, caption=""):
    """Enlarges a frame and puts a panel beside it: key caps lit by probability, true keys outlined, mouse arrows.

    frame: uint8 [h w 3]. predicted, true: {"keys": [k] in [0, 1], "mouse": [2] degrees (pitch down, yaw right)};
    either may be None. spec needs `keys` and `camera_max`. Returns uint8 [H W 3] with even H and W, of a size that
    depends only on the frame's size, `scale` and the spec, so that frames of one video agree.
    """
    frame = np.asarray(frame)
    for name, action in (("predicted", predicted), ("true", true)):
        _check(name, action, spec)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise DataError(f"a frame to draw on must be uint8 [h w 3], got {frame.dtype} {list(frame.shape)}")
    big = repeat(frame, "h w c -> (h dy) (w dx) c", dy=scale, dx=scale)
    canvas, (panel, top), side = _layout(*big.shape[:2], len(spec.keys))
    image = Image.new("RGB", canvas, BACKGROUND)
    image.paste(Image.fromarray(big), (0, max(0, (canvas[1] - big.shape[0]) // 2)))
    pen = ImageDraw.Draw(image)
    _caption(pen, caption)
    _legend(pen, panel + PAD, true is not None)
    _caps(pen, panel + PAD, spec.keys, predicted, true)
    _dial(pen, panel + PAD, top, side, predicted, true, spec.camera_max)
    return np.asarray(image)


def write_video(path, frames, fps):
    """Writes uint8 [h w c] frames (any iterable) as H.264 yuv420p with the index in front. Returns `path`.

    In front, because a browser can then start before it has the whole file.
    """
    data = encode(frames, fps, gop=int(4 * max(1, fps)), crf=28)  # for people: small, still legible
    part = Path(f"{path}.part")
    try:
        with av.open(io.BytesIO(data)) as source:
            stream = source.streams.video[0]
            options = {"movflags": "+faststart", "fflags": "+bitexact"}
            with av.open(str(part), "w", format="mp4", options=options) as target:
                copy = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:  # the last one only says that there is no more
                        packet.stream = copy
                        target.mux(packet)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _check(name, action, spec):
    if action is None:
        return
    keys, mouse = np.shape(action["keys"]), np.shape(action["mouse"])
    if keys != (len(spec.keys),) or mouse != (2,):
        raise DataError(
            f"{name} action has keys {list(keys)} and mouse {list(mouse)}, the action spec {spec.name!r} has"
            f" keys [{len(spec.keys)}] and mouse [2]; pass the spec the action was made with"
        )


def _columns(n_keys):
    return 1 if n_keys < 3 else 2 if n_keys <= 12 else 3


def _layout(height, width, n_keys):
    """Returns canvas (W, H), the panel's left edge and the dial's top edge, the side of the mouse dial; in pixels."""
    columns = _columns(n_keys)
    panel = 2 * PAD + columns * COLUMN[columns] + (columns - 1) * GAP
    rows = -(-n_keys // columns)
    above = PAD + LEGEND + rows * (ROW + GAP)
    total = max(height, above + DIAL + 2 * PAD)
    return (_even(width + panel), _even(total)), (width, above + PAD), min(total - above - 2 * PAD, panel - READOUT)


def _even(n):
    return n + n % 2  # 4:2:0 chroma needs even sizes


def _caption(pen, caption):
    if caption:
        box = pen.textbbox((PAD, PAD), caption, _font(12))
        pen.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=BACKGROUND)
        pen.text((PAD, PAD), caption, TEXT, _font(12))


def _legend(pen, x, has_true):
    pen.rectangle((x, PAD + 2, x + 10, PAD + 12), fill=PREDICTED)
    pen.text((x + 15, PAD), "predicted", TEXT, _font(12))
    if has_true:
        pen.rectangle((x + 80, PAD + 2, x + 90, PAD + 12), outline=TRUE, width=2)
        pen.text((x + 95, PAD), "true", TEXT, _font(12))


def _caps(pen, left, names, predicted, true):
    columns = _columns(len(names))
    for i, name in enumerate(names):
        x = left + (i % columns) * (COLUMN[columns] + GAP)
        y = PAD + LEGEND + (i // columns) * (ROW + GAP)
        box = (x, y, x + COLUMN[columns] - 1, y + ROW - 1)
        p = None if predicted is None else float(predicted["keys"][i])
        pen.rounded_rectangle(box, 4, fill=_mix(CAP, PREDICTED, p or 0.0))
        if true is not None and true["keys"][i] > 0.5:
            pen.rounded_rectangle(box, 4, outline=TRUE, width=3)
        percent = "" if p is None else f"{100 * p:.0f}"
        pen.text((x + 7, y + ROW // 2), _short(name, percent, columns), TEXT, _font(12), anchor="lm")
        pen.text((box[2] - 6, y + ROW // 2), percent, TEXT, _font(11), anchor="rm")


def _dial(pen, left, top, side, predicted, true, camera_max):
    box = (left, top, left + side - 1, top + side - 1)
    centre, radius = (left + side / 2, top + side / 2), side / 2 - 6
    pen.rounded_rectangle(box, 6, fill=CAP)
    pen.line((left + 4, centre[1], box[2] - 4, centre[1]), fill=(70, 75, 85))
    pen.line((centre[0], top + 4, centre[0], box[3] - 4), fill=(70, 75, 85))
    for action, colour, width in ((true, TRUE, 6), (predicted, PREDICTED, 3)):
        if action is not None:
            _arrow(pen, centre, radius, action["mouse"], camera_max, colour, width)
    lines = [(a, c) for a, c in ((predicted, PREDICTED), (true, TRUE)) if a is not None]
    x = left + side + 6
    for i, (action, colour) in enumerate(lines):
        pitch, yaw = (float(v) for v in action["mouse"])
        pen.text((x, top + 2 + 40 * i), f"yaw {yaw:+.1f}°", _mix(colour, TEXT, 0.35), _font(12))
        pen.text((x, top + 18 + 40 * i), f"pitch {pitch:+.1f}°", _mix(colour, TEXT, 0.35), _font(12))


def _arrow(pen, centre, radius, mouse, camera_max, colour, width):
    """Arrow for a turn in degrees; its length grows with the square root, so that small aiming turns show."""
    pitch, yaw = (float(v) for v in mouse)
    size = np.hypot(pitch, yaw)
    if size < 0.05:
        pen.ellipse((centre[0] - width, centre[1] - width, centre[0] + width, centre[1] + width), fill=colour)
        return
    reach = radius * min(1.0, np.sqrt(size / camera_max))
    along = np.array([yaw, pitch]) / size
    tip, across = np.array(centre) + reach * along, np.array([-along[1], along[0]])
    head = min(width + 5.0, reach)
    base = tip - head * along
    pen.line((*centre, *base), fill=colour, width=width)
    pen.polygon([tuple(tip), tuple(base + 0.7 * head * across), tuple(base - 0.7 * head * across)], fill=colour)


def _short(name, percent, columns):
    """A key's name cut to what its cap holds beside the percentage."""
    room = COLUMN[columns] - 14 - (_font(11).getlength("100") + 4 if percent else 0)
    while name and _font(12).getlength(name) > room:
        name = name[:-1]
    return name


def _mix(a, b, share):
    share = min(1.0, max(0.0, share))
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


@lru_cache
def _font(size):
    return ImageFont.load_default(size)


class Film:
    """Collects the first `episodes` episodes at the environment's own resolution, with the pressed keys beside."""

    def __init__(self, episodes, spec):
        self.spec, self.frames = spec, {number: [] for number in range(episodes)}

    def __call__(self, number, environment, action):
        if number in self.frames:
            caption = f"episode {number}, frame {len(self.frames[number])}"
            self.frames[number].append(draw(environment.render(), action, None, self.spec, caption=caption))

    def write(self, folder, fps):
        """-> number of videos written as <folder>/episode-<number>.mp4."""
        played = {number: frames for number, frames in self.frames.items() if frames}
        for number, frames in played.items():
            write_video(folder / f"episode-{number}.mp4", frames, fps)
        return len(played)
