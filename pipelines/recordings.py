"""Action logs beside videos: one row per video frame, whatever the recorder.

Our own format is `<stem>.jsonl` beside `<stem>.mp4`. Line 1 is a header
    {"format": "foundation-policy/actions", "version": 1, "actions": <action spec>, "fps": 17.5, ...free tags}
and then one line per frame
    {"keys": ["forward"], "mouse": [pitch, yaw], "reward": 0.0, "first": false, "terminated": false,
     "truncated": false, "effective": ["forward", "yaw"]}
with the mouse in degrees turned during the frame. Everything but `keys` and `mouse` may be left out throughout.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines import manifest, schema, untrusted
from pipelines.schema import DataError
from pipelines.untrusted import MAX_LINE_BYTES

FORMAT, VERSION = "foundation-policy/actions", 1
EVENTS = {schema.REWARD: np.float32, schema.TERMINATED: bool, schema.TRUNCATED: bool, schema.FIRST: bool}
HEADER_FIELDS = ("format", "version", "actions", "fps")
MAX_LOG_BYTES = 1 << 28  # ten hours at 60 frames/s have 0.2 GB
MAX_TAGS_BYTES = 1 << 14  # of the header: they are repeated in every clip
LARGEST = 1e9  # number that makes sense in a log; also well inside float32


class LogError(DataError):
    """An action log that cannot be used; `code` is one of the words of `rejected.jsonl`."""

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    def __reduce__(self):
        return type(self), (self.code, self.detail)


@dataclass
class ActionLog:
    """Actions of the frames of one video."""

    spec: dict  # fields of pipelines.actions.ActionSpec
    keys: np.ndarray  # uint8 [t k]
    mouse: np.ndarray  # float32 [t 2] degrees: pitch, yaw
    events: dict = field(default_factory=dict)  # schema.REWARD, TERMINATED, TRUNCATED, FIRST, EFFECTIVE -> [t ...]
    fps: float | None = None  # of the recorder, where it says so
    tags: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    cursor: np.ndarray | None = None  # float32 [t 2] (x, y) on a 720-line screen, NaN where no cursor belongs
    keep: np.ndarray | None = None  # bool [t] frames to store; None = all
    clock: np.ndarray | None = None  # int64 [2] first and last game tick, to join pieces of one session

    def __len__(self):
        return len(self.keys)

    def cut(self, start, stop):
        """Rows [start, stop) of every array, as a dict of npz arrays."""
        rows = slice(start, stop)
        events = {name: array[rows] for name, array in self.events.items()}
        return {schema.KEYS: self.keys[rows], schema.MOUSE: self.mouse[rows], **events}


def find_log(video, root, logs=None):
    """Path of the log of a video, or None: `<stem>.jsonl` beside it, or at the same place under the folder `logs`."""
    path = Path(video).with_suffix(".jsonl")
    if logs is not None:
        path = Path(logs) / path.relative_to(root)
    return path if path.is_file() else None


def kind_of(path):
    """ "recording" or "contractor", by the first line; LogError if it is neither."""
    with open(path, "rb") as file:
        first = parse(file.readline(MAX_LINE_BYTES), path, 1)
    if first.get("format") == FORMAT:
        return "recording"
    if "keyboard" in first and "mouse" in first:
        return "contractor"
    raise LogError("bad_log", f"{path.name} is neither a {FORMAT} log nor a contractor log; actions=none ignores it")


def parse(line, path, number):
    """One line -> dict, or LogError naming the line."""
    try:
        value = untrusted.parse_json(line, f"{path.name} line {number}")
    except DataError as error:
        raise LogError("bad_log", str(error)) from error
    if not isinstance(value, dict):
        raise LogError("bad_log", f"{path.name} line {number} is not a JSON object")
    return value


def read_lines(path):
    """(list of dicts, notes). A last line without its newline is what a killed recorder leaves: dropped, noted."""
    rows, notes = [], []
    try:
        for number, line in untrusted.read_lines(path, MAX_LOG_BYTES):
            try:
                rows.append(parse(line, path, number))
            except LogError:
                if line.endswith(b"\n"):
                    raise
                notes.append("log_truncated")
    except LogError:
        raise
    except DataError as error:
        raise LogError("bad_log", str(error)) from error
    return rows, notes


def read_recording(path):
    """ActionLog of our own format."""
    path = Path(path)
    lines, notes = read_lines(path)
    if not lines:
        raise LogError("bad_log", f"{path.name} is empty")
    header, *rows = lines
    spec = check_header(header, path)
    columns = {name: i for i, name in enumerate(spec["keys"])}
    effective = {**columns, "pitch": len(columns), "yaw": len(columns) + 1}
    keys = np.zeros((len(rows), len(columns)), np.uint8)  # t k
    mouse = np.zeros((len(rows), 2), np.float32)
    events = {name: np.zeros(len(rows), kind) for name, kind in EVENTS.items() if any(name in row for row in rows)}
    if any(schema.EFFECTIVE in row for row in rows):
        events[schema.EFFECTIVE] = np.zeros((len(rows), len(effective)), bool)
    for i, row in enumerate(rows):
        if "keys" not in row:  # misspelt, say: a log of nothing pressed would train without a word
            raise LogError("bad_log", f'{path.name} line {i + 2} has no "keys", only {sorted(row)[:8]}')
        if row["keys"] is None:
            notes.append("null_keys")
        keys[i, positions(row.get("keys"), columns, path, i + 2)] = 1
        mouse[i] = motion(row.get("mouse"), path, i + 2)
        for name, array in events.items():
            if name == schema.EFFECTIVE:
                array[i, positions(row.get(name), effective, path, i + 2)] = True
            elif row.get(name) is not None:
                array[i] = event(row[name], name, path, i + 2)
    tags = {name: value for name, value in header.items() if name not in HEADER_FIELDS}
    if len(manifest.to_json(tags)) > MAX_TAGS_BYTES:
        raise LogError("bad_log", f"{path.name} line 1 has more than {MAX_TAGS_BYTES} bytes of tags")
    return ActionLog(spec, keys, mouse, events, header.get("fps"), tags, sorted(set(notes)))


def check_header(header, path):
    """The action spec of a header, as a dict."""
    from pipelines.actions import spec_from  # imports torch, which video alone does not need

    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise LogError(
            "bad_log",
            f"{path.name} line 1 says format {header.get('format')!r} version {header.get('version')!r},"
            f" expected {FORMAT!r} version {VERSION}",
        )
    fps = header.get("fps")
    if fps is not None and (not is_number(fps) or not 0 < fps < LARGEST):
        raise LogError("bad_log", f"{path.name} line 1: fps must be a positive number or left out, got {fps!r:.40}")
    try:
        return spec_from(header.get("actions")).to_dict()
    except (DataError, TypeError, KeyError) as error:
        raise LogError("bad_log", f"{path.name} line 1 has no usable action spec ({error})") from error


def positions(names, columns, path, line):
    """Column numbers of key names."""
    names = names or []
    if not isinstance(names, list):
        raise LogError("bad_log", f"{path.name} line {line}: keys must be a list of names, got {type(names).__name__}")
    unknown = [name for name in names if not isinstance(name, str) or name not in columns]
    if unknown:
        found = f"{path.name} line {line} holds {unknown[0]!r:.40}"
        raise LogError("unknown_key", f"{found}; the spec has {sorted(columns)}")
    return [columns[name] for name in names]


def motion(value, path, line):
    """[pitch, yaw] in degrees, finite."""
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)):
        raise LogError("bad_log", f"{path.name} line {line}: mouse must be [pitch, yaw] in degrees, got {value!r:.40}")
    if not all(abs(v) < LARGEST for v in value):
        raise LogError("bad_log", f"{path.name} line {line}: mouse is not finite or absurdly large ({value!r:.40})")
    return value


def event(value, name, path, line):
    """A reward, or the truth of a flag."""
    if name != schema.REWARD:
        if value not in (True, False):
            raise LogError("bad_log", f"{path.name} line {line}: {name} must be true or false, got {value!r:.40}")
    elif not is_number(value) or not abs(value) < LARGEST:
        raise LogError("bad_log", f"{path.name} line {line}: reward must be a finite number, got {value!r:.40}")
    return value


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def aggregate(log, rows, following):
    """Actions of stored frames that stand for several source frames (or repeat one).

    Stored frame i shows source frame `rows[i]` and lasts up to `following[i]`. A key is held if any frame in between
    holds it; mouse and reward add up; an episode's end inside counts; what lies past the start of the next episode
    does not. A repeated frame (nothing in between) keeps its keys and has no motion of its own.
    Returns a dict of arrays [t ...].
    """
    following = np.minimum(following, len(log))
    first = log.events.get(schema.FIRST)
    if (following == rows + 1).all():
        return {name: array[rows] for name, array in log.cut(0, None).items()}
    source = log.cut(0, None)
    out = {name: np.zeros((len(rows), *array.shape[1:]), array.dtype) for name, array in source.items()}
    previous = rows[0] - 1
    for i, (start, stop) in enumerate(zip(rows, following, strict=True)):
        if first is not None:
            starts = np.flatnonzero(first[start + 1 : stop])
            stop = start + 1 + starts[0] if len(starts) else stop
        span = slice(start, max(stop, start + 1))
        for name, array in source.items():
            if name == schema.FIRST:
                out[name][i] = array[previous + 1 : start + 1].any()
            elif name in (schema.MOUSE, schema.REWARD):
                out[name][i] = array[start:stop].sum(0)
            elif name == schema.KEYS or stop > start:
                out[name][i] = array[span].max(0) if array.dtype == np.uint8 else array[span].any(0)
        previous = start
    return out
