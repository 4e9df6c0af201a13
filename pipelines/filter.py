"""Drops clips that show more than the game: webcam boxes, logos, menus, messages.

    python -m pipelines.filter clips=<shards> clean=<images or shards> artifact=<images or shards>

The procedure of VPT (arXiv:2206.11795): a frozen image embedding, a linear support vector machine on labelled
frames, and smoothing over time. What it leaves: `filter.npz` (the classifier), `filtered.jsonl` (every clip with its
score and the reason for its fate) and `keep.txt` (keys of the clips that stay; `Kept` reads shards through it).
"""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter
from tqdm import tqdm

from pipelines import embedding
from pipelines.classifier import Classifier, fit
from pipelines.command import command
from pipelines.filter_examples import collect
from pipelines.schema import VIDEO, DataError
from pipelines.shards import Shards
from pipelines.video import open_clip

log = logging.getLogger("foundation-policy")


class Kept(Shards):
    """The shards of `root` without the samples that are not in the list of keys at `keep`."""

    def __init__(self, root, keep, **options):
        super().__init__(root, **options)
        self.keep_text = Path(keep).read_text(encoding="utf-8")
        keys = set(self.keep_text.split())
        unknown = sorted(keys - self._by_key.keys())
        if unknown and not self.damage:  # of what is set aside nobody knows the keys
            raise DataError(
                f"{len(unknown)} keys of {keep} are not in {root}, e.g. {unknown[0]!r};"
                " the list was made from other clips: run pipelines.filter on these"
            )
        self.entries = [entry for entry in self.entries if entry.key in keys]
        self._by_key = {entry.key: entry for entry in self.entries}

    def fingerprint(self):
        return hashlib.sha256(f"{super().fingerprint()} {self.keep_text}".encode()).hexdigest()[:16]


@dataclass
class Decision:
    """One line of `filtered.jsonl`."""

    key: str
    keep: bool
    reason: str  # "" when kept; artifact, or why the clip cannot be read
    score: float | None  # mean of the smoothed scores; above the threshold looks like an artifact
    flagged: float | None  # share of looked-at frames that are flagged
    clean: list  # [start, stop) frames of the runs that look clean
    source: str = ""


def smooth(scores, width):
    """Median over `width` successive looked-at frames; ends are continued. One odd frame then decides nothing."""
    return median_filter(np.asarray(scores, float), size=width, mode="nearest")


def decide(scores, every, n, rules):
    """Scores of frames 0, every, 2 every, ... of a clip of n frames -> (keep, score, flagged, clean runs).

    rules: median (frames), threshold (score), max_flagged (share).
    """
    smoothed = smooth(scores, rules["median"])
    flags = smoothed > rules["threshold"]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], flags, [True]]).astype(int)))
    runs = [[int(a * every), int(min(b * every, n))] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    flagged = float(flags.mean())
    return flagged <= rules["max_flagged"], float(smoothed.mean()), flagged, runs


def judge(shards, entry, embed, classifier, every, rules):
    """Looks at every `every`-th frame of a clip -> Decision. A clip that cannot be read is dropped with its reason."""
    start, stop = entry.meta["frames"]
    source = entry.meta.get("source", "")
    try:
        frames = open_clip(shards.read(entry.key, VIDEO), entry.meta).frames(range(0, stop - start, every))
    except DataError as error:
        return Decision(entry.key, False, getattr(error, "code", "unreadable"), None, None, [], source)
    keep, score, flagged, runs = decide(classifier.scores(embed(frames)), every, stop - start, rules)
    return Decision(entry.key, keep, "" if keep else "artifact", score, flagged, runs, source)


def apply(shards, embed, classifier, every, rules, path):
    """Decisions for all clips, in order, written to `path`; one interrupted earlier with the same settings goes on."""
    head = {"clips": shards.fingerprint(), "filter": classifier.fingerprint(), "every": every, **rules}
    done, part = Path(path), Path(f"{path}.part")
    decisions = _resume(done, head)
    if decisions is not None and len(decisions) == len(shards.entries):
        return decisions
    decisions = _resume(part, head) or []
    with open(part, "w", encoding="utf-8") as file:
        for line in (head, *map(asdict, decisions)):
            file.write(json.dumps(line) + "\n")
        for entry in tqdm(shards.entries[len(decisions) :], unit="clip", desc="filtering", disable=None):
            decisions.append(judge(shards, entry, embed, classifier, every, rules))
            file.write(json.dumps(asdict(decisions[-1])) + "\n")
            file.flush()
        os.fsync(file.fileno())
    os.replace(part, done)
    return decisions


def _resume(path, head):
    """Decisions that an earlier call with the same head left at `path`, up to the first torn line; None if none."""
    if not path.is_file():
        return None
    values = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            break
    return [Decision(**v) for v in values[1:]] if values[:1] == [head] else None


def summarise(decisions, shards):
    """Flat numbers about a filtering; with clips whose tags say what was put on them, how well it did."""
    kept = [d for d in decisions if d.keep]
    length = {e.key: e.meta["frames"][1] - e.meta["frames"][0] for e in shards.entries}
    numbers = {"clips": len(decisions), "kept": len(kept), "kept_frames": sum(length[d.key] for d in kept)}
    for reason in sorted({d.reason for d in decisions} - {""}):
        numbers[f"dropped/{reason}"] = sum(d.reason == reason for d in decisions)
    known = {e.key: bool(e.meta["tags"]["artifact"]) for e in shards.entries if "artifact" in e.meta.get("tags", {})}
    scored = [d for d in decisions if d.key in known and d.score is not None]
    truth = np.array([known[d.key] for d in scored], bool)
    if truth.any() and not truth.all():
        from sklearn.metrics import roc_auc_score

        keep = np.array([d.keep for d in scored])  # chance: as many clips kept, but drawn at random
        numbers |= {
            "clip_auc": float(roc_auc_score(truth, [d.score for d in scored])),
            "clip_auc_chance": 0.5,
            "artifact_clips_dropped": float((~keep[truth]).mean()),
            "artifact_clips_dropped_chance": float((~keep).mean()),
            "clean_clips_kept": float(keep[~truth].mean()),
            "clean_clips_kept_chance": float(keep.mean()),
        }
    return numbers


def obtain(cfg, embed):
    """The classifier, loaded from `cfg.model` or fitted on the labelled frames -> (Classifier, metrics)."""
    if cfg.model:
        return Classifier.load(cfg.model, embed.name), {}
    features, labels, groups = collect(cfg, embed)
    return fit(features, labels, groups, embed.name, cfg.c)


@command("filter")
def main(cfg):
    if cfg.every < 1 or cfg.median < 1 or not 0 <= cfg.max_flagged <= 1:
        raise DataError("every and median are at least 1, max_flagged lies in [0, 1]")
    embed = embedding.build(cfg.embedding, cfg.clip_model)
    shards = Shards(cfg.clips) if cfg.clips else None
    if shards is not None:
        shards.check_frames()
    classifier, numbers = obtain(cfg, embed)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    classifier.save(out / "filter.npz")
    for name, value in numbers.items():
        log.info("%s %s", name, value)
    if shards is None:
        return numbers
    rules = {"median": cfg.median, "threshold": float(cfg.threshold), "max_flagged": float(cfg.max_flagged)}
    decisions = apply(shards, embed, classifier, cfg.every, rules, out / "filtered.jsonl")
    (out / "keep.txt").write_text("".join(f"{d.key}\n" for d in decisions if d.keep), encoding="utf-8")
    numbers |= summarise(decisions, shards)
    log.info("kept %d of %d clips: %s", numbers["kept"], numbers["clips"], out / "keep.txt")
    if not numbers["kept"]:
        raise DataError(f"no clip of {cfg.clips} was kept; look at {out / 'filtered.jsonl'}, raise threshold=")
    return numbers


if __name__ == "__main__":
    main()
