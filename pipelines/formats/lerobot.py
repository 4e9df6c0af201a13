"""LeRobot data sets (v3.0, and v2 with a file per episode): states and actions from parquet, videos left out.

    meta/info.json                     fps, features {name: {dtype, shape, names}}
    meta/stats.json                    smallest and largest action, taken for its bounds
    meta/tasks.parquet | tasks.jsonl   what the task indices mean
    data/chunk-000/file-000.parquet    observation.state, action, episode_index, task_index, next.reward, next.success

LeRobot has no terminal states and no observation after the last action: an episode ends truncated, and its last
observation is repeated.
"""

import json

import numpy as np

from pipelines.formats.episodes import Episode, FormatError, box, cut, finish, scalars, vectors
from pipelines.schema import ACTION, OBSERVATION, REWARD, TERMINATED, TRUNCATED, DataError
from pipelines.untrusted import read_json, read_lines

STATE = "observation.state"
EPISODE, TASK, SUCCESS, PAID = "episode_index", "task_index", "next.success", "next.reward"
ROWS = 8192  # read at once
MAX_JSON_BYTES = 64 << 20


def library():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError('LeRobot data need pyarrow: pip install "foundation-policy[lerobot]"') from error
    return pyarrow


def units(root, options):
    """[(name, files)]: one file each; of v2, where a file is an episode, the files of one folder."""
    library()
    if not (root / "meta" / "info.json").is_file():
        raise DataError(f"{root} has no meta/info.json; give the folder of one LeRobot data set")
    files = sorted(root.glob("data/*/*.parquet"))
    if str(information(root).get("codebase_version", "")).startswith("v2"):
        folders = sorted({path.parent for path in files})
        return [(str(f.relative_to(root)), tuple(p for p in files if p.parent == f)) for f in folders]
    return [(str(path.relative_to(root)), (path,)) for path in files]


def information(root):
    """meta/info.json, checked."""
    info = read_json(root / "meta" / "info.json", MAX_JSON_BYTES)
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict) or not info.get("fps"):
        raise FormatError("metadata", "meta/info.json has no features or no fps")
    return info


def read(path, options, task):
    root = path.parents[2]
    info = information(root)
    names, features = list(options.observation or (STATE,)), info["features"]
    if missing := [name for name in (*names, "action") if name not in features]:
        raise FormatError("missing", f"no {missing} among {sorted(features)}; choose with observation=[...]")
    meanings = {} if options.task else tasks(root)
    extra = [name for name in (TASK, SUCCESS, PAID) if name in features]
    videos = tuple(f"left_out_{n}" for n, f in sorted(features.items()) if f.get("dtype") in ("video", "image"))
    found, spaces = action_bounds(root), None
    for columns in cut(blocks(path, names, extra)):
        spaces = spaces or box(columns, options, found)
        tags = {"task": str(meanings.get(int(columns[TASK][0]), task)) if TASK in columns else task}
        if SUCCESS in columns:
            tags["success"] = bool(columns[SUCCESS].any())
        if PAID not in columns:
            tags["rewards"] = "none"
        episode = finish(columns, spaces, options, tags, float(info["fps"]), known=found is not None)
        if isinstance(episode, Episode):
            episode.notes += videos
        yield episode


def blocks(path, names, extra):
    """Consecutive rows; an episode ends where the index of the next row is another."""
    pyarrow, previous, last = library(), None, None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [*names, "action", EPISODE, *extra]
            for batch in file.iter_batches(ROWS, columns=wanted):
                block, index = typed(batch, names, extra)
                if previous is not None:  # whether a block's last row ends an episode, the next block says
                    previous[TRUNCATED][-1] |= index[0] != last
                    yield previous
                previous, last = block, index[-1]
            if previous is not None:
                yield previous
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError("unreadable", f"not a whole parquet file ({error})") from error


def typed(batch, names, extra):
    """(columns, episode index [n]) of a record batch."""
    index = scalars(numbers(batch, EPISODE), np.int64)
    ends = np.append(index[1:] != index[:-1], False)
    columns = {
        OBSERVATION: np.concatenate([vectors(numbers(batch, name)) for name in names], axis=1),
        ACTION: vectors(numbers(batch, "action")), TERMINATED: np.zeros(len(index), bool), TRUNCATED: ends,
        REWARD: np.zeros(len(index), np.float32),
    }  # fmt: skip
    columns |= {name: scalars(numbers(batch, name), np.float32) for name in extra}
    return {**columns, REWARD: columns.get(PAID, columns[REWARD])}, index


def numbers(batch, name):
    """[n ...] of a column of numbers or of lists of as many numbers each."""
    if name not in batch.schema.names:
        raise FormatError("missing", f"no column {name}; the file has {batch.schema.names}")
    column, n = batch.column(name), batch.num_rows
    flat = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
    if column.null_count or flat.null_count:
        raise FormatError("dtype", f"{name} has missing values")
    values = flat.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub" or len(values) % n:
        raise FormatError("dtype", f"{name} is {column.type}; expected numbers, or lists of as many numbers each")
    return values.reshape(n, -1)


def action_bounds(root):
    """(smallest, largest) action of meta/stats.json, or None; a dimension that never moves gets room."""
    path = root / "meta" / "stats.json"
    try:
        stats = read_json(path, MAX_JSON_BYTES)["action"]
        low, high = (np.asarray(stats[side], np.float64).reshape(-1) for side in ("min", "max"))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    return low, np.where(high > low, high, low + 1)


def tasks(root):
    """{task index: text}"""
    table, lines = root / "meta" / "tasks.parquet", root / "meta" / "tasks.jsonl"
    if table.is_file():
        rows = library().parquet.read_table(table).to_pydict()
        text = next((values for name, values in rows.items() if name != TASK), ())
        return dict(zip(rows.get(TASK, ()), text, strict=False))
    if lines.is_file():
        rows = [json.loads(line) for _, line in read_lines(lines, MAX_JSON_BYTES)]
        return {row[TASK]: row["task"] for row in rows}
    return {}
