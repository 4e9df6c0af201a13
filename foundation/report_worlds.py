"""The report's section on learners in context: their curves beside their rivals', and where a policy goes.

Draws what `foundation.evaluate_worlds` writes: curves.csv (figure, who, x, mean, sem) and policy.json ({"cells": [[x,
y]], "moves": [[dx, dy]] of the most probable action there, "goal": [x, y], "transitions", "goal_seen"}).
"""

from foundation import page, plots

POLICY = "policy"  # whose lines are solid
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
