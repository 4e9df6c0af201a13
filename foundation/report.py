"""One self-contained HTML page about one or several runs: `python -m foundation.report runs=[outputs/pretrain]`.

A section appears when the files it is made of exist, so a report of an unfinished run is a report. What it reads:
`summary.json`, `metrics.csv`, `config.yaml`, `label_report.json`, `arms.json`, `curves.csv`, `policy.json`,
`rejected.jsonl`, `machine.json` and `*.mp4`.
"""

import math
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from foundation import page, plots, report_labels, report_results, report_seeds, report_worlds
from foundation.run_files import Run, discover
from pipelines.command import command, machine
from pipelines.schema import DataError

FAMILIES = ("train/", "val/", "validation/", "valid/", "test/")
PANELS = 24  # most training curves on a page


def write(out, folders, title="Report", video_megabytes=24.0):
    """Writes the page about every run in or below `folders` to `out`. Returns a flat summary of what it shows."""
    runs = discover(folders)
    videos, left_out = _choose_videos(runs, video_megabytes * 1e6)
    sections = [
        ("results", "Results", report_results.section(runs)),
        ("seeds", "Over seeds", report_seeds.section(runs)),
        ("returns", "Returns", _returns(runs)),
        ("context", "In context", report_worlds.section(runs)),
        ("curves", "Training curves", _curves(runs)),
        ("labels", "Labels", report_labels.section(runs)),
        ("play", "Play", _play(videos, left_out)),
        ("rejected", "Set aside", _rejected(runs)),
        ("reproduce", "Reproduce", _reproduce(runs)),
        ("problems", "Could not be read", _problems(runs)),
    ]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page.page(title, _header(runs), sections), encoding="utf-8")
    os.replace(part, out)
    shown = [anchor for anchor, _, body in sections if body]
    return {"report": str(out), "runs": len(runs), "videos": len(videos), "sections": " ".join(shown)}


def _header(runs):
    minutes = [m for run in runs if isinstance(m := run.summary.get("minutes"), (int, float))]
    seeds = sorted({str(s) for run in runs if (s := _seed(run)) is not None})
    pairs = [(len(runs), "run" if len(runs) == 1 else "runs")]
    unfinished = sum(not run.summary for run in runs)
    pairs += [(unfinished, "without a summary: not finished")] if unfinished else []
    pairs += [(page.number(sum(minutes)), "minutes")] if minutes else []
    pairs += [(", ".join(seeds), "seed" if len(seeds) == 1 else "seeds")] if seeds else []
    aside = sum(run.rejected.total() for run in runs)
    pairs += [(f"{aside:,}", "inputs set aside")] if aside else []
    return page.facts(pairs)


def _seed(run: Run):
    value = run.config.get("run")
    return value.get("seed") if isinstance(value, dict) else run.summary.get("seed")


def _returns(runs):
    figures, single = [], []
    for run in runs:
        arms = [arm for name, entry in run.arms.items() if (arm := _arm(name, entry))]
        if arms:
            figures.append(page.figure(plots.intervals(arms), run.name, "mean and interval per arm", wide=True))
        for label, entry in _returns_of(run.summary):
            names = [run.name] * (len(runs) > 1 or not label) + [label] * bool(label)
            single += [arm] if (arm := _arm(" · ".join(names), entry)) else []
    if single:
        figures.append(page.figure(plots.intervals(single), "Return", "mean and 95 % interval", wide=True))
    return page.grid(figures, "stack") if figures else ""


def _returns_of(summary):
    """[(who, {mean, low, high})] of the returns that have an interval, such as `evaluate/random/return`."""
    names = [n for n in summary if n.rpartition("/")[2] == "return"]
    bounds = {n: {word: summary.get(f"{n}_{word}") for word in ("low", "high")} for n in names}
    names = [n for n in names if all(map(_is_number, bounds[n].values()))]
    return [(n.rpartition("/")[0], {"mean": summary[n], **bounds[n]}) for n in names]


def _arm(name, entry):
    """(name, mean, low, high) of {mean, low, high} or of a list with one value per seed; None if it is neither."""
    if isinstance(entry, list) and entry and all(map(_is_number, entry)):
        return (str(name), *plots.mean_interval(entry))
    if not isinstance(entry, dict):
        return None
    mean, low, high = (entry.get(word) if _is_number(entry.get(word)) else None for word in ("mean", "low", "high"))
    return None if mean is None else (str(name), mean, low, high)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _curves(runs):
    groups = {}
    for run in runs:
        for metric, (steps, values) in run.metrics.items():
            family = next((f for f in FAMILIES if metric.startswith(f)), "")
            name = metric.removeprefix(family).removesuffix("_epoch").removesuffix("_step")
            groups.setdefault(name, []).append((run, family.rstrip("/"), steps, values))
    names = sorted(groups, key=lambda n: ("loss" not in n, -len(groups[n]), n))
    figures = [page.figure(plots.curves(_lines(groups[n], runs)), n, _latest(groups[n])) for n in names[:PANELS]]
    rest = f'<p class="faint">{len(names) - PANELS} more metrics are in metrics.csv.</p>' if len(names) > PANELS else ""
    note = '<p class="faint">Faint: as logged. Strong: exponential mean. Dashed: held-out data.</p>'
    return note + page.grid(figures) + rest if figures else ""


def _lines(members, runs):
    """Seeds of a family share colour and label."""
    several = len({id(run) for run, *_ in members}) > 1
    lines = []
    for run, family, steps, values in members:
        parts = [report_seeds.family(run.name)] * several + [family] * (bool(family) and len(members) > 1)
        lines.append((" · ".join(parts), steps, values, family not in ("", "train")))
    return lines


def _latest(members):
    """The last value logged, where the figure shows a single run."""
    _, family, _, values = members[-1]
    several = len({id(run) for run, *_ in members}) > 1
    return "" if several else f"last {family}{' ' if family else ''}{page.number(values[-1])}"


def _choose_videos(runs, budget):
    """Videos in order of the runs, one of each run before a second of any, while the budget in bytes lasts."""
    chosen, left_out = [], []
    queue = sorted((i, n, path) for n, run in enumerate(runs) for i, path in enumerate(run.videos))
    for _, n, path in queue:
        size = path.stat().st_size
        if 0 < size <= budget:
            budget -= size
            chosen.append((n, runs[n], path))
        else:
            left_out.append((path, size))
    return [(run, path) for _, run, path in sorted(chosen, key=lambda c: (c[0], c[2]))], left_out


def _play(videos, left_out):
    figures = [page.figure(page.video(path.read_bytes()), path.stem, run.name) for run, path in videos]
    rows = [[page.text(path), f"{size / 1e6:.1f} MB"] for path, size in left_out]
    listed = page.table(["file", "size"], rows, numeric=[1])
    rest = page.fold(f"{len(rows)} videos left out for size or emptiness", listed) if rows else ""
    note = '<p class="faint">Keys are lit by predicted probability; amber outlines and arrows: what was done.</p>'
    return note * bool(figures) + (page.grid(figures, "grid videos") if figures else "") + rest


def _rejected(runs):
    rows = []
    for run in runs:
        if run.rejected:
            rows.append([page.text(run.name)])
            for reason, count in run.rejected.most_common():
                rows.append([page.text(reason), f"{count:,}", page.text(run.rejected_examples.get(reason, ""))])
    return page.table(["reason", "count", "for example"], rows, numeric=[1]) if rows else ""


def _reproduce(runs):
    here = machine()
    rows = []
    for run in runs:
        minutes = page.number(run.summary.get("minutes"))
        where = ", ".join(f"{k} {v}" for k, v in run.machine.items() if k != "command")
        rows.append(
            [
                page.text(run.name),
                page.text("" if _seed(run) is None else _seed(run)),
                page.text(minutes),
                page.text(where),
            ]
        )
    header = ["run", "seed", "minutes", "machine"]
    if not any(row[3] for row in rows):
        header, rows = header[:3], [row[:3] for row in rows]
    facts = ", ".join(f"{name} {value}" for name, value in here.items())
    body = page.table(header, rows, numeric=[1, 2]) + f'<p class="faint">Report written on: {page.text(facts)}.</p>'
    for run in runs:
        if run.config_text:
            body += page.fold(f"{run.name}: {run_command(run)}", f"<pre>{page.text(run.config_text)}</pre>")
    return body


def run_command(run):
    """The command a run came from, from its recorded command line or else from its config."""
    if isinstance(run.machine.get("command"), str):
        return run.machine["command"]
    node = run.config.get("run")
    name = node.get("name") if isinstance(node, dict) else None
    return f"config of {name}" if name else "config"


def _problems(runs):
    rows = [[page.text(run.name), page.text(problem)] for run in runs for problem in run.problems]
    return page.table(["run", "problem"], rows) if rows else ""


@command("report")
def main(cfg):
    folders = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs or [])
    if not folders:
        raise DataError("no run given; say which, for example: python -m foundation.report runs=[outputs/pretrain]")
    runs = discover(folders)
    numbers = gather(runs, OmegaConf.to_container(cfg.numbers))
    print(table(numbers), file=sys.stderr)
    if cfg.seeds:
        print(report_seeds.lines(runs, cfg.seeds), file=sys.stderr)
    summary = write(cfg.out, folders, cfg.title, cfg.video_megabytes)
    print(f"report: {summary['report']}", file=sys.stderr)
    return {**summary, **numbers}


def gather(runs, numbers):
    """{name: [run, key]} -> {name: value} out of the runs' summaries, and `minutes/total` over all of them."""
    by_name = {run.folder.name: run.summary for run in runs}
    found = {}
    for name, (run, key) in numbers.items():
        if run not in by_name:
            raise DataError(f"numbers.{name}: no run {run!r} among {sorted(by_name)}")
        if key not in by_name[run]:
            raise DataError(f"numbers.{name}: {run}/summary.json has no {key!r}; it has {sorted(by_name[run])}")
        found[name] = by_name[run][key]
    minutes = [run.summary["minutes"] for run in runs if isinstance(run.summary.get("minutes"), int | float)]
    return {**found, "minutes/total": round(sum(minutes), 2)} if found else {}


def table(numbers):
    """Lines of name and value, for a terminal."""
    width = max(map(len, numbers), default=0)
    return "\n".join(f"{name:<{width}}  {page.number(value)}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
