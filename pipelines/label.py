"""Label video: `python -m pipelines.label clips=<clip shards> idm=<hub folder> out=<folder>`.

A unit of work is one clip shard. Its id is the hash of that shard and of the labeller's fingerprint; its label shards
appear together when their manifests are renamed into place. So any process may be killed at any moment: the same
command continues with the units that are not there, loses at most one unit per process, and labels nothing twice.
"""

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from pipelines import gc, storage
from pipelines import manifest as disk
from pipelines.command import command
from pipelines.labeller import ClipError, Labeller, Settings
from pipelines.schema import DataError
from pipelines.shards import ShardError, Shards, ShardWriter

log = logging.getLogger(__name__)
FACTS = "labeller.json"  # in `out`: what made the labels there
PER_TAR = 4096  # label samples are small: a unit is one tar


@dataclass(frozen=True)
class Unit:
    """One clip shard to be labelled."""

    id: str
    shard: str  # tar file name
    prefix: str  # of its label shards
    frames: int


@command("label")
def main(cfg):
    """Labels this rank's share of the clip shards; returns counts and speed."""
    shards, labeller = open_inputs(cfg)
    units = plan(shards, labeller.fingerprint())
    mine = units[cfg.rank :: cfg.world_size]
    missing = [unit for unit in mine if disk.finished(cfg.out, unit.prefix, unit.id) is None]
    log.info("%d of %d shards left to label (rank %d of %d)", len(missing), len(mine), cfg.rank, cfg.world_size)
    if cfg.dry_run:
        return {**counts(units, cfg.out), "label/ranks_to_run": to_run(units, cfg)}
    claim(cfg.out, labeller.facts(), cfg.overwrite)
    start, before = time.monotonic(), counts(mine, cfg.out)
    lost, damaged = label_units(cfg, missing, labeller, shards)
    seconds = time.monotonic() - start
    summary = counts(mine, cfg.out)
    labelled = summary["label/frames"] - before["label/frames"]
    summary |= {"label/frames_now": labelled, "label/seconds": round(seconds, 3)}
    summary["label/frames_per_second"] = labelled / seconds if labelled else float("nan")
    summary |= {"label/labeller": labeller.bundle.sha256, "label/fingerprint": labeller.fingerprint()}
    summary["label/rejected"] += len(lost)
    summary["label/damaged_shards"] = len(damaged) + shards.set_aside["shards"]
    finish(cfg, mine, lost, summary)
    check_there(cfg.out, mine, {row["shard"] for row in lost} | set(damaged))
    return summary


def open_inputs(cfg):
    """The clips and a labeller that fits them, checked before any work."""
    if not 0 <= cfg.rank < cfg.world_size:
        raise DataError(f"rank={cfg.rank} with world_size={cfg.world_size}: expected 0 <= rank < world_size")
    if cfg.workers < 1:
        raise DataError(f"workers={cfg.workers}: expected at least 1")
    out = storage.local(cfg.out, "out")
    if not storage.is_remote(cfg.clips) and out.resolve() == Path(cfg.clips).resolve():
        raise DataError("out= is the folder of the clips; label shards need a folder of their own")
    set_threads(cfg)
    shards = open_clips(cfg)
    if not shards.entries:
        raise DataError(f"{cfg.clips} holds no clips; make some with `python -m pipelines.ingest`")
    shards.check_frames()
    labeller = make_labeller(cfg)
    if labeller.bundle.origin:
        cfg.idm = labeller.bundle.origin  # the commit: worker processes must not see a branch move
    labeller.check_fits(shards)
    labeller.gate(cfg.allow_unlabelled_keys)
    return shards, labeller


def open_clips(cfg):
    """The clips. Checksums are compared shard by shard, just before a shard is labelled."""
    return Shards(cfg.clips, verify=False, on_damage=cfg.on_damage)


def make_labeller(cfg):
    settings = Settings(cfg.precision, cfg.average, cfg.mouse)
    return Labeller(cfg.idm, settings, cfg.device, cfg.frames_per_call)


def plan(shards, fingerprint):
    """Units in the order of their shards."""
    units = []
    for manifest in shards.manifests:
        name = hashlib.sha256(f"{manifest['sha256']} {manifest['bytes']} {fingerprint}".encode()).hexdigest()
        units.append(Unit(name, manifest["file"], f"labels-{manifest['path'].stem}", manifest["frames"]))
    return units


def claim(out, facts, overwrite):
    """Records what makes the labels of `out`; DataError if something else made those that are there."""
    path = Path(out) / FACTS
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        before = disk.read_json(path)
        changed = {name for name in before.keys() | facts.keys() if before.get(name) != facts.get(name)}
        if changed and not overwrite:
            difference = "; ".join(f"{n}: {short(before.get(n))} -> {short(facts.get(n))}" for n in sorted(changed))
            raise DataError(
                f"{out} holds labels made otherwise ({difference}); choose another out=, or replace with overwrite=true"
            )
    disk.write_atomic(path, disk.to_json(facts))


def short(value):
    return str(value)[:12]


def label_units(cfg, units, labeller, shards):
    """Labels units one after another, or over `workers` processes.

    Returns the clips of units of which no clip could be read, and the shards that are damaged.
    """
    total, workers, lost, damaged = sum(unit.frames for unit in units), min(cfg.workers, len(units)), [], []
    with tqdm(total=total, unit="frames", unit_scale=True, desc="labelling", disable=None) as bar:
        if workers > 1:
            return label_in_processes(cfg, units, workers, bar)
        tell = {"frames": bar.update, "lost": lost.extend, "damaged": damaged.append}
        label_each(cfg, units, labeller, shards, tell)
    return lost, damaged


def label_each(cfg, units, labeller, shards, tell):
    """Labels units; tell: {"frames": f(n), "lost": f(rejected clips), "damaged": f(shard)}."""
    for unit in units:
        try:
            shards.check(unit.shard)
            tell["lost"](label_unit(shards, unit, labeller, cfg.out, tell["frames"]))
        except ShardError as error:  # its unit stays open: once the shard is repaired, the same command labels it
            if cfg.on_damage == "stop":
                raise
            log.warning("set aside: %s", error)
            tell["damaged"](unit.shard)
        shards.forget(unit.shard)


def label_in_processes(cfg, units, workers, bar):
    """Each process takes every `workers`-th unit; units are committed one by one, so a failure loses only open ones."""
    context = torch.multiprocessing.get_context("spawn")
    plain, readers, processes = OmegaConf.to_container(cfg, resolve=True), [], []
    lost, damaged, errors = [], [], []
    for i in range(workers):
        reader, writer = context.Pipe(duplex=False)  # one each: a killed process must not hold a lock of the others
        processes.append(context.Process(target=work, args=(plain, units[i::workers], writer), daemon=True))
        processes[-1].start()
        writer.close()
        readers.append(reader)
    take = {"frames": bar.update, "lost": lost.extend, "damaged": damaged.append, "error": errors.append}
    while readers:
        for reader in wait(readers):
            try:
                kind, value = reader.recv()
            except EOFError:
                readers.remove(reader)
                continue
            take[kind](value)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        reason = errors[0] if errors else f"exit codes {codes}"
        raise DataError(f"{len(codes)} of {workers} processes ended early ({reason}); the same command continues")
    return lost, damaged


def work(plain, units, pipe):
    """Body of a worker process: sends what `label_each` tells and, if it fails, ("error", message)."""
    cfg = OmegaConf.create(plain)
    set_threads(cfg)
    try:
        tell = {kind: partial(send, pipe, kind) for kind in ("frames", "lost", "damaged")}
        label_each(cfg, units, make_labeller(cfg), open_clips(cfg), tell)
    except DataError as error:
        pipe.send(("error", str(error)))
        raise SystemExit(1) from error


def send(pipe, kind, value):
    pipe.send((kind, value))


def set_threads(cfg):
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cfg.threads or max(1, processors // cfg.workers))


def label_unit(shards, unit, labeller, out, progress=None):
    """Writes the label shard of one clip shard. Clips that cannot be read are left out and listed in its manifest.

    If none can be read there is nothing to write: they are returned, and the unit stays open.
    """
    entries, rejected = shards.in_shard(unit.shard), []
    facts = {"unit": unit.id, "fingerprint": labeller.fingerprint(), "counts": {"rejected": rejected}}
    with ShardWriter(out, unit.prefix, PER_TAR, **facts) as writer:
        for item in labeller.label_shard(shards, entries, progress):
            if isinstance(item, ClipError):
                log.warning("%s", item)
                rejected.append({"key": item.key, "shard": unit.shard, "reason": item.reason})
            else:
                writer.write(*item)
    return rejected if len(rejected) == len(entries) else []


def counts(units, out):
    """What of the units is in `out`."""
    found = {f"label/{name}": 0 for name in ("shards_finished", "clips", "frames", "rejected")}
    for unit in units:  # one after another: the manifests of all would fill the memory
        parts = disk.finished(out, unit.prefix, unit.id)
        found["label/shards_finished"] += parts is not None
        found["label/clips"] += sum(part["samples"] for part in parts or ())
        found["label/frames"] += sum(part["frames"] for part in parts or ())
        found["label/rejected"] += len(rejects(parts or ()))
    return {"label/shards": len(units), **found}


def rejects(parts):
    return [row for part in parts if part["part"] == 0 for row in part["counts"].get("rejected", ())]


def check_there(out, units, excused):
    """DataError if labels are gone that this run has made or found: somebody deleted the folder while it ran, say."""
    gone = [u for u in units if u.shard not in excused and disk.finished(out, u.prefix, u.id) is None]
    if gone:
        raise DataError(
            f"{out} was changed while it was written: the labels of {len(gone)} of {len(units)} shards are gone; run"
            " the same command again, it makes what is missing"
        )


def to_run(units, cfg):
    """Ranks with unfinished units as a Slurm `--array` expression, e.g. "0-3,7"."""
    left = [i % cfg.world_size for i, u in enumerate(units) if disk.finished(cfg.out, u.prefix, u.id) is None]
    ranges = []
    for rank in sorted(set(left)):
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def finish(cfg, units, lost, summary):
    """Writes `rejected.jsonl` of this rank and clears what killed writers left behind."""
    rows = [row for unit in units for row in rejects(disk.finished(cfg.out, unit.prefix, unit.id) or ())]
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows + lost]
    path = Path(cfg.run.dir) / "rejected.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    gc.collect(cfg.out)
    if lines:
        log.warning("%d clips were set aside, see %s", len(lines), path)
    if lines and not cfg.allow_rejects:
        raise DataError(f"{len(lines)} clips could not be labelled, see {path}; allow_rejects=true accepts that")
    if units and not summary["label/frames"]:
        raise DataError(f"no clip could be labelled, see {path}")


if __name__ == "__main__":
    main()
