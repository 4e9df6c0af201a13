"""The report's section on seeds: runs whose paths differ in `seed<number>` alone, each number as mean and interval."""

import re
from collections import defaultdict

from foundation import page, plots
from pipelines.values import is_number

SEED = re.compile(r"\bseed\d+\b")
HEADER = ("what", "mean", "95 % interval", "values")
HIDDEN = ("_sem", "_low", "_high", "_std")  # the interval over seeds takes their place
FEW = 12  # numbers of a family that are shown at once
SHOWN = 5  # seeds whose values are listed


def family(name):
    """A run's name without its seed."""
    return SEED.sub("seed *", name)


def families(runs):
    """{name without the seed: its runs}, in the order of the first of each."""
    found = defaultdict(list)
    for run in runs:
        found[family(run.name)].append(run)
    return dict(found)


def section(runs):
    """A table per family of several runs; empty if there is none."""
    parts = []
    for name, members in families(runs).items():
        rows = rows_of([run.summary for run in members]) if len(members) > 1 else []
        if rows:
            cells = [[page.text(cell) for cell in row] for row in rows]
            title = f"{name}: {len(members)} runs"
            table = page.table(HEADER, [[page.text(title)], *cells], numeric=[1])
            parts.append(table if len(rows) <= FEW else page.fold(f"{title}, {len(rows)} numbers", table))
    return "".join(parts)


def rows_of(summaries):
    """[(what, mean, interval, values)] as text, of the numbers that all of them have."""
    rows = []
    for what in summaries[0]:
        values = [summary.get(what) for summary in summaries]
        if what.endswith(HIDDEN) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            continue
        mean, low, high = plots.mean_interval(values)
        if low == high:  # a setting, not a result
            continue
        several = "  ".join(map(page.number, values[:SHOWN])) + (" ..." if len(values) > SHOWN else "")
        rows.append((what, page.number(mean), f"[{page.number(low)}, {page.number(high)}]", several))
    return rows


def lines(runs, names):
    """A line of text per family and number in `names`: its mean over the seeds, the interval and the values."""
    found = []
    for name, members in families(runs).items():
        for what in names:
            values = [run.summary[what] for run in members if is_number(run.summary.get(what))]
            if values:
                mean, low, high = map(page.number, plots.mean_interval(values))
                interval = f"  [{low}, {high}]" if len(values) > 1 else ""
                found.append((f"{name} {what}", f"{mean}{interval}  of {'  '.join(map(page.number, values))}"))
    width = max((len(name) for name, _ in found), default=0)
    return "\n".join(f"{name:<{width}}  {values}" for name, values in found)
