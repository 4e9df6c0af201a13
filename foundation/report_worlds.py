"""The report's section on learners in context: their curves beside their rivals', and where a policy goes.

Draws what `foundation.evaluate_worlds` writes: curves.csv (figure, who, x, mean, sem) and policy.json ({"cells": [[x,
y]], "moves": [[dx, dy]] of the most probable action there, "goal": [x, y], "transitions", "goal_seen"}).
"""

from collections import defaultdict

import numpy as np

from foundation import page, plots
from foundation.report_seeds import families

POLICY = "policy"  # whose lines are solid
WORDS = (
    '<p class="faint">Mean over tasks, band: 1.96 standard errors; of several seeds, their mean and its error. Dashed:'
    " rivals in closed form.</p>"
)


def section(runs):
    """A figure for each that the runs have, of all seeds together; and where one policy of each family goes."""
    figures, grouped = [], {name: members for name, members in families(runs).items() if any(r.curves for r in members)}
    for family, members in grouped.items():
        note = (family if len(members) > 1 else members[0].name) if len(runs) > 1 else ""
        for name, lines in merged([run.curves for run in members if run.curves]).items():
            rows = [(who, *columns, who != POLICY) for who, columns in lines.items()]
            figures.append(page.figure(plots.bands(rows), name, note))
        policy = next((run.policy for run in members if run.policy), None)
        if policy:
            picture = plots.arrows(*(policy[name] for name in ("cells", "moves", "goal")))
            figures.append(page.figure(picture, "most probable action in each cell", _context(policy)))
    return WORDS + page.grid(figures) if figures else ""


def merged(curves):
    """[figure -> who -> [(x, mean, standard error)]] of seeds -> figure -> who -> (x, mean, standard error), arrays.

    Of several seeds the mean over them, at the x that all have, and the standard error between them.
    """
    found = defaultdict(lambda: defaultdict(list))
    for one in curves:
        for figure, lines in one.items():
            for who, points in lines.items():
                found[figure][who].append({x: (mean, sem) for x, mean, sem in points})
    return {figure: {who: _mean(seeds) for who, seeds in lines.items()} for figure, lines in found.items()}


def _mean(seeds):
    x = sorted(set.intersection(*map(set, seeds)))
    values = np.array([[seed[at] for at in x] for seed in seeds]).reshape(len(seeds), len(x), 2)  # k n 2
    if len(seeds) == 1:
        return np.array(x), *values[0].T
    return np.array(x), values[:, :, 0].mean(0), values[:, :, 0].std(0, ddof=1) / len(seeds) ** 0.5


def _context(policy):
    seen = "with" if policy["goal_seen"] else "without"
    return f"{seen} the goal among the {policy['transitions']} transitions of its context"
