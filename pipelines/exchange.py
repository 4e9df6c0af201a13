"""Episodes of vectors from and to other tools: `python -m pipelines.exchange from=<file> format=d4rl out=<shards>`.

Reads Minari, LeRobot, D4RL, L2M, OGBench and ExORL files, writes Minari (`to=minari`). Each file (each folder, where a
file is one episode) is a unit: running the command again continues. What cannot be used is set aside with its reason in
`<out>/rejected.jsonl`. Nothing in a file is executed.
"""

import logging
from collections import Counter
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from pipelines import storage, workers
from pipelines.command import command, write_summary
from pipelines.exchange_unit import FORMATS, Job, find_units, process
from pipelines.formats import minari
from pipelines.formats.episodes import Options
from pipelines.formats.minari_export import export
from pipelines.ingest import check_there, claim, reasons, release, write_rejected
from pipelines.ingest_unit import failed_record
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")


@command("exchange")
def main(cfg):
    if not cfg["from"] or not cfg.out:
        raise DataError(
            "set from=<data of another tool> format=... out=<shards>, or from=<shards> to=minari out=<name>"
        )
    if cfg.to is not None:
        return out_of_shards(cfg)
    job = make_job(cfg)
    units = find_units(job)[: cfg.limit]
    claim(job.out, job.settings())
    try:
        records = work(job, units, cfg)
        check_there(job, units)
    finally:
        release(job.out)
    write_rejected(job, units)
    summary = summarise(records)
    log.info("%d episodes, %d steps at %s; rejected: %s", summary["episodes"], summary["steps"], job.out,
             reasons(summary))  # fmt: skip
    if not summary["episodes"] or (cfg.strict and summary["rejected"]):
        write_summary(Path(cfg.run.dir) / "summary.json", summary)
        why = f"rejected {reasons(summary)}; see {job.out / 'rejected.jsonl'}"
        if not summary["rejected"]:
            why = f"{job.root} has no rows"
        raise DataError(f"{'no episode was read' if not summary['episodes'] else 'strict=true'}: {why}")
    return summary


def out_of_shards(cfg):
    if cfg.to != "minari":
        raise DataError(f"to={cfg.to}: expected minari; with format= the direction is into shards, then leave to= out")
    summary = export(cfg["from"], cfg.out, OmegaConf.to_container(cfg).get("where"))
    log.info("%d episodes, %d steps at %s", summary["episodes"], summary["steps"], summary["path"])
    return summary


def make_job(cfg):
    """Job from the config; DataError for what no file could satisfy."""
    if cfg.format not in FORMATS:
        raise DataError(f"format={cfg.format}: expected one of {', '.join(FORMATS)}")
    if (cfg.low is None) != (cfg.high is None):
        raise DataError("set both low= and high=, or neither")
    if cfg.fps is not None and not 0 < cfg.fps <= 1e6:
        raise DataError(f"fps={cfg.fps}: expected steps per second above 0")
    if cfg.ends not in (None, "timeouts") or cfg.last not in ("repeat", "drop"):
        raise DataError(f"ends={cfg.ends}, last={cfg.last}: expected null or timeouts, and repeat or drop")
    if cfg.ends is not None and cfg.format != "d4rl":
        raise DataError(f"ends={cfg.ends} is for format=d4rl; {cfg.format} says where episodes end, leave it out")
    root = minari.locate(cfg["from"]) if cfg.format == "minari" else Path(cfg["from"])
    if not root.exists():
        raise DataError(f"from={root} does not exist")
    plain = OmegaConf.to_container(cfg)
    low, high = (tuple(v) if isinstance(v, list) else v for v in (plain["low"], plain["high"]))
    options = Options(cfg.fps, low, high, tuple(plain["observation"] or ()), cfg.task_name, cfg.ends, cfg.last)
    out = storage.local(cfg.out, "out")
    return Job(root.absolute(), out, cfg.format, options, plain["tags"] or {}, cfg.samples_per_shard, cfg.retry)


def work(job, units, cfg):
    """Records of the units, with a progress bar over their bytes."""
    records, tasks = [], [(job, unit) for unit in units]
    with tqdm(total=sum(u.bytes for u in units), unit="B", unit_scale=True, desc="exchange", disable=None) as bar:
        for (_, unit), record in workers.run(process, tasks, cfg.workers, cfg.timeout_seconds):
            if isinstance(record, workers.Failure):
                record = failed_record(job, unit, record)
            for rejection in record["rejected"][:3]:
                log.warning("set aside %s: %s (%s)", rejection["file"], rejection["code"], rejection["detail"])
            records.append(record)
            bar.update(unit.bytes)
    return records


def summarise(records):
    """Flat counts: totals, then per reason and per note."""
    rejected, notes = Counter(row["code"] for record in records for row in record["rejected"]), Counter()
    for record in records:
        notes.update(record["notes"])
    return {
        "units": len(records), "episodes": sum(record["clips"] for record in records),
        "steps": sum(record["frames"] for record in records), "rejected": sum(rejected.values()),
        "skipped_units": sum(bool(record.get("skipped")) for record in records),
        **{f"rejected/{code}": n for code, n in sorted(rejected.items())},
        **{f"notes/{note}": n for note, n in sorted(notes.items())},
    }  # fmt: skip


if __name__ == "__main__":
    main()
