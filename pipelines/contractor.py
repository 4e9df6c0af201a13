"""Contractor recordings of the VPT release: `X.mp4` (640x360, 20 Hz) + `X.jsonl` (one JSON object per frame).

The released loader has a number of defects that everything built on it inherits. Each is handled here, and each can be
switched back to "as released" to compare: see `ContractorOptions`. Facts about the format and the defects:
github.com/openai/Video-Pre-Training, data_loader.py and issues 13, 29, 54.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

import av
import numpy as np

from pipelines import schema, untrusted
from pipelines.pixels import Resizer
from pipelines.recordings import ActionLog, LogError, read_lines
from pipelines.schema import DataError

SCREEN_LINES = 720  # the recorder logs cursor positions on a screen of this height
MOUSE_BUTTONS = {0: "attack", 1: "use", 2: "pickItem"}  # recorders 6.x log higher numbers too: side buttons
KEYBOARD = {
    "w": "forward", "s": "back", "a": "left", "d": "right", "q": "drop", "e": "inventory", "f": "swapHands",
    "space": "jump", "left.shift": "sneak", "left.control": "sprint", "escape": "ESC",
    **{str(i): f"hotbar.{i}" for i in range(1, 10)},
}  # fmt: skip
GUI_SCALERS = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}  # by recorder version, see gui_scale
SESSION_NAME = re.compile(r"(?P<session>.+)-(?P<date>\d{8})-(?P<time>\d{6})")
MAX_INDEX_BYTES = 1 << 26
JOIN_TICKS = 20  # pieces of a session less than this many game ticks (50 ms) apart are one recording


@dataclass(frozen=True)
class ContractorOptions:
    """Repairs of the released loader; False (or "raw") is what the release does."""

    float_camera: bool = True  # degrees stay fractions; the release cuts them to integers, so small motions vanish
    cursor: bool = True  # draw the cursor where a GUI is open: it is not in the video (the release does this too)
    cursor_image: str | None = None  # RGBA picture; None = a plain arrow of 16x16 made here
    unstick_attack: bool = True  # attack "held" from frame 0 on is an artefact until pressed again (release too)
    hotbar_first_slot: bool = True  # start from the slot of line 1; the release assumes slot 1, one false key per file
    gui_scale: bool = True  # scale mouse motion in GUIs by recorder version; defined in the release, never used
    camera_guard: bool = True  # turns beyond 180 degrees in a frame are glitches; the release's test is never reached
    escape_is_inventory: bool = True  # ESC that closes a GUI counts as the inventory key, as in OpenAI's own training
    null_frames: str = "keep"  # "keep": training decides; "codec": drop what is null to the policy; "raw": as released
    stitch: bool = True  # 5-minute pieces of one session continue one another; the release starts afresh each time

    def __post_init__(self):
        if self.null_frames not in ("keep", "codec", "raw"):
            raise DataError(f"contractor.null_frames={self.null_frames!r}: expected keep, codec or raw")

    @classmethod
    def as_released(cls):
        return cls(
            float_camera=False, hotbar_first_slot=False, gui_scale=False, camera_guard=False,
            escape_is_inventory=False, null_frames="raw", stitch=False,
        )  # fmt: skip


def read_contractor(path, options=ContractorOptions()):
    """ActionLog of a contractor `.jsonl`, in the key order of the Minecraft spec."""
    path = Path(path)
    rows, notes = read_lines(path)
    if not rows:
        raise LogError("bad_log", f"{path.name} is empty")
    try:
        return actions_of(rows, notes, path, options)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise LogError("bad_log", f"{path.name} holds values of the wrong kind ({error})") from error


def actions_of(rows, notes, path, options):
    """ActionLog of the lines of a recording."""
    from pipelines.actions import MINECRAFT  # imports torch, which video alone does not need

    names = [pressed(row, path, i + 1, notes) for i, row in enumerate(rows)]
    gui = np.array([bool(row.get("isGuiOpen")) for row in rows])  # t
    buttons = mouse_buttons(rows, notes, options)
    keys = np.zeros((len(rows), len(MINECRAFT.keys)), np.uint8)  # t k
    columns = {name: i for i, name in enumerate(MINECRAFT.keys)}
    for i, (held, clicked) in enumerate(zip(names, buttons, strict=True)):
        if options.escape_is_inventory and gui[i] and "ESC" in held:
            held = held | {"inventory"}
        keys[i, [columns[name] for name in held | clicked if name in columns]] = 1
    still = np.array([not (held or clicked) for held, clicked in zip(names, buttons, strict=True)])
    add_hotbar(keys, rows, columns, options)
    mouse, moved = camera(rows, gui, path, options)
    return ActionLog(
        MINECRAFT.to_dict(), keys, mouse, {schema.FIRST: np.arange(len(rows)) == 0}, 20.0,
        {"recorder": version_of(path)}, sorted(set(notes)), cursor_positions(rows, gui) if options.cursor else None,
        kept(keys, mouse, still & ~moved, MINECRAFT, options), clock(rows),
    )  # fmt: skip


def pressed(row, path, line, notes):
    """Set of action names of the keys held; keys without a meaning for us are skipped."""
    keyboard = row.get("keyboard") or {}
    if keyboard.get("keys") is None:
        notes.append("null_keys")
    keys = keyboard.get("keys") or []
    if not isinstance(keys, list):
        raise LogError("bad_log", f"{path.name} line {line}: keyboard.keys is no list")
    if None in keys:
        notes.append("null_keys")
    short = (key.removeprefix("key.keyboard.") for key in keys if isinstance(key, str))
    return {KEYBOARD[key] for key in short if key in KEYBOARD}


def mouse_buttons(rows, notes, options):
    """[t] sets of action names of the mouse buttons held."""
    stuck, held = False, []
    for i, row in enumerate(rows):
        mouse = row.get("mouse") or {}
        new = mouse.get("newButtons") or []
        stuck = options.unstick_attack and (new == [0] if i == 0 else stuck and 0 not in new)
        buttons = {b for b in mouse.get("buttons") or [] if not (stuck and b == 0)}
        if stuck:
            notes.append("stuck_attack")
        if buttons - MOUSE_BUTTONS.keys():
            notes.append("other_buttons")
        held.append({MOUSE_BUTTONS[b] for b in buttons if b in MOUSE_BUTTONS})
    return held


def add_hotbar(keys, rows, columns, options):
    """The scroll wheel is not logged; a change of the selected slot becomes a press of that slot's key. In place."""
    slots = np.array([int(row["hotbar"]) if row.get("hotbar") is not None else -1 for row in rows])
    start = slots[0] if options.hotbar_first_slot else 0
    previous = np.concatenate([[start], slots[:-1]])
    for i in np.flatnonzero((slots != previous) & (slots >= 0) & (slots < 9)):
        keys[i, columns[f"hotbar.{slots[i] + 1}"]] = 1


def camera(rows, gui, path, options):
    """(mouse float32 [t 2] degrees (pitch, yaw), bool [t] whether the recorder saw any motion)"""
    from pipelines.actions import MINECRAFT_DEGREES_PER_PIXEL

    mice = [row.get("mouse") or {} for row in rows]
    try:
        pixels = np.array([(m.get("dy") or 0, m.get("dx") or 0) for m in mice], np.float64)  # t 2
    except (TypeError, ValueError) as error:
        raise LogError("bad_log", f"{path.name}: mouse motion is not a number ({error})") from error
    if not np.isfinite(pixels).all():
        line = int(np.flatnonzero(~np.isfinite(pixels).all(1))[0]) + 1
        raise LogError("bad_log", f"{path.name} line {line}: mouse motion is not finite")
    degrees = pixels * MINECRAFT_DEGREES_PER_PIXEL
    if options.gui_scale:
        degrees[gui] *= GUI_SCALERS.get(version_of(path), 1.0)
    if options.camera_guard:
        degrees[np.abs(degrees) > 180] = 0
    if not options.float_camera:
        degrees = np.trunc(degrees)
    return degrees.astype(np.float32), (pixels != 0).any(1)


def kept(keys, mouse, raw_null, spec, options):
    """bool [t] frames to store, or None for all."""
    if options.null_frames == "keep":
        return None
    if options.null_frames == "raw":
        return ~raw_null
    from pipelines.actions import ActionCodec

    codec = ActionCodec(spec)
    return ~codec.is_null(keys, codec.to_bins(mouse))


def version_of(path):
    """Recorder version: a folder of the path such as `6.9`; "" if there is none."""
    return next((part for part in reversed(Path(path).parts) if re.fullmatch(r"\d+\.\d+", part)), "")


def clock(rows):
    """int64 [2] first and last game tick, or None."""
    ticks = [row.get("tick") for row in (rows[0], rows[-1])]
    return np.array(ticks, np.int64) if all(isinstance(tick, int) for tick in ticks) else None


def continues(before, after):
    """Whether one log goes on where another ended."""
    if before is None or before.clock is None or after.clock is None:
        return False
    return 0 < after.clock[0] - before.clock[1] <= JOIN_TICKS


def cursor_positions(rows, gui):
    """float32 [t 2] (x, y) of the cursor on a 720-line screen while a GUI is open, NaN elsewhere."""
    out = np.full((len(rows), 2), np.nan, np.float32)
    for i in np.flatnonzero(gui):
        mouse = rows[i].get("mouse") or {}
        if mouse.get("x") is not None and mouse.get("y") is not None:
            out[i] = mouse["x"], mouse["y"]
    return out


def arrow():
    """A plain white arrow with a dark edge, uint8 [16 16 4] RGBA; its tip is the top left corner."""
    y, x = np.mgrid[:16, :16]
    body = (x <= y * 0.7) & (y <= 13 - 0.4 * x)
    inner = np.zeros_like(body)
    inner[1:-1, 1:-1] = body[1:-1, 1:-1] & body[:-2, 1:-1] & body[2:, 1:-1] & body[1:-1, :-2] & body[1:-1, 2:]
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[body] = (20, 20, 20, 255)
    picture[inner] = (255, 255, 255, 255)
    return picture


def cursor_picture(path=None):
    """RGBA cursor uint8 [h w 4], at most 16x16 of it: the file's, or `arrow()`."""
    if path is None:
        return arrow()
    try:
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0)).to_ndarray(format="rgba")[:16, :16]
    except (av.error.FFmpegError, OSError, StopIteration) as error:
        raise DataError(f"contractor.cursor_image={path} is not a readable picture ({error})") from error


def paste(image, picture, x, y):
    """Blends RGBA `picture` [h w 4] into `image` uint8 [h w 3] with its corner at (x, y), clipped at the border."""
    if x < 0 or y < 0 or x >= image.shape[1] or y >= image.shape[0]:
        return image
    area = image[y : y + picture.shape[0], x : x + picture.shape[1]]
    picture = picture[: area.shape[0], : area.shape[1]]
    alpha = picture[..., 3:].astype(np.float32) / 255
    area[:] = (area * (1 - alpha) + picture[..., :3] * alpha).astype(np.uint8)
    return image


def cursor_editor(log, picture):
    """`edit` for `clips.make_clips`: draws the cursor onto source frames where the log has one."""
    resizer = Resizer()

    def edit(row, frame):
        if row >= len(log) or np.isnan(log.cursor[row]).any():
            return frame
        image = resizer.rgb(frame)
        x, y = (int(value * image.shape[0] / SCREEN_LINES) for value in log.cursor[row])
        return av.VideoFrame.from_ndarray(paste(image, picture, x, y), format="rgb24")

    return edit


def sessions(names):
    """Groups relative stems `folder/name-id-YYYYMMDD-HHMMSS` into sessions in order of time: {session: [stem, ...]}."""
    groups = {}
    for name in sorted(names):
        match = SESSION_NAME.fullmatch(name)
        groups.setdefault(match["session"] if match else name, []).append(name)
    return groups


def read_index(path, basedir=None):
    """Video paths of an index file {basedir, relpaths}; entries are looked up under `basedir`, else beside the index.

    Released indexes name an address as base directory, and up to a fifth of their entries do not exist.
    """
    index = untrusted.read_json(path, MAX_INDEX_BYTES)
    if not isinstance(index, dict) or not isinstance(index.get("relpaths"), list):
        raise DataError(f"{path} is not a contractor index (needs basedir and relpaths)")
    base = Path(basedir) if basedir else Path(path).parent
    names = [name for name in index["relpaths"] if isinstance(name, str)]
    if outside := [name for name in names if not is_below(name)]:
        raise DataError(f"{path} points outside its folder ({outside[0]!r:.80}); names must be relative and without ..")
    return [next((p for p in (base / name, base / Path(name).name) if p.is_file()), base / name) for name in names]


def is_below(name):
    """Whether a relative name stays in its folder: an index is somebody else's list of files of ours."""
    return not PurePath(name).is_absolute() and ".." not in PurePath(name).parts and "\0" not in name
