"""What a folder of episodes of vectors holds: lengths, returns, success, how good the data are and how much they cover.

Quality and coverage are those of Schweighofer et al. 2022 ("A Dataset Perspective on Offline Reinforcement Learning",
arXiv:2111.04714):

    TQ   = (mean return - random return) / (best online return - random return)
    SACo = unique state-action pairs / those of a reference data set, the replay of an online run in the paper

The paper counts discrete pairs, by HyperLogLog where there are many. Here states and actions are continuous: every
dimension is cut into `bins` equal parts between its smallest and largest value in both data sets, actions between
their bounds, and distinct vectors of bins are counted exactly. With many dimensions or bins every step is unique.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines import schema
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.trajectories import Spaces, check, has_tags

QUANTILES = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
GROUPS = ("task", "behaviour")  # tags whose values are reported one by one
PANELS = 25  # tasks in the picture


@dataclass(frozen=True)
class Facts:
    """One row per episode."""

    length: np.ndarray  # int64 [E]
    returned: np.ndarray  # float64 [E]
    terminated: np.ndarray  # bool [E]
    truncated: np.ndarray  # bool [E]
    tags: tuple  # of dicts

    def __len__(self):
        return len(self.length)

    def select(self, chosen):
        """The episodes in `chosen`, bool [E]."""
        arrays = (self.length, self.returned, self.terminated, self.truncated)
        return Facts(*(a[chosen] for a in arrays), tuple(t for t, c in zip(self.tags, chosen, strict=True) if c))

    def having(self, tags):
        return self.select(np.array([has_tags({"tags": own}, tags) for own in self.tags], bool))

    def values(self, name):
        """Sorted values of a tag."""
        return sorted({str(tags[name]) for tags in self.tags if name in tags})

    def with_value(self, name, value):
        return self.select(np.array([name in tags and str(tags[name]) == value for tags in self.tags], bool))


def report(shards, cfg):
    """Flat summary of all episodes, by task and by behaviour; printed, and drawn into `returns.png` of the run."""
    entries = [entry for entry in shards.entries if entry.meta.get("spaces")]
    facts, ranges = read(shards, entries)
    summary = describe(facts, cfg.random_return, cfg.best_return)
    if cfg.bins:
        summary |= coverage(shards, entries, ranges, cfg.reference, cfg.bins)
    for name in GROUPS:
        values = facts.values(name)
        for value in values if len(values) > 1 else ():
            part = describe(facts.with_value(name, value), cfg.random_return, cfg.best_return, facts)
            summary |= {f"{name}/{value}/{key}": number for key, number in part.items()}
    for line in lines(summary, facts):
        print(line)
    draw(facts, Path(cfg.run.dir) / "returns.png")
    return summary


def read(shards, entries):
    """(Facts, {spaces: [smallest, largest] state}) in one pass over the shards."""
    rows, ranges = [], {}
    for entry in tqdm(entries, desc="episodes", disable=None):
        arrays = shards.arrays(entry.key)
        check(entry.key, arrays, Spaces.from_dict(entry.meta["spaces"]))
        reward, states = arrays[schema.REWARD], arrays[schema.OBSERVATION]
        flags = (arrays[schema.TERMINATED][-1], arrays[schema.TRUNCATED][-1])
        rows.append((len(reward), reward.sum(dtype=np.float64), *flags))
        low, high = ranges.setdefault(str(entry.meta["spaces"]), [np.inf, -np.inf])
        ranges[str(entry.meta["spaces"])] = [np.minimum(low, states.min(0)), np.maximum(high, states.max(0))]
    kinds = (np.int64, np.float64, bool, bool)
    columns = [np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return Facts(*columns, tuple(entry.meta.get("tags") or {} for entry in entries)), ranges


def describe(facts, random_return=None, best_return=None, everything=None):
    """Flat numbers of some episodes; everything: where episodes that serve as anchors are looked for."""
    returned, length = facts.returned, facts.length
    success = [bool(tags["success"]) for tags in facts.tags if "success" in tags]
    numbers = {
        "episodes": len(facts), "steps": int(length.sum()), "length_min": int(length.min()),
        "length_median": float(np.median(length)), "length_max": int(length.max()),
        "return_mean": float(returned.mean()), "return_min": float(returned.min()),
        **{f"return_{name}": float(np.quantile(returned, q)) for name, q in QUANTILES.items()},
        "return_max": float(returned.max()), "terminated": float(facts.terminated.mean()),
        "truncated": float(facts.truncated.mean()),
    }  # fmt: skip
    if success:
        numbers["success"] = float(np.mean(success))
    tq = quality(facts, random_return, best_return, everything or facts)
    return {name: round(value, 6) for name, value in numbers.items()} | ({} if tq is None else {"tq": round(tq, 6)})


def quality(facts, random_return, best_return, everything):
    """TQ, the mean over tasks if there are several, or None without anchors."""
    if random_return is None or best_return is None:
        return None
    tasks, scores = facts.values("task") or [None], []
    for task in tasks:
        own, pool = (f if task is None else f.with_value("task", task) for f in (facts, everything))
        low, high = anchor(random_return, pool, "random_return"), anchor(best_return, pool, "best_return")
        if high <= low:
            raise DataError(f"best_return={high:g} must be above random_return={low:g}")
        scores.append((own.returned.mean() - low) / (high - low))
    return float(np.mean(scores))


def anchor(given, pool, name):
    """A number as it is; tags: the mean return of the episodes that have them."""
    if isinstance(given, int | float):
        return float(given)
    if not hasattr(given, "items"):
        raise DataError(f"{name}={given}: expected a number, or tags such as {{behaviour: random}}")
    found = pool.having(given)
    if not len(found):
        raise DataError(f"{name}: no episode of {pool.values('task') or 'the data'} has the tags {dict(given)}")
    return float(found.returned.mean())


def coverage(shards, entries, ranges, reference, bins):
    """unique_pairs and, with a reference data set (folder of shards), saco; summed over kinds of spaces."""
    if not 1 <= bins <= 1 << 16:
        raise DataError(f"bins={bins}: expected 1..65536, or 0 for no coverage")
    others, other_entries = None, []
    if reference is not None:
        others = Shards(reference)
        other_entries = [e for e in others.entries if str(e.meta.get("spaces")) in ranges]
        if not other_entries:
            raise DataError(f"reference={reference} holds no episodes with the spaces of {shards.root}")
        for kind, (low, high) in read(others, other_entries)[1].items():
            ranges[kind] = [np.minimum(low, ranges[kind][0]), np.maximum(high, ranges[kind][1])]
    own = sum(unique_pairs(shards, entries, kind, limits, bins) for kind, limits in ranges.items())
    result = {"unique_pairs": own, "unique_share": round(own / max(1, sum(length_of(e) for e in entries)), 6)}
    if others is not None:
        total = sum(unique_pairs(others, other_entries, kind, limits, bins) for kind, limits in ranges.items())
        result |= {"reference_unique_pairs": total, "saco": round(own / total, 6)}
    return result


def unique_pairs(shards, entries, kind, limits, bins):
    """Distinct binned (state, action) vectors among the episodes whose spaces are `kind`."""
    parts = [binned(shards.arrays(e.key), e.meta, limits, bins) for e in entries if str(e.meta["spaces"]) == kind]
    if not parts:
        return 0
    rows = np.concatenate(parts)
    return len(np.unique(rows.view(np.dtype((np.void, rows.strides[0])))))


def binned(arrays, meta, limits, bins):
    """uint16 [t s+a]: bins of states between `limits`, of actions between their bounds; discrete actions unchanged."""
    spaces, (low, high) = Spaces.from_dict(meta["spaces"]), limits
    parts = [in_bins(arrays[schema.OBSERVATION], low, high, bins)]
    action = spaces.to_unit(arrays[schema.ACTION])
    parts.append(action[:, None] if spaces.n_actions is not None else in_bins(action, -1.0, 1.0, bins))
    return np.ascontiguousarray(np.concatenate(parts, axis=1), np.uint16)


def in_bins(values, low, high, bins):
    width = np.where(high > low, np.subtract(high, low, dtype=np.float64), 1.0)
    return np.clip((values - low) / width * bins, 0, bins - 1).astype(np.uint16)


def length_of(entry):
    start, stop = entry.meta["frames"]
    return stop - start


def lines(summary, facts):
    """The report as text."""
    yield (
        f"  {summary['episodes']} episodes of {summary['length_min']}..{summary['length_max']} steps (median"
        f" {summary['length_median']:g}); {summary['terminated']:.1%} terminated, {summary['truncated']:.1%} truncated"
    )
    quantiles = ", ".join(f"{name} {summary[f'return_{name}']:g}" for name in ("min", *QUANTILES, "max"))
    yield f"  return: mean {summary['return_mean']:g}; {quantiles}"
    known = {"success": "success {:.1%}", "tq": "trajectory quality {:.3f}", "saco": "coverage of the reference {:.3f}",
             "unique_pairs": "{} unique pairs"}  # fmt: skip
    if found := [text.format(summary[name]) for name, text in known.items() if name in summary]:
        yield f"  {', '.join(found)}"
    for name in GROUPS:
        values = facts.values(name)
        for value in values if len(values) > 1 else ():
            part = {key: summary.get(f"{name}/{value}/{key}") for key in ("episodes", "return_mean", "success", "tq")}
            shown = f"{part['episodes']} episodes, return {part['return_mean']:g}"
            shown += "" if part["success"] is None else f", success {part['success']:.1%}"
            shown += "" if part["tq"] is None else f", TQ {part['tq']:.3f}"
            yield f"  {name} {''.join(c if c.isprintable() else '?' for c in value)}: {shown}"


def draw(facts, path):
    """Histograms of returns, one panel per task, stacked by behaviour."""
    from matplotlib.figure import Figure

    tasks = (facts.values("task") or [None])[:PANELS]
    columns = min(len(tasks), 5)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(6, 3 * columns), 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, task in zip(panels, tasks, strict=False):
        own = facts if task is None else facts.with_value("task", task)
        kind = np.array([str(tags.get("behaviour", "other")) for tags in own.tags])
        names = np.unique(kind)
        panel.hist([own.returned[kind == name] for name in names], bins=30, stacked=True, label=list(names))
        panel.set(title=task or "", xlabel="return", ylabel="episodes")
        if len(names) > 1:
            panel.legend()
    for panel in panels:
        panel.set_visible(False)
    figure.savefig(path, dpi=100)
