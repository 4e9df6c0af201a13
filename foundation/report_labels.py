"""The report's section on label quality, from `label_report.json` (see `pipelines.scoring.LabelReport`)."""

import math

from foundation import page, plots

# column of the table per key -> (heading, what it says)
COLUMNS = {
    "support": ("held", "frames in which the key is held"),
    "prevalence": ("prevalence", "share of frames in which it is held; the AP of chance"),
    "ap": ("AP", "average precision"),
    "f1": ("F1", "at probability 0.5"),
    "recall": ("recall", "at probability 0.5"),
    "event_f1": ("event F1", "presses and releases found within a collar"),
    "positive_rate_ratio": ("predicted / true", "how often it is predicted, against how often it is held; 1 is right"),
    "calibration_error": ("ECE", "expected calibration error"),
}
RATIO = (0.5, 2.0)  # outside of this a labeller starves or floods a key


def section(runs):
    body = ""
    for run in runs:
        if run.label_report:
            try:
                part = _tables(run.label_report) + page.grid(_figures(run.label_report))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                run.problems.append(f"label_report.json has another shape than expected: {error!r}")
                continue
            body += f"<h3>{page.text(run.name)}</h3>" + part
    return body


def _tables(report):
    views = [("All frames", report.get("keys")), ("Effective actions only", report.get("effective_keys"))]
    parts = [f"<h4>{name}</h4>{key_table(keys)}" for name, keys in views if keys]
    legend = "; ".join(f"{page.text(short)}: {page.text(long)}" for short, long in COLUMNS.values())
    note = f'<p class="faint">{legend}. Red: never found, or predicted far too rarely or often.</p>'
    return "".join(parts) + note * bool(parts)


def key_table(keys):
    """{key: {score: value}} -> HTML; columns nobody filled are left out."""
    columns = [c for c in COLUMNS if any(c in row for row in keys.values())]
    rows = [[page.text(name), *(_cell(c, row) for c in columns)] for name, row in keys.items()]
    return page.table(["key", *(COLUMNS[c][0] for c in columns)], rows, numeric=range(1, len(columns) + 1))


def _cell(column, row):
    value = row.get(column)
    bad = False
    if isinstance(value, (int, float)) and row.get("support"):
        bad = (column == "recall" and value == 0) or (
            column == "positive_rate_ratio" and not RATIO[0] <= value <= RATIO[1]
        )
    text = page.text(page.number(value))
    return f'<span class="bad">{text}</span>' if bad else text


def _figures(report):
    figures = []
    calibration = [row for row in report.get("calibration") or [] if row.get("count")]
    if calibration:
        line = ("keys", *([row[c] for row in calibration] for c in ("confidence", "frequency", "count")))
        figures.append(
            page.figure(plots.reliability([line]), "Calibration of keys", "dots grow with the number of frames")
        )
    for axis, counts in (report.get("confusion") or {}).items():
        half = len(counts) // 2
        names = [f"{i - half:+d}" if i != half else "0" for i in range(len(counts))]
        figures.append(page.figure(plots.confusion(counts, names), f"Mouse {axis}", "bins; % of each true bin"))
    offsets = {int(k): v for k, v in (report.get("offsets") or {}).items() if v is not None and math.isfinite(v)}
    if offsets:
        note = "log-likelihood of the action recorded so many frames later; the peak should be at 0"
        figures.append(page.figure(plots.offsets(offsets), "Alignment", note))
    return figures
