"""The report's table of results: numbers of `summary.json` with what belongs beside them."""

from dataclasses import dataclass

from foundation import page

BASELINES = (
    "baseline", "majority", "persistence", "all_released", "chance", "random", "noop", "null", "scratch", "behaviour",
    "player",
)  # fmt: skip
COUNTS = ("episodes", "episode_frames", "frames", "frames_per_second", "steps", "videos")  # no merit in more of them
FEW = 8  # rows of a run without baselines that are shown at once
HIDDEN = ("minutes", "seed")  # shown elsewhere
HEADER = ("what", "value", "baseline", "expected")


@dataclass(frozen=True)
class Row:
    """A line of the table of results, every part as text; `baseline` holds (word, value) pairs."""

    what: str
    value: str
    spread: str
    baseline: tuple
    expected: str


def section(runs):
    """A table of the numbers that have something beside them (baseline, expectation, interval); the others folded."""
    main, rest = [], []
    for run in runs:
        rows = result_rows(run.summary, run.config.get("expected"))
        told = [row for row in rows if row.baseline or row.expected or row.spread]
        told = told or (rows if len(rows) <= FEW or len(runs) == 1 else [])
        main += ([[page.text(run.name)]] if told and len(runs) > 1 else []) + [_cells(row) for row in told]
        others = [_cells(row)[:2] for row in rows if row not in told]
        if others:
            rest.append(
                page.fold(f"{run.name}: {len(others)} more numbers", page.table(HEADER[:2], others, numeric=[1]))
            )
    if not main:
        return "".join(rest)
    keep = [0, 1] + [i for i in (2, 3) if any(len(cells) > 1 and cells[i] for cells in main)]
    main = [cells if len(cells) == 1 else [cells[i] for i in keep] for cells in main]
    return page.table([HEADER[i] for i in keep], main, numeric=[1]) + "".join(rest)


def _cells(row):
    spread = f" <small>{page.text(row.spread)}</small>" if row.spread else ""
    baseline = " · ".join(f"{page.text(v)} <small>{page.text(w)}</small>" for w, v in row.baseline)
    return [page.text(row.what), page.text(row.value) + spread, baseline, page.text(row.expected)]


def result_rows(summary, expected=None):
    """A flat summary -> Rows, in its order.

    Numbers about a number x join its row: `x_low`, `x_high`, `x_std` its value, `x_<word>` for the words of BASELINES
    its baseline, `x_expected` or the config's `expected: {x: ...}` the last. `_spellings` says which names count.
    """
    expected = dict(expected) if isinstance(expected, dict) else {}
    satellites = set(HIDDEN)
    for name in summary:
        for word in ("low", "high", "std", "expected", *_baselines_of(name)):
            satellites |= {s for s in _spellings(name, word) if s in summary}
    return [_row(summary, name, expected) for name in summary if name not in satellites]


def _row(summary, name, expected):
    low, high, std, wanted = (_first(summary, _spellings(name, w)) for w in ("low", "high", "std", "expected"))
    spread = "" if std is None else f"± {page.number(std)}"
    if low is not None and high is not None:
        spread = f"[{page.number(low)}, {page.number(high)}]"
    found = [(word, s) for word in _baselines_of(name) for s in _spellings(name, word) if s in summary]
    baseline = tuple((word.replace("_", " "), page.number(summary[s])) for word, s in found)
    return Row(name, page.number(summary[name]), spread, baseline, _plain(expected.get(name, wanted)))


def _baselines_of(name):
    """Words of baselines that may stand beside `name`: none beside a baseline itself, or a count."""
    parts = name.split("/")
    own = any(f"_{word}_" in f"_{part}_" for part in parts for word in BASELINES)
    return () if own or parts[-1] in COUNTS else BASELINES


def _spellings(name, word):
    """Names `word` about `name` may have: idm/ap_low, idm/ap/low, low/idm/ap, idm/low/ap, low/ap, idm/low_ap."""
    head, slash, tail = name.rpartition("/")
    short = tail.removeprefix("button_").removeprefix("joint_")  # pipelines.scoring: button_f1 against majority_f1
    above = head.rpartition("/")[0]
    sibling = f"{above}/{word}/{tail}" if above else f"{word}/{tail}"
    names = (f"{name}_{word}", f"{name}/{word}", f"{word}/{name}", f"{head}{slash}{word}/{tail}", sibling)
    return tuple(dict.fromkeys((*names, f"{head}{slash}{word}_{tail}", f"{head}{slash}{word}_{short}")))


def _first(mapping, names):
    return next((mapping[n] for n in names if n in mapping), None)


def _plain(value):
    return "" if value is None else page.number(value)
