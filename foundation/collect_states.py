"""Collecting episodes of vectors: the half of `python -m foundation.collect` for tasks like metaworld and reacher2d.

    tasks x episodes --units: chunks of episodes of one task, in worker processes--> trajectory shards

A unit's shards are committed together, its record `units/<name>.json` follows; running the same command again makes
what is missing. An episode is a function of (run.seed, task, its number) and the settings, so that equal commands give
equal bytes with any number of workers.
"""

import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from foundation.envs import registry
from foundation.envs.behaviour import CONTEXT, Behaviour, assign, loaded, play, trained, variants
from pipelines import manifest as disk
from pipelines import schema, workers
from pipelines.ingest import claim, release
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import write_episode

CODE_VERSION = 2  # of what turns the same settings into other bytes
WORLDS_VERSION = 1  # the same, of worlds alone
NOISE = 0.3  # of states.noise=null
SEEDS = 1 << 30  # seeds of episodes are below; those of evaluations, in foundation.rollout, are not
ENVIRONMENTS = 4  # that a process keeps; building one costs as much as a hundred steps
SAMPLES_PER_SHARD = 1024
log = logging.getLogger("foundation-policy")


@dataclass(frozen=True)
class Job:
    """What is the same for all units of a run."""

    tasks: tuple  # mappings of one name each
    collection: dict  # the config's `states` block
    seed: int
    out: Path

    def settings(self):
        """What the stored bytes depend on."""
        tasks = {task["name"]: task["env"] for task in self.tasks}
        found = {"version": CODE_VERSION, "tasks": tasks, "collection": self.collection, "seed": self.seed}
        if any("world" in task["env"] for task in self.tasks):
            found["worlds"] = WORLDS_VERSION
        if played_by_policy(self):
            found["policy"] = loaded(self.collection["policy"]).sha256
        return found

    @property
    def ways(self):
        """[(Variant, its share of the episodes)]"""
        return variants(self.collection, styles(self.tasks))

    def rows(self, unit, writer):
        """Writes the episodes of a unit and yields the values of COLUMNS of each."""
        ways = assign(self.ways, unit.stop)
        return (add_episode(writer, self, unit, number, ways[number]) for number in range(unit.start, unit.stop))

    def fingerprint(self):
        return hashlib.sha256(disk.to_json(self.settings())).hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """Episodes start..stop-1 of a task."""

    task: dict
    start: int
    stop: int

    @property
    def stem(self):
        return re.sub("[^A-Za-z0-9_-]", "-", self.task["name"])

    @property
    def name(self):
        return f"{self.stem}-{self.start:06d}"


def collect(cfg, tasks, processes):
    """Collects what is missing of `tasks` (mappings, see registry.tasks_of) -> flat summary of all of it."""
    return carry_out(make_job(cfg, tasks), processes)


def carry_out(job, processes):
    """Makes the units of a Job that are missing -> flat summary of all of them."""
    units = plan(job)
    claim(job.out, job.settings())
    start = time.monotonic()
    try:
        records = run(job, units, processes)
    finally:
        release(job.out)
    seconds = time.monotonic() - start
    made = sum(sum(record["frames"]) for record in records if not record.get("skipped"))
    summary = summarise(records)
    log.info("%d episodes, %d steps at %s", summary["episodes"], summary["frames"], job.out)
    if not summary["episodes"]:
        raise DataError(f"none of {summary['played']} episodes succeeded, and keep=successes; use keep=all")
    return summary | ({"frames_per_second": round(made / seconds, 1)} if made else {})


def make_job(cfg, tasks):
    """Job from the config; DataError for what cannot be collected."""
    values = OmegaConf.to_container(cfg.states, resolve=True)
    for name, allowed in (("label", ("clean", "executed")), ("keep", ("all", "successes"))):
        if values[name] not in allowed:
            raise DataError(f"states.{name}={values[name]}: expected {' or '.join(allowed)}")
    if min(values["episodes"], values["chunk"]) < 1:
        raise DataError(f"states.episodes={values['episodes']} and states.chunk={values['chunk']} must be at least 1")
    if values["stop_after"] is not None and values["stop_after"] < 0:
        raise DataError(f"states.stop_after={values['stop_after']}: expected steps of at least 0, or null")
    if values["target"] is None:
        del values["target"]
    if values["length"] is not None and values["length"] < 1:
        raise DataError(f"states.length={values['length']}: expected at least 1, or null")
    if values["behaviour"] == CONTEXT and not all("world" in task["env"] for task in tasks):
        raise DataError("states.behaviour=context is for worlds, such as task=dark_room; others are played")
    if values["behaviour"] != CONTEXT and values["length"] is not None:
        raise DataError(f"states.length={values['length']} is for states.behaviour=context; set task.env's own length")
    if ignored := [name for name in ("scale", "noise") if values["behaviour"] == CONTEXT and values[name] is not None]:
        raise DataError(f"states.{ignored[0]} changes how episodes are played; states.behaviour=context plays none")
    if values["noise"] is None:
        values["noise"] = 0.0 if values["behaviour"] in styles(tasks) else NOISE  # a style has its own
    job = Job(tuple(tasks), values, int(cfg.run.seed), Path(cfg.out).absolute())
    if played_by_policy(job):
        loaded.cache_clear()  # there may be another one at the same place
        for task in tasks:  # before the first worker plays
            trained(environment(json.dumps(task)), values["policy"], values.get("target"))
    return job


def styles(tasks):
    """The ways to play that all of the tasks have of their own."""
    return set.intersection(*(set(registry.env_class(task).styles) for task in tasks))


def played_by_policy(job):
    return any(variant.behaviour == "policy" for variant, _ in job.ways)


def plan(job):
    """The units of all tasks, one task after another, so that a process seldom changes its environment."""
    n, chunk = job.collection["episodes"], job.collection["chunk"]
    return [Unit(task, i, min(i + chunk, n)) for task in job.tasks for i in range(0, n, chunk)]


def run(job, units, processes):
    """Records of all units in order, with a progress bar; DataError at the end for units whose worker failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited: the simulators gain nothing from threads
    records, failures, frames, start = {}, [], 0, time.monotonic()
    items = [(job, unit) for unit in units]
    total = sum(unit.stop - unit.start for unit in units)
    with tqdm(total=total, unit="episode", desc="collect", disable=None) as bar:
        for (_, unit), record in workers.run(process, items, processes if len(items) > 1 else 0):
            if isinstance(record, workers.Failure):
                failures.append(f"{unit.name}: {record.detail}")
                continue
            records[unit.name] = record
            frames += 0 if record.get("skipped") else sum(record["frames"])
            bar.update(unit.stop - unit.start)
            bar.set_postfix_str(f"{frames / (time.monotonic() - start):.0f} steps/s")
    if failures:
        raise DataError(f"{len(failures)} of {len(units)} units failed ({failures[0]}); the same command continues")
    return [records[unit.name] for unit in units]


def process(item):
    """(Job, Unit) -> record of the unit; written to disk as well."""
    job, unit = item
    work = f"{job.fingerprint()}-{unit.start}-{unit.stop}"
    old = read_record(job, unit)
    if old and old["unit"] == work and (not old["shards"] or disk.finished(job.out, unit.name, work)):
        return {**old, "skipped": True}
    record = {"unit": work, "task": unit.task["name"], **{name: [] for name in COLUMNS}}
    with ShardWriter(job.out, unit.name, SAMPLES_PER_SHARD, unit=work, fingerprint=job.fingerprint()) as writer:
        for row in job.rows(unit, writer):
            for name, value in zip(COLUMNS, row, strict=True):
                record[name].append(value)
    record["shards"] = len(writer.committed)
    path = record_path(job, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomic(path, disk.sealed(record))
    return record


COLUMNS = ("variant", "return", "frames", "success", "kept")  # of a record, one entry per episode played


def add_episode(writer, job, unit, number, variant):
    """Plays an episode and writes it unless it is to be left out -> its row of the record."""
    task, values = unit.task["name"], job.collection
    env, (seed, rng) = environment(json.dumps(unit.task)), randomness(job.seed, task, number)
    arrays, success, more = played(env, variant, seed, rng, unit.task, values)
    if success is None and (values["keep"] == "successes" or values["stop_after"] is not None):
        raise DataError(f"{task} does not say what success is; use states.keep=all and states.stop_after=null")
    kept = values["keep"] == "all" or success
    if kept:
        tags = {"task": task, "seed": seed, "behaviour": variant.behaviour, "noise": variant.noise}
        tags |= {"scale": variant.scale, **({} if success is None else {"success": success}), **more}
        key = f"{unit.stem}-{job.seed}-{number:06d}"
        write_episode(writer, key, arrays, env.spaces, env.fps, f"collect/{task}", tags)
    rewards = arrays[schema.REWARD]
    return variant.name, float(rewards.sum()), len(rewards), success, bool(kept)


def played(env, variant, seed, rng, task, values):
    """(arrays, success or None, further tags) of an episode, or of a world's context."""
    if variant.behaviour != CONTEXT:
        behaviour = Behaviour(env, variant, rng, values["policy"], values.get("target"))
        arrays, success = play(env, behaviour, seed, values["label"], values["stop_after"])
        return arrays, success, {"unknown": env.unknown()} if "world" in task["env"] else {}
    arrays, unknown = env.context(seed, values["length"])
    tags = {"world": task["env"]["world"], "split": env.split, "ordered": env.world.ordered, "unknown": unknown}
    return arrays, None, tags


def randomness(seed, task, number):
    """(seed of the environment, generator of the behaviour) of an episode."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(task.encode()), number])
    return int(sequence.generate_state(1)[0]) % SEEDS, np.random.default_rng(sequence.spawn(1)[0])


@lru_cache(ENVIRONMENTS)
def environment(task):
    """The environment of a task, given as JSON."""
    env = registry.make(json.loads(task))
    env.tags = {"task": json.loads(task)["name"]}  # as in evaluations: policies of several tasks go by it
    return env


def record_path(job, unit):
    return job.out / "units" / f"{unit.name}.json"


def read_record(job, unit):
    """The record of a unit; None where there is none, or a damaged one."""
    try:
        record = disk.read_json(record_path(job, unit))
    except (OSError, DataError):
        return None
    return record if isinstance(record, dict) and {"unit", "shards", *COLUMNS} <= record.keys() else None


def summarise(records):
    """Flat numbers: what was kept, then success per task and the returns per task and way to play."""
    rows = [
        (record["task"], dict(zip(COLUMNS, row, strict=True)))
        for record in records
        for row in zip(*(record[name] for name in COLUMNS), strict=True)
    ]
    kept = [row for _, row in rows if row["kept"]]
    summary = {"played": len(rows), "episodes": len(kept), "frames": sum(row["frames"] for row in kept)}
    tasks, groups = defaultdict(list), defaultdict(list)
    for task, row in rows:
        tasks[task].append(row)
        groups[f"{task}/{row['variant']}"].append(row["return"])
    successes = {task: [row["success"] for row in found if row["success"] is not None] for task, found in tasks.items()}
    summary |= {f"{task}/success": float(np.mean(found)) for task, found in successes.items() if found}
    if any(successes.values()):
        summary["success"] = float(np.mean([found for task in successes.values() for found in task]))
    for name, returns in groups.items():
        for statistic, function in (("mean", np.mean), ("min", np.min), ("max", np.max)):
            summary[f"{name}/return_{statistic}"] = float(function(returns))
        summary[f"{name}/episodes"] = len(returns)
    return summary
