"""Collecting clips of tasks that draw their own frames: the part of `python -m foundation.collect` for maze_video.

    task x episodes --units, in worker processes--> clip shards, or trajectory shards with `clips.actions=true`

Units, records and seeds are those of `foundation.collect_states`; one sample is one episode of n actions and its n + 1
frames. The last frame shows what the last action led to and has no action of its own (`coverage` is False there). Where
every frame was taken is stored for scoring, the maze itself is in the tags: no network is to see either.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from foundation.collect_states import Job, carry_out, environment, randomness
from pipelines import manifest as disk
from pipelines import schema
from pipelines.ingest import PRESETS
from pipelines.pixels import encode
from pipelines.schema import DataError, SampleMeta

CODE_VERSION = 1  # of what turns the same settings into other bytes


@dataclass(frozen=True)
class ClipJob(Job):
    """A Job whose `collection` is the config's `clips` block."""

    def settings(self):
        tasks = {task["name"]: task["env"] for task in self.tasks}
        return {"clips_version": CODE_VERSION, "tasks": tasks, "clips": self.collection, "seed": self.seed}

    def rows(self, unit, writer):
        return (add_clip(writer, self, unit, number) for number in range(unit.start, unit.stop))


def collect(cfg, tasks, processes):
    """Collects what is missing of `tasks` (mappings, see registry.tasks_of) -> flat summary of all of it."""
    return carry_out(make_job(cfg, tasks), processes)


def make_job(cfg, tasks):
    """ClipJob from the config; DataError for what cannot be collected."""
    values = OmegaConf.to_container(cfg.clips, resolve=True)
    if min(values["episodes"], values["chunk"]) < 1:
        raise DataError(f"clips.episodes={values['episodes']} and clips.chunk={values['chunk']} must be at least 1")
    if not 0 <= values["fidgeting"] < 1:
        raise DataError(f"clips.fidgeting={values['fidgeting']}: expected a share of frames in [0, 1)")
    if values["encoding"]["preset"] not in PRESETS or not 0 <= values["encoding"]["crf"] <= 51:
        raise DataError(f"clips.encoding={values['encoding']}: expected crf 0 to 51 and one of {', '.join(PRESETS)}")
    values["roam"] = not values["actions"] if values["roam"] is None else values["roam"]
    for task in tasks:
        environment(json.dumps(task))  # before the first worker plays
    return ClipJob(tuple(tasks), values, int(cfg.run.seed), Path(cfg.out).absolute())


def add_clip(writer, job, unit, number):
    """Plays an episode and writes it -> its row of the record."""
    task, values = unit.task["name"], job.collection
    env, (seed, rng) = environment(json.dumps(unit.task)), randomness(job.seed, task, number)
    frames, arrays, tags = film(env, seed, rng, values["roam"], values["fidgeting"])
    rewards = arrays[schema.REWARD]
    if not values["actions"]:
        arrays = {schema.POSITION: arrays[schema.POSITION]}
    n, (height, width, _) = len(frames), frames[0].shape
    source = hashlib.sha256(disk.to_json([unit.task["env"], values["roam"], values["fidgeting"], job.seed, number]))
    meta = SampleMeta(
        key=f"{unit.stem}-{job.seed}-{number:06d}", source=f"collect/{task}", source_sha256=source.hexdigest(),
        frames=(0, n), fps=env.fps, height=height, width=width,
        provenance=schema.RECORDED if values["actions"] else schema.NONE,
        actions=env.spec_of_actions.to_dict() if values["actions"] else None, tags={"task": task, "seed": seed, **tags},
    )  # fmt: skip
    arrays[schema.PTS] = np.arange(n)
    video = encode(frames, env.fps, **values["encoding"])
    writer.write(meta.key, {schema.VIDEO: video, schema.ARRAYS: arrays, schema.META: meta})
    return "roaming" if values["roam"] else "scripted", float(rewards.sum()), n, bool(tags["success"]), True


def film(env, seed, rng, roam, fidgeting):
    """One episode -> (frames [n+1] of uint8 [h w c], arrays [n+1 ...] as schema names them, tags)."""
    _, info = env.reset(seed=seed, options={"roam": roam})
    player = env.player(int(rng.integers(2**31)), fidgeting)
    tags = {"map": env.map, "split": env.split, "maze": env.grid.rows, "player": "scripted"}
    if not roam:
        tags["goal"] = env.grid.cells[env.target].tolist()
    frames, positions, rows, done = [env.render()], [info["position"]], [], False
    while not done:
        action = player.act()
        _, reward, terminated, truncated, info = env.step(action)
        frames.append(env.render())
        positions.append(info["position"])
        rows.append((action["keys"], action["mouse"], reward, terminated, truncated, True))
        done = terminated or truncated
    names = schema.KEYS, schema.MOUSE, schema.REWARD, schema.TERMINATED, schema.TRUNCATED, schema.COVERAGE
    kinds = np.uint8, np.float32, np.float32, bool, bool, bool
    rows.append((np.zeros_like(action["keys"]), np.zeros_like(action["mouse"]), 0.0, False, False, False))
    columns = zip(names, zip(*rows, strict=True), kinds, strict=True)
    arrays = {name: np.array(column, kind) for name, column, kind in columns}
    arrays[schema.FIRST] = np.arange(len(frames)) == 0
    arrays[schema.POSITION] = np.array(positions, np.float32)
    return frames, arrays, {**tags, "success": bool(info["episode"]["success"])}
