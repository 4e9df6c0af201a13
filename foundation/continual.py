"""python -m foundation.continual method=l2m init=<mddt run>: one task after another, all played after each.

    init --train on task 1--> run.dir/01-<task>/model --train on task 2--> run.dir/02-<task>/model ...
      |                            |                                            |
    play                         play                                         play  --> rows of matrix.json

Each training is one of `foundation.pretrain`, on the episodes whose tag `task` is that task, from where the one before
ended, and goes on where it was stopped; a row of scores that is in matrix.json is not played again.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from omegaconf import OmegaConf

from foundation import evaluate, plots, pretrain
from foundation.actors import SequenceActor
from foundation.envs import registry
from foundation.training import made, plain
from pipelines.checkpoint import update_statistics
from pipelines.command import CONFIGS, command, execute, run_folder
from pipelines.manifest import to_json, write_atomic
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")
MATRIX = "matrix.json"
DECIDES = ("init", "steps", "method", "data", "pretrained", "episodes", "metric", "target")  # what a row depends on


@command("continual")
def main(cfg):
    """Summary: average performance, forgetting, forward transfer, selection and retention; and every last score."""
    tasks, known = registry.tasks_of(cfg.task), names_of_pretrained(cfg)
    names, folder = [task["name"] for task in tasks], run_folder(cfg)
    if cfg.init is None:
        raise DataError("init=<folder> is missing: a policy to be taught more, such as a run of method=mddt")
    first = evaluate.load_policy(cfg.init)
    check(cfg, names)
    statistics = statistics_of(cfg, names, first.statistics)
    rows = finished_rows(cfg, folder, names)
    where = cfg.init
    for number in range(len(tasks) + 1):
        if number:
            where = learn(cfg, folder, number, names, where, first)
        if number == len(rows):
            bundle = evaluate.load_policy(where)
            bundle = replace(bundle, statistics=told(statistics, bundle.statistics, names))
            due = tasks if number == 0 else tasks[: number + 1]  # those taught so far, and the next
            rows.append(play(cfg, bundle, [*known, *due], names))
            keep(cfg, folder, names, rows)
    matrix = [[row["score"].get(name) for name in names] for row in rows]
    (folder / "matrix.svg").write_text(drawn(rows, [*(task["name"] for task in known), *names]))
    return {**continual_scores(matrix), **selection(rows, names), **retention(rows, [task["name"] for task in known]),
            **{f"score/{name}": value for name, value in rows[-1]["score"].items()}}  # fmt: skip


# scores


def continual_scores(matrix):
    """Average performance, forgetting and forward transfer from scores [k+1 k]: row i after i tasks, None = not played.

    performance: mean of the last row. forgetting: score right after a task's own training minus the last one, mean over
    tasks (both as L2M, arXiv:2306.14884). forward_transfer: score on a task just before its training minus that of the
    initial policy, mean over all tasks but the first (Lopez-Paz & Ranzato, arXiv:1706.08840). NaN: not measured.
    """
    scores = np.array(matrix, float)
    k = scores.shape[1]
    if scores.shape != (k + 1, k):
        raise DataError(f"a matrix of scores has one row more than columns, this one is {scores.shape}")
    after, before = scores[np.arange(1, k + 1), np.arange(k)], scores[np.arange(k), np.arange(k)]
    transfer = (before - scores[0])[1:]
    return {
        "performance": float(scores[-1].mean()),
        "forgetting": float((after - scores[-1]).mean()),
        "forward_transfer": float(transfer.mean()) if k > 1 else float("nan"),
    }


def selection(rows, names):
    """Share of the steps, playing all tasks at the end, whose slot was trained on the task; {} without slots."""
    last = [rows[-1]["selection"].get(name) for name in names]
    return {} if None in last else {"selection_accuracy": float(np.mean(last))}


def retention(rows, known):
    """How much of the score on the pretraining tasks is left, as a difference; {} if none are played."""
    if not known:
        return {}
    return {"retention": float(np.mean([rows[-1]["score"][name] - rows[0]["score"][name] for name in known]))}


def drawn(rows, names):
    """Scores of every task after every task, as SVG."""
    table = np.array([[row["score"].get(name, np.nan) for name in names] for row in rows], float)

    def paint(axes):
        axes.pcolormesh(np.ma.masked_invalid(table), cmap=plots.BLUES, edgecolors="none")
        for (i, j), value in np.ndenumerate(table):
            if np.isfinite(value):
                axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7)
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=45, ha="right")
        axes.set_yticks(np.arange(len(rows)) + 0.5, range(len(rows)))
        axes.set(xlabel="played", ylabel="tasks trained")
        axes.invert_yaxis()
        axes.grid(False)

    return plots.figure(paint, 1.5 + 0.5 * len(names), 1.5 + 0.3 * len(rows))


# playing


def play(cfg, bundle, tasks, names):
    """{"score": {task: mean}, "selection": {task: share of its steps with a slot of its own}}"""
    row = {"score": {}, "selection": {}}
    for task in tasks:
        name, protocol = task["name"], {"seed": 0, "env": {}, **task["evaluation"], "episodes": cfg.episodes}
        with evaluate.opened(task, min(cfg.environments, cfg.episodes), **protocol["env"]) as worlds:
            evaluate.check_spaces(bundle, worlds[0], cfg.init, name)
            if hasattr(bundle.net, "acted"):
                bundle.net.acted.zero_()
            actor = SequenceActor(bundle, cfg.target, cfg.run.seed, device=evaluating_on(cfg))
            numbers = evaluate.evaluate(actor, worlds, protocol, name, "play")
        if f"play/{cfg.metric}" not in numbers:
            raise DataError(f"metric={cfg.metric}: {name} has no such score; use metric=return")
        row["score"][name] = numbers[f"play/{cfg.metric}"]
        if name in names and hasattr(bundle.net, "acted"):
            own = bundle.net.acted * bundle.net.own(names.index(name))
            row["selection"][name] = float(own.sum() / bundle.net.acted.sum().clamp(min=1))
    return row


def evaluating_on(cfg):
    return "cpu" if cfg.trainer.accelerator == "cpu" else "cuda"


def told(statistics, own, names):
    """What an actor needs: the policy's own statistics, those of tasks yet to come, and the order of the tasks."""
    values = {**statistics, **own, "sequence": names}
    if "tasks" in statistics:
        values["tasks"] = {**statistics["tasks"], **own["tasks"]}
    if "names" in statistics:
        new = [i for i, name in enumerate(statistics["names"]) if name not in own["names"]]
        for entry in ("names", "state_mean", "state_std"):
            values[entry] = [*own[entry], *(statistics[entry][i] for i in new)]
    return values


def statistics_of(cfg, names, statistics):
    """Those of the policy, and of the data of all tasks to come; DataError if a task has no data."""
    for name in names:
        data = made(data_config(cfg, name), steps=1, seed=cfg.run.seed)
        data.inherit(statistics)
        statistics = data.statistics()
    return statistics


# training


def learn(cfg, folder, number, names, before, first):
    """Trains on task `number` (from 1) from the run `before` -> its run directory."""
    name = names[number - 1]
    stage = Path(folder) / f"{number:02d}-{name}"
    log.info("task %d of %d: %s", number, len(names), name)
    if not finished(stage, before):
        execute(pretrain.main.function, stage_config(cfg, stage, number - 1, name, before, first))
        update_statistics(stage / "model", {"sequence": names})
        write_atomic(stage / "finished.json", to_json({"init": str(before)}))
    return str(stage)


def finished(stage, before):
    path = stage / "finished.json"
    return path.is_file() and json.loads(path.read_text()) == {"init": str(before)}


def stage_config(cfg, stage, task, name, before, first):
    """The config of `foundation.pretrain` for one task: ours, and its own defaults for what we do not have."""
    written = yaml.safe_load((Path(CONFIGS) / "pretrain.yaml").read_text(encoding="utf-8"))
    own = {key: value for key, value in written.items() if key not in ("defaults", "hydra")}
    method = plain(cfg.method)
    if "base" not in method["net"]:
        method["net"] = dict(first.config["net"])  # as it was pretrained
    if "task" in method:
        method["task"] = task
    if "after" in method and task:
        method["after"] = before
    values = {
        **own, "init": before, "steps": cfg.steps, "validate_every": cfg.steps, "resume": cfg.resume, "method": method,
        "checkpoint_every": cfg.checkpoint_every, "data": data_config(cfg, name), "trainer": plain(cfg.trainer),
        "run": {"name": f"{cfg.run.name}/{name}", "dir": str(stage), "seed": cfg.run.seed}, "debug": cfg.debug,
    }  # fmt: skip
    return OmegaConf.create(values)


def data_config(cfg, name):
    data = plain(cfg.data)
    return {**data, "where": {**(data["where"] or {}), "task": name}}


# what is there


def check(cfg, names):
    """DataError for what would stop the run in the middle."""
    room = cfg.method.net.get("tasks")
    if room is not None and room < len(names):
        raise DataError(f"method.net.tasks={room}, but task.name lists {len(names)}; set it to at least that")
    if cfg.metric not in ("success", "return"):
        raise DataError(f"metric={cfg.metric}: expected success or return")
    if cfg.episodes < 1 or cfg.steps < 1:
        raise DataError(f"episodes={cfg.episodes} and steps={cfg.steps} must be at least 1")


def names_of_pretrained(cfg):
    """Mappings of the tasks in cfg.pretrained, as those of cfg.task."""
    if not cfg.pretrained:
        return []
    return registry.tasks_of(OmegaConf.merge(cfg.task, {"name": list(cfg.pretrained)}))


def settings(cfg, names):
    return json.loads(json.dumps({**{n: plain(cfg)[n] for n in DECIDES}, "tasks": names, "seed": cfg.run.seed}))


def finished_rows(cfg, folder, names):
    """Rows of a run that goes on; DataError if it was another one."""
    path = folder / MATRIX
    if not path.is_file():
        return []
    found, now = json.loads(path.read_text()), settings(cfg, names)
    if differing := sorted(name for name in now if found["settings"].get(name) != now[name]):
        raise DataError(f"{path} belongs to a run with other values of {differing}; set them back, or another run.dir")
    return found["rows"]


def keep(cfg, folder, names, rows):
    write_atomic(folder / MATRIX, to_json({"settings": settings(cfg, names), "tasks": names, "rows": rows}))


if __name__ == "__main__":
    main()
