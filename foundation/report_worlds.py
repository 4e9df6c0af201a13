"""The report's section on learners in context: their curves beside their rivals', and where a policy goes.

Reads what `foundation.evaluate_worlds` writes: curves.csv (figure, who, x, mean, sem) and policy.json ({"cells": [[x,
y]], "moves": [[dx, dy]] of the most probable action there, "goal": [x, y], "transitions", "goal_seen"}).
"""

import csv
import math

from foundation import page, plots
from pipelines.values import is_number

POLICY = "policy"  # whose lines are solid
MOST = 10_000  # cells of a policy
WORDS = '<p class="faint">Mean over tasks, band: 1.96 standard errors. Dashed: rivals in closed form.</p>'


def section(runs):
    figures = []
    for run in runs:
        note = run.name if len(runs) > 1 else ""
        for name, lines in run.curves.items():
            rows = [(who, *zip(*points, strict=True), who != POLICY) for who, points in lines.items()]
            figures.append(page.figure(plots.bands(rows), name, note))
        if run.policy:
            picture = plots.arrows(*(run.policy[name] for name in ("cells", "moves", "goal")))
            figures.append(page.figure(picture, "most probable action in each cell", _context(run.policy)))
    return WORDS + page.grid(figures) if figures else ""


def _context(policy):
    seen = "with" if policy["goal_seen"] else "without"
    return f"{seen} the goal among the {policy['transitions']} transitions of its context"


def read_curves(path):
    """curves.csv -> {figure: {who: [(x, mean, sem)]}}; rows that are not finite numbers are left out."""
    found = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            point = tuple(map(_number, (row.get("x"), row.get("mean"), row.get("sem"))))
            if None not in point and row["figure"] and row["who"]:
                found.setdefault(row["figure"], {}).setdefault(row["who"], []).append(point)
    return found


def check_policy(values):
    """`values` of policy.json; ValueError unless they can be drawn."""
    cells, moves, goal = (values.get(name) for name in ("cells", "moves", "goal"))
    if not isinstance(cells, list) or not isinstance(moves, list) or not len(cells) == len(moves) <= MOST:
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
