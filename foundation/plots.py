"""Figures of a report as SVG text that takes the page's text colour, so one file serves light and dark pages."""

import io
import re
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy import stats

INK = "#010203"  # stands for the page's text colour and is replaced by it
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6", "#ec4899", "#84a324")
BLUES = LinearSegmentedColormap.from_list("page", [(0.23, 0.51, 0.96, 0.0), (0.23, 0.51, 0.96, 1.0)])
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "report",
    "text.parse_math": False,  # names may contain dollars
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}
DECADES = 100  # ratio of x beyond which its axis is logarithmic
LABELS = 12  # lines of training curves beyond which their names would cover them
POINTS = 400  # most points of a drawn line; more cannot be seen and only makes the page heavy


def figure(paint, width=4.2, height=2.7):
    """`paint(axes)` on fresh axes of the given size in inches -> SVG text for inlining in HTML."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        paint(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue())


def curves(lines, xlabel="step"):
    """Training curves. lines: [(label, steps, values, dashed)]: raw values faint, smoothed ones on top.

    Lines of one label are told once; where there are more than LABELS, none is.
    """

    def paint(axes):
        colours, told = {}, set()
        palette = cycle(COLOURS)
        for label, steps, values, dashed in lines:
            run = label.split(" · ")[0]
            colours[run] = colours.get(run) or next(palette)
            name = None if label in told else label
            told.add(label)
            _curve(axes, name, np.asarray(steps), np.asarray(values), colours[run], "--" if dashed else "-")
        axes.set_xlabel(xlabel)
        if len(lines) > 1 and len(told) <= LABELS:
            axes.legend()

    return figure(paint)


def smooth(values):
    """Exponential moving average over about a thirtieth of the series, corrected so that it does not start from 0."""
    weight = 1 - min(1.0, 30 / len(values))
    out, mean, mass = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        out[i] = mean / mass
    return out


def bands(lines, xlabel=""):
    """Means with 1.96 standard errors. lines: [(label, x, mean, sem, dashed)]; the axis of x is logarithmic if that
    spans decades."""

    def paint(axes):
        for (label, *columns, dashed), colour in zip(lines, cycle(COLOURS), strict=False):
            x, mean, sem = (np.asarray(column, float) for column in columns)
            pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
            x, mean, half = x[pick], mean[pick], 1.96 * sem[pick]
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
            style = {"linestyle": "--", "linewidth": 1.1} if dashed else {"linewidth": 2}
            axes.plot(x, mean, color=colour, label=label, marker="o" if len(x) < 8 else None, markersize=3, **style)
        every = np.concatenate([np.asarray(x, float) for _, x, *_ in lines])
        if every.min() > 0 and every.max() > DECADES * every.min():
            axes.set_xscale("log")
        axes.set_xlabel(xlabel)
        axes.legend(fontsize=7)

    return figure(paint, 4.6, 3.2)


def arrows(cells, moves, goal):
    """What a policy does in each cell [S 2] of a grid: moves [S 2], (0, 0) = stays, drawn as a dot; the goal a star."""
    cells, moves = np.asarray(cells, float), np.asarray(moves, float)

    def paint(axes):
        going = moves.any(1)
        axes.quiver(*cells[going].T, *moves[going].T, color=COLOURS[0], pivot="mid", scale_units="xy", angles="xy",
                    scale=1.5, width=0.007)  # fmt: skip
        axes.plot(*cells[~going].T, "o", color=COLOURS[0], markersize=3)
        axes.plot(*goal, "*", color=COLOURS[1], markersize=14)
        axes.set_aspect("equal")
        axes.margins(0.08)
        axes.grid(False)

    return figure(paint, 3.6, 3.6)


def confusion(matrix, names, xlabel="predicted", ylabel="true"):
    """Counts [k k], true by predicted, each row drawn as percentages of the true class. names: [k]."""
    matrix = np.asarray(matrix, float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    def paint(axes):
        axes.pcolormesh(shares, cmap=BLUES, vmin=0, vmax=1, edgecolors="none")
        if len(shares) <= 13:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.005:
                    axes.text(j + 0.5, i + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
        ticks = np.arange(len(shares)) + 0.5
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set(xlabel=xlabel, ylabel=ylabel, aspect="equal")
        axes.invert_yaxis()
        axes.grid(False)

    return figure(paint, 4.0, 3.8)


def offsets(values, xlabel="shift in frames"):
    """{shift: log-likelihood} -> line with its best shift marked."""
    shifts = sorted(values)
    best = max(shifts, key=values.get)

    def paint(axes):
        axes.plot(shifts, [values[s] for s in shifts], color=COLOURS[0], marker="o", markersize=3)
        axes.plot(best, values[best], "o", color=COLOURS[1], markersize=7)
        axes.set_xticks(shifts)
        axes.set(xlabel=xlabel, ylabel="nats per frame")

    return figure(paint, 4.0, 3.4)


def mean_interval(values):
    """(mean, low, high): 95 % t interval over seeds; no interval for a single one."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def reliability(lines):
    """Calibration. lines: [(label, predicted probability [n], observed rate [n], counts [n])]; ideal: the diagonal."""

    def paint(axes):
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
        for (label, predicted, observed, counts), colour in zip(lines, cycle(COLOURS), strict=False):
            size = 6 + 34 * np.sqrt(np.asarray(counts, float) / max(1.0, float(np.max(counts, initial=1))))
            axes.plot(predicted, observed, color=colour, linewidth=1, label=label)
            axes.scatter(predicted, observed, s=size, color=colour, alpha=0.6, linewidths=0)
        axes.set(xlabel="predicted probability", ylabel="observed rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if len(lines) > 1:
            axes.legend(fontsize=7)

    return figure(paint, 4.0, 3.4)


def intervals(arms, xlabel="return"):
    """Mean with interval per arm. arms: [(label, mean, low, high)], drawn from top to bottom in the order given."""

    def paint(axes):
        for row, ((_, mean, low, high), colour) in enumerate(zip(arms, cycle(COLOURS), strict=False)):
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
            axes.plot(mean, row, "o", color=colour, markersize=6)
            axes.annotate(f"{mean:.3g}", (mean, row), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(arms)), [label for label, *_ in arms])
        axes.set(xlabel=xlabel, ylim=(len(arms) - 0.4, -0.7))
        axes.margins(x=0.08)
        axes.grid(False, axis="y")

    return figure(paint, 6.4, 0.9 + 0.38 * len(arms))


def _curve(axes, label, steps, values, colour, dash):
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    if len(values) < 8 or not _noisy(values):
        marker = "o" if len(values) < 8 else None
        axes.plot(*_thin(steps, values), color=colour, linestyle=dash, marker=marker, markersize=3, label=label)
        return
    axes.plot(*_thin(steps, values), color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(*_thin(steps, smooth(values)), color=colour, linestyle=dash, label=label)


def _noisy(values):
    """Whether the series changes direction often; smoothing a schedule would only make it lag."""
    change = np.diff(values)
    return (change[1:] * change[:-1] < 0).mean() > 0.1


def _thin(steps, values):
    """At most POINTS points, first and last kept."""
    pick = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    return steps[pick], values[pick]


def _inline(svg):
    """Drops the XML prologue, metadata and name spaces (HTML needs none) and hands colours and ids over to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\sid="[a-zA-Z0-9.]+_\d+"', "", svg)  # figure_1, axes_1, ...: would repeat on the page
    svg = re.sub(r"<style.*?</style>|font-family:[^;\"]*;?", "", svg, flags=re.S)
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace(INK, "currentColor")
