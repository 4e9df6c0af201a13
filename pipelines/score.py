"""Score labels against recorded actions: `python -m pipelines.score labels=<label shards> truth=<trajectory shards>`.

Clips are joined by key: ingest the labelled videos once more with their action logs and equal settings, and the keys
are the same. Writes `label_report.json` (see `pipelines.scoring`) beside the summary, for the HTML report.
"""

import json
import logging
from pathlib import Path

import numpy as np

from pipelines import checkpoint, schema
from pipelines.actions import spec_from
from pipelines.command import command
from pipelines.labeller import describe, runs
from pipelines.schema import DataError
from pipelines.scoring import Truth, label_report
from pipelines.shards import Shards

log = logging.getLogger(__name__)
REPORT = "label_report.json"


@command("score")
def main(cfg):
    """Joins, scores, writes the report; returns its scores."""
    labels, truth = Shards(cfg.labels), Shards(cfg.truth)
    spec = common_spec(labels, truth)
    recorded, keys, camera = join(labels, truth)
    report = label_report(recorded, keys, camera, spec, cfg.collar, cfg.shifts)
    values = report.to_dict()
    (Path(cfg.run.dir) / REPORT).write_text(json.dumps(values, indent=1) + "\n")
    if cfg.idm is not None:
        checkpoint.update_statistics(cfg.idm, {"label_report": values})
    print(table(report))
    unmatched = sum(entry.key not in labels for entry in truth.entries)
    if unmatched:
        log.warning("%d of %d recorded clips have no label", unmatched, len(truth))
    return {**report.scores, "score/clips": len(truth) - unmatched, "score/clips_without_label": unmatched}


def common_spec(labels, truth):
    """The action spec that all clips on both sides share."""
    found = {}
    for shards in (labels, truth):
        for entry in shards.entries:
            if not entry.meta.get("actions"):
                raise DataError(f"clip {entry.key} in {shards.root} carries no actions; ingest it with its action log")
            found.setdefault(json.dumps(entry.meta["actions"], sort_keys=True), (entry.key, shards.root))
    if not found:
        raise DataError(f"{labels.root} and {truth.root} hold no samples")
    if len(found) > 1:
        parts = [f"{describe(spec_from(json.loads(s)))} in {root} ({key})" for s, (key, root) in found.items()]
        raise DataError(f"labels and recordings use different actions: {'; '.join(parts)}; score like with like")
    return spec_from(json.loads(next(iter(found))))


def join(labels, truth):
    """-> (Truth, key probabilities [n k], camera probabilities [n 2 bins]) over the clips that both have."""
    common = [entry for entry in truth.entries if entry.key in labels]
    if not common:
        raise DataError(
            f"no clip of {truth.root} has a label in {labels.root}: the keys differ. Ingest the recordings from the"
            " same files and with the same settings (size, fps, clip_frames) as the clips that were labelled"
        )
    parts = [clip(labels, truth, entry, i) for i, run in enumerate(runs(common)) for entry in run]
    joined = {name: [part[name] for part in parts] for name in parts[0]}
    if any(effective is None for effective in joined["effective"]):
        joined["effective"] = None
    joined = {name: None if values is None else np.concatenate(values) for name, values in joined.items()}
    probabilities = joined.pop("key_probabilities"), joined.pop("camera_probabilities")
    return Truth(**joined), *probabilities


def clip(labels, truth, entry, segment):
    """Arrays of one clip on both sides, checked to be of one length; `segment` numbers its run of consecutive clips."""
    said, real = labels.arrays(entry.key), truth.arrays(entry.key)
    needed = {labels.root: (said, (schema.KEY_PROBABILITIES, schema.CAMERA_PROBABILITIES)),
              truth.root: (real, (schema.KEYS, schema.MOUSE))}  # fmt: skip
    for root, (arrays, names) in needed.items():
        if lacking := [name for name in names if name not in arrays]:
            raise DataError(f"clip {entry.key} in {root} has no {lacking}; labels=<label shards> truth=<trajectories>")
    n = len(real[schema.KEYS])
    if len(said[schema.KEY_PROBABILITIES]) != n:
        raise DataError(f"clip {entry.key} has {len(said[schema.KEY_PROBABILITIES])} labelled and {n} recorded frames")
    return {
        "keys": real[schema.KEYS],
        "mouse": real[schema.MOUSE],
        "segment": np.full(n, segment),
        "effective": real.get(schema.EFFECTIVE),
        "mask": said.get(schema.COVERAGE, np.ones(n, bool)),
        "key_probabilities": said[schema.KEY_PROBABILITIES].astype(np.float32),
        "camera_probabilities": said[schema.CAMERA_PROBABILITIES].astype(np.float32),
    }


def table(report):
    """The report in a screenful: keys, mouse, whole actions, each beside its baseline."""
    view = "effective actions" if report.effective_keys else "all frames"
    lines = [f"{'key':12}{'held':>8}{'recall':>8}{'F1':>8}{'AP':>8}{'event F1':>10}{'rate':>8}   ({view})"]
    for key, row in (report.effective_keys or report.keys).items():
        values = [row[name] for name in ("recall", "f1", "ap")]
        cells = "".join(f"{value:8.3f}" for value in values)
        lines.append(f"{key:12}{row['support']:8d}{cells}{row['event_f1']:10.3f}{row['positive_rate_ratio']:8.2f}")
    start = "idm/effective/" if report.effective_keys else "idm/"
    for title, name, other in (
        ("mouse R2", "camera_r2", "persistence_camera_r2"),
        ("mouse bins exact", "camera_bin_accuracy", "majority_camera_bin_accuracy"),
        ("whole action exact", "joint_exact", "majority_exact"),
        ("nats per frame", "nll", "majority_nll"),
    ):
        baseline = other.removesuffix(f"_{name}").split("_")[0]
        lines.append(f"{title:20}{report.scores[start + name]:8.3f}   {baseline} {report.scores[start + other]:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
