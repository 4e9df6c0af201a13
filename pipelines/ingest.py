"""Any folder of videos -> clip shards: `python -m pipelines.ingest videos=<folder> out=<folder>`.

Each video is decoded once, put on an even timeline, scaled, cut into clips and stored as H.264 in tars; with an action
log beside it, the clips are trajectories. What cannot be used is set aside with its reason in `<out>/rejected.jsonl`,
and the job goes on. Running the same command again continues; equal input gives byte-identical shards.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from pipelines import manifest as disk
from pipelines import storage, workers
from pipelines.clips import ClipSettings
from pipelines.command import command, write_summary
from pipelines.contractor import ContractorOptions
from pipelines.ingest_unit import COUNTS, failed_record, process, read_record
from pipelines.pixels import INTERPOLATIONS, check_size, frame_rate
from pipelines.schema import DataError
from pipelines.units import Job, find_units, find_videos

log = logging.getLogger("foundation-policy")
DATASET = "dataset.json"  # settings that a folder of results was made with
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip
INCOMPLETE = ("truncated", "corrupt", "leading_loss", "log_truncated", "null_keys")  # notes worth a line


@command("ingest")
def main(cfg):
    start = time.monotonic()
    job = make_job(cfg)
    videos = OmegaConf.to_container(cfg.videos) if OmegaConf.is_list(cfg.videos) else cfg.videos
    root, paths = find_videos(videos, cfg.basedir)
    job = replace(job, root=root)
    units = find_units(job, paths, Path(cfg.logs).absolute() if cfg.logs else None)[: cfg.limit]
    claim(job.out, job.settings())
    mine = units[cfg.rank :: cfg.world_size]
    records = work(job, mine, cfg)
    check_there(job, mine)
    write_rejected(job, units)
    summary = summarise(records, time.monotonic() - start)
    report(job, summary)
    if records and (not summary["clips"] or (cfg.strict and summary["rejected"])):
        write_summary(Path(cfg.run.dir) / "summary.json", summary)
        raise DataError(
            f"{'no clip was made' if not summary['clips'] else 'strict=true'}: {summary['rejected']} of"
            f" {summary['videos']} videos rejected ({reasons(summary)}); see {job.out / 'rejected.jsonl'}"
        )
    return summary


def make_job(cfg):
    """Job from the config; DataError for what no video could satisfy."""
    if cfg.videos is None or cfg.out is None:
        raise DataError("set videos=<folder, glob, file or list> and out=<folder of shards>")
    if cfg.logs and not Path(cfg.logs).is_dir():
        raise DataError(f"logs={cfg.logs} is not a folder; give the one with the action logs, named like the videos")
    if not (cfg.world_size >= 1 and 0 <= cfg.rank < cfg.world_size):
        raise DataError(f"rank={cfg.rank} must be in 0..world_size-1, world_size={cfg.world_size}")
    if cfg.actions not in ("auto", "none", "recording", "contractor"):
        raise DataError(f"actions={cfg.actions!r}: expected auto, none, recording or contractor")
    if cfg.interpolation not in INTERPOLATIONS:
        raise DataError(f"interpolation={cfg.interpolation!r}: expected one of {sorted(INTERPOLATIONS)}")
    size = check_size(cfg.size)
    if any(n % 2 for n in size):
        raise DataError(f"size={list(size)}: both must be even, H.264 stores colour at half resolution")
    if cfg.fps != "source":
        frame_rate(cfg.fps)
    if cfg.limit is not None and not (isinstance(cfg.limit, int) and cfg.limit >= 1):
        raise DataError(f"limit={cfg.limit}: expected at least 1, or null for all videos")
    if not 0 <= cfg.crf <= 51 or cfg.preset not in PRESETS:
        raise DataError(f"crf={cfg.crf}, preset={cfg.preset}: x264 takes 0 to 51, and one of {', '.join(PRESETS)}")
    if not 1 <= cfg.min_frames <= cfg.clip_frames:
        raise DataError(f"min_frames={cfg.min_frames} must be in 1..clip_frames={cfg.clip_frames}")
    values = {f.name: cfg[f.name] for f in fields(ClipSettings)}
    return Job(
        Path("."), storage.local(cfg.out, "out"), ClipSettings(**{**values, "size": size}),
        ContractorOptions(**cfg.contractor), cfg.actions, cfg.samples_per_shard, cfg.retry,
    )  # fmt: skip


def claim(out, settings):
    """Makes the output folder, or checks that what it holds was made with the same settings."""
    path, text = out / DATASET, disk.to_json(settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {out} ({error.strerror}); choose another out=") from error
    fingerprint = hashlib.sha256(text).hexdigest()[:16]
    if not path.exists():
        disk.write_once(path, disk.to_json({"fingerprint": fingerprint, "settings": settings}))
    old = disk.read_json(path)
    if old.get("fingerprint") != fingerprint:
        changed = differences(old.get("settings", {}), json.loads(text))
        raise DataError(f"{out} was made with other settings ({'; '.join(changed)}); choose another out=")


def release(out):
    """Lets other settings have the folder if nothing was written into it; what was rejected, and why, stays."""
    if not any(out.glob("*.tar")):
        (out / DATASET).unlink(missing_ok=True)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def differences(old, new, prefix=""):
    """["size: [64, 80] -> [128, 128]", ...]"""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {a} -> {b}")
    return found


def work(job, units, cfg):
    """Records of the units of this rank, with a progress bar over their bytes."""
    records, frames, start = [], 0, time.monotonic()
    tasks = [(job, unit) for unit in units]
    total = sum(unit.bytes for unit in units)
    with tqdm(total=total, unit="B", unit_scale=True, desc="ingest", disable=None) as bar:
        for (_, unit), record in workers.run(process, tasks, cfg.workers, cfg.timeout_seconds):
            if isinstance(record, workers.Failure):
                record = failed_record(job, unit, record)
            for rejection in record["rejected"]:
                log.warning("set aside %s: %s (%s)", rejection["file"], rejection["code"], rejection["detail"])
            records.append(record)
            frames += 0 if record.get("skipped") else record["frames"]
            bar.update(unit.bytes)
            rate = frames / (time.monotonic() - start)
            bar.set_postfix_str(f"{len(records)}/{len(units)} units, {rate:.0f} frames/s")
    return records


def write_rejected(job, units):
    """`rejected.jsonl`: one line per rejected file, of all ranks that are done; the same whoever writes last."""
    lines, written = rejected_lines(job, units), None
    while lines != written:  # a rank that has finished since must not be overwritten by what was read before
        disk.write_atomic(job.out / "rejected.jsonl", lines)
        lines, written = rejected_lines(job, units), lines


def rejected_lines(job, units):
    records = [record for unit in units if (record := read_record(job, unit))]
    return b"".join(disk.to_json(rejection) for record in records for rejection in record["rejected"])


def check_there(job, units):
    """DataError if what this run has made or found is gone again: somebody deleted the folder while it ran, say."""
    names, gone = {path.name for path in job.out.glob("*.json")}, 0
    for unit in units:
        record = read_record(job, unit)
        parts = range(record["shards"] if record else 0)
        gone += record is None or any(f"clips-{unit.hash}-{part:05d}.json" not in names for part in parts)
    if gone or DATASET not in names:
        raise DataError(
            f"{job.out} was changed while it was written: {gone} of {len(units)} videos have lost their record or"
            " shards; run the same command again, it makes what is missing"
        )


def summarise(records, seconds):
    """Flat counts: totals, then per reason and per note."""
    total = {name: sum(record[name] for record in records) for name in ("videos", *COUNTS)}
    rejected = Counter(rejection["code"] for record in records for rejection in record["rejected"])
    notes = Counter()
    for record in records:
        notes.update(record["notes"])
    made = sum(record["frames"] for record in records if not record.get("skipped"))
    return {
        **total, "rejected": sum(rejected.values()), "skipped_units": sum(bool(r.get("skipped")) for r in records),
        "frames_per_second": round(made / max(seconds, 1e-9), 1),
        **{f"rejected/{code}": count for code, count in sorted(rejected.items())},
        **{f"notes/{note}": count for note, count in sorted(notes.items())},
    }  # fmt: skip


def reasons(summary):
    return ", ".join(f"{k.split('/')[1]} {v}" for k, v in summary.items() if k.startswith("rejected/")) or "none"


def report(job, summary):
    log.info(
        "%d videos -> %d clips, %d frames at %s; rejected: %s", summary["videos"], summary["clips"], summary["frames"],
        job.out, reasons(summary),
    )  # fmt: skip
    incomplete = {note: n for note in INCOMPLETE if (n := summary.get(f"notes/{note}"))}
    if incomplete:
        noted = ", ".join(f"{note} {n}" for note, n in incomplete.items()) + f"; {summary['lost']} frames lost"
        log.warning("videos of which only a part was kept, or whose log says less than it could: %s", noted)


if __name__ == "__main__":
    main()
