"""Reads what commands leave in their run directories, whole or partial, for the report."""

import csv
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import untrusted
from pipelines.checkpoint import WEIGHTS
from pipelines.schema import DataError
from pipelines.values import is_number

FILES = (
    "summary.json", "metrics.csv", "config.yaml", "label_report.json", "arms.json", "machine.json", "rejected.jsonl",
    "filtered.jsonl", "curves.csv", "policy.json",
)  # fmt: skip
REJECTED = ("rejected.jsonl", "filtered.jsonl")
DEPTH = 4  # folders below a given one that are searched
YAML_LIMIT = 1 << 20
CELLS = 10_000  # of a grid whose policy is drawn
SIZE_LIMIT = 64 << 20  # bytes of one text file; a larger one is not a run's summary


@dataclass
class Run:
    """One run directory. A member is empty when its file is missing; `problems` says which could not be read."""

    name: str
    folder: Path
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    config_text: str = ""
    label_report: dict = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    arms: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)  # name -> ([steps], [values])
    curves: dict = field(default_factory=dict)  # of learners in context: figure -> who -> [(x, mean, standard error)]
    policy: dict = field(default_factory=dict)  # what one does in each cell of a grid, see foundation.report_worlds
    rejected: Counter = field(default_factory=Counter)  # reason -> inputs set aside for it
    rejected_examples: dict = field(default_factory=dict)  # reason -> one of them
    videos: list = field(default_factory=list)
    problems: list = field(default_factory=list)


def discover(folders):
    """Every run directory in or below the given folders, in that order, then by path. DataError if there is none.

    A folder of nothing but videos counts only if it was given itself: below a run it holds recordings, not results.
    """
    runs, seen = [], set()
    for top in map(Path, folders):
        if not top.is_dir():
            raise DataError(f"{top} is not a folder; runs=[...] expects run directories, such as outputs/pretrain")
        for folder in _walk(top):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                runs.append(read(folder, _name(top, folder)))
    if not runs:
        raise DataError(
            f"no run found in {', '.join(map(str, folders))}: expected at least one of {', '.join(FILES)} or a *.mp4;"
            " run a command first, or point runs=[...] at its run.dir"
        )
    return runs


def read(folder, name):
    """Reads one run directory. Damaged files become entries of `problems`."""
    run = Run(name, folder)
    for attribute in ("summary", "label_report", "machine", "arms"):
        setattr(run, attribute, _guarded(run, f"{attribute}.json", _read_json) or {})
    run.config_text = _guarded(run, "config.yaml", _read_text) or ""
    run.config = _guarded(run, "config.yaml", _read_yaml) or {}
    run.metrics = _guarded(run, "metrics.csv", read_metrics) or {}
    run.curves = _guarded(run, "curves.csv", _read_curves) or {}
    run.policy = _guarded(run, "policy.json", lambda path: _checked_policy(_read_json(path))) or {}
    for name in REJECTED:
        counts, examples = _guarded(run, name, read_rejected) or (Counter(), {})
        run.rejected += counts
        run.rejected_examples |= examples
    run.videos = sorted(p for p in folder.glob("*.mp4") if _is_clip_of_play(p))
    return run


def read_metrics(path):
    """A Lightning CSVLogger file -> {metric: ([step], [finite value])}; a torn last line is left out."""
    series = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for i, row in enumerate(csv.DictReader(file)):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text) if isinstance(text, str) else None
                if name in (None, "", "step", "epoch") or value is None:
                    continue
                steps, values = series.setdefault(name, ([], []))
                steps.append(i if step is None else step)
                values.append(value)
    return series


def read_rejected(path):
    """Lines of what was set aside -> (Counter of reasons, {reason: first source}); unreadable lines count as such.

    `filtered.jsonl` also lists clips that were kept; they are passed over.
    """
    counts, examples = Counter(), {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in filter(str.strip, file):
            try:
                entry = json.loads(line)
                if path.name == REJECTED[1] and entry.get("keep", True):
                    continue
                reason = str(next(entry[k] for k in ("code", "reason", "error", "detail") if entry.get(k)))
            except (ValueError, TypeError, AttributeError, StopIteration, RecursionError):
                entry, reason = {}, "(unreadable line)"
            counts[reason] += 1
            source = next((entry[k] for k in ("source", "path", "file", "key", "unit") if entry.get(k)), "")
            examples.setdefault(reason, str(source))
    return counts, examples


def _walk(top):
    for folder, children, files in os.walk(top):
        here = Path(folder)
        children[:] = sorted(c for c in children if not c.startswith("."))
        if len(here.relative_to(top).parts) >= DEPTH:
            children.clear()
        if WEIGHTS in files:  # a model that a run saved, described by that run
            children.clear()
        elif any(name in FILES for name in files) or (here == top and any(f.endswith(".mp4") for f in files)):
            yield here


def _is_clip_of_play(path):
    """A video a command drew, not one side of a recording (whose actions lie beside it)."""
    return path.is_file() and not path.with_suffix(".jsonl").exists()


def _name(top, folder):
    below = folder.relative_to(top)
    return "/".join((top.resolve().name, *below.parts))


def _guarded(run, name, reader):
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ValueError(f"{path.stat().st_size} bytes, more than {SIZE_LIMIT}")
        return reader(path)
    except (ValueError, OSError, csv.Error, DataError) as error:
        problem = f"{name} could not be read: {' '.join(str(error).split())[:200]}"
        run.problems += [] if problem in run.problems else [problem]
        return None


def _read_json(path):
    values = untrusted.read_json(path, SIZE_LIMIT)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {type(values).__name__}")
    return values


def _read_yaml(path):
    values = untrusted.read_yaml(path, YAML_LIMIT)
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"expected a mapping, got {type(values).__name__}")
    return values


def _read_text(path):
    return path.read_text(encoding="utf-8", errors="replace")


def _read_curves(path):
    """curves.csv -> {figure: {who: [(x, mean, sem)]}}; rows that are not finite numbers are left out."""
    found = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            point = tuple(map(_number, (row.get("x"), row.get("mean"), row.get("sem"))))
            if None not in point and row["figure"] and row["who"]:
                found.setdefault(row["figure"], {}).setdefault(row["who"], []).append(point)
    return found


def _checked_policy(values):
    """`values` of policy.json; ValueError unless they can be drawn."""
    cells, moves, goal = (values.get(name) for name in ("cells", "moves", "goal"))
    if not isinstance(cells, list) or not isinstance(moves, list) or not len(cells) == len(moves) <= CELLS:
        raise ValueError("expected as many moves as cells")
    if not cells or not all(map(_is_pair, (*cells, *moves, goal))):
        raise ValueError("expected pairs of numbers for cells, moves and goal")
    return {"transitions": "", "goal_seen": False, **values}


def _is_pair(value):
    return isinstance(value, list) and len(value) == 2 and all(is_number(v) and math.isfinite(v) for v in value)


def _number(text):
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
