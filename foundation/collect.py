"""python -m foundation.collect task=doom_freeplay hours=0.5 out=plays: a scripted player as video + action log.

For tasks whose observations are vectors, such as metaworld: trajectory shards, see `foundation.collect_states`; for
maze_video, whose frames cost nothing: clip shards, see `foundation.collect_clips`.
"""

import logging
import math
import multiprocessing
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from foundation import collect_clips, collect_states
from foundation.envs.doom_engine import TICS_PER_SECOND
from foundation.envs.maze_video import MazeVideo
from foundation.envs.recording import Session, read_log, record
from foundation.envs.registry import env_class, load_task, tasks_of
from foundation.envs.states import StateEnv
from pipelines.actions import DOOM, ActionCodec
from pipelines.command import command
from pipelines.ingest import DATASET, claim
from pipelines.schema import DataError

CODE_VERSION = 1  # of what turns the same settings into other recordings
log = logging.getLogger("foundation-policy")


@command("collect")
def main(cfg):
    """Records the videos, or collects the episodes of vectors, that are still missing; then counts all of them."""
    if states := state_tasks(cfg):
        return collect_states.collect(cfg, states, processes(cfg))
    if drawn := clip_tasks(cfg):
        return collect_clips.collect(cfg, drawn, processes(cfg))
    sessions = plan(cfg)
    out = Path(cfg.out).absolute()
    fresh = not (out / DATASET).exists()
    claim(out, settings(cfg))
    missing = [session for session in sessions if not session.complete]
    if len(missing) < len(sessions):
        log.info("%d of %d videos are already there", len(sessions) - len(missing), len(sessions))
    start = time.monotonic()
    try:
        run(missing, processes(cfg))
    except DataError:
        if fresh and not any(session.complete for session in missing):
            (out / DATASET).unlink()  # settings that nothing can be made with do not bind the next command
        raise
    seconds = time.monotonic() - start
    summary = count(sessions)
    if missing:
        summary["frames_per_second"] = round(sum(s.frames for s in missing) / seconds, 1)
    return summary


def state_tasks(cfg):
    """One mapping per task of vectors; [] where the tasks show frames, DataError where some do."""
    return of_kind(cfg, StateEnv, "tasks of frames with tasks of vectors")


def clip_tasks(cfg):
    """One mapping per task that draws its own frames; [] where an engine does, DataError where some do."""
    return of_kind(cfg, MazeVideo, "mazes with maps of ViZDoom")


def of_kind(cfg, kind, mixture):
    """The tasks if the environments of all are of a kind, [] if none are."""
    tasks = [one for task in (cfg.task, *cfg.also) for one in tasks_of(task)]
    found = [issubclass(env_class(task), kind) for task in tasks]
    if any(found) and not all(found):
        raise DataError(f"task and `also` mix {mixture}; collect them one after the other")
    return tasks if all(found) else []


def processes(cfg):
    """cfg.workers, by default one per processor that this process may use."""
    if cfg.workers is not None:
        return cfg.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def turns(cfg):
    """The mappings of the tasks that take turns."""
    tasks = [cfg.task, *(load_task(name) for name in cfg.also)]
    return [OmegaConf.to_container(OmegaConf.create(task), resolve=True) for task in tasks]


def plan(cfg):
    """The videos that make up `hours`, tasks taking turns. list[Session]"""
    tasks = turns(cfg)
    if not cfg.labelled and cfg.answers is None:
        raise DataError("labelled=false keeps the true actions out of `out`; set answers=<folder> for them")
    if cfg.hours <= 0 or cfg.minutes_per_video <= 0:
        raise DataError(f"hours {cfg.hours} and minutes_per_video {cfg.minutes_per_video} must be positive")
    out, logs = Path(cfg.out), Path(cfg.out if cfg.labelled else cfg.answers)
    for folder in (out, logs):
        folder.mkdir(parents=True, exist_ok=True)
    sessions, minutes = [], cfg.hours * 60
    for index in range(max(math.ceil(minutes / cfg.minutes_per_video - 0.05), 1)):  # no video for a sliver
        task = tasks[index % len(tasks)]
        length = min(cfg.minutes_per_video, minutes - index * cfg.minutes_per_video)
        stem = f"{task['name']}-{cfg.split}-{cfg.run.seed}-{index:04d}"
        sessions.append(
            Session(
                task=task, split=cfg.split, seed=cfg.run.seed, index=index // len(tasks),
                frames=max(round(length * 60 * TICS_PER_SECOND / task["env"]["tics"]), 1),
                video=str(out / f"{stem}.mp4"), log=str(logs / f"{stem}.jsonl"),
                player=OmegaConf.to_container(cfg.player), encoding=OmegaConf.to_container(cfg.encoding),
            )
        )  # fmt: skip
    return sessions


def settings(cfg):
    """What the recordings in a folder depend on; more of them (`hours`) may be added."""
    tasks = turns(cfg)
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {
        "version": CODE_VERSION, "turns": [task["name"] for task in tasks],
        "tasks": {task["name"]: task["env"] for task in tasks}, "seed": cfg.run.seed,
        **{name: plain[name] for name in ("split", "minutes_per_video", "player", "encoding")},
    }  # fmt: skip


def run(sessions, workers):
    """Records in `workers` processes, or in this one; which process records a video does not change it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited: the scaler and NumPy gain nothing from threads here
    total = sum(session.frames for session in sessions)
    with tqdm(total=total, unit="frame", unit_scale=True, desc="collect", disable=None) as bar:
        if workers <= 1 or len(sessions) <= 1:
            for session in sessions:
                record(session)
                bar.update(session.frames)
            return
        context = multiprocessing.get_context("spawn")  # fork would copy threads of torch and PyAV
        with ProcessPoolExecutor(min(workers, len(sessions)), context) as pool:
            futures = {pool.submit(record, session): session for session in sessions}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future].frames)


def count(sessions):
    """Flat summary of the logs: size, what was pressed, and the behaviour policy's return per task."""
    keys, mouse, returns, frames = [], [], defaultdict(list), defaultdict(int)
    for session in sessions:
        _, rows = read_log(session.log)
        if len(rows) != session.frames:
            raise DataError(
                f"{session.log} has {len(rows)} frames, this configuration asks for {session.frames};"
                " record with the same minutes_per_video and hours, or into another folder"
            )
        keys += [[key in row["keys"] for key in DOOM.keys] for row in rows]
        mouse += [row["mouse"] for row in rows]
        frames[session.task["name"]] += len(rows)
        returns[session.task["name"]] += episode_returns(rows)
    keys, mouse = np.array(keys, np.uint8), np.array(mouse, np.float32)
    codec = ActionCodec(DOOM)
    summary = {"videos": len(sessions), "frames": len(keys), "hours": sum(hours_of(s) for s in sessions)}
    summary["null_share"] = float(codec.is_null(keys, codec.to_bins(mouse)).mean())
    summary |= {f"prevalence/{key}": float(share) for key, share in zip(DOOM.keys, keys.mean(0), strict=True)}
    summary |= {"mouse_std/pitch": float(mouse[:, 0].std()), "mouse_std/yaw": float(mouse[:, 1].std())}
    for task, values in returns.items():
        summary |= {f"{task}/frames": frames[task], f"{task}/episodes": len(values)}
        summary[f"{task}/return"] = float(np.mean(values)) if values else math.nan
    return summary


def hours_of(session):
    return session.frames * session.task["env"]["tics"] / TICS_PER_SECOND / 3600


def episode_returns(rows):
    """Returns of the episodes that ended within a log; the one cut by the video's end does not count."""
    returns, total = [], 0.0
    for row in rows:
        total = row["reward"] + (0.0 if row["first"] else total)
        if row["terminated"] or row["truncated"]:
            returns.append(total)
    return returns


if __name__ == "__main__":
    main()
