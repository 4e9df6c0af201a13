"""Kills real commands at random moments until they are done, and compares what they leave with an undisturbed run.

A *round* is one folder in which a command is started again and again; most starts are killed, the last one is not. A
kill is SIGKILL to the process group, at a random time or just before a random change of a file (whichever the coin
says: the changes aim at the commits, the times at everything else, compiled code included).
"""

import csv
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.faults_processes import Tripwire, command, ended, fork, reap, wait
from benchmarks.faults_world import INGEST, NET_IDM, NET_VPT, TRAINING, files, write_models, write_videos
from foundation.checkpoints import step_of
from pipelines import gc, verify
from pipelines.schema import DataError
from pipelines.shards import Shards

STARTS = 5  # at most so many kills in one round: the work of a round ends some time
CLOCKS = {"frames_per_second"}  # columns of metrics.csv that tell the time
END = 0.8  # share of the work from which on a kill counts as near the end


@dataclass
class Case:
    """One command. It runs in the folder of its round and writes `out` (shards) and `run` there."""

    name: str
    module: str
    arguments: list
    outcome: Callable  # folder -> {name: what has to be equal}
    done: Callable  # folder -> how much of the work is there; compared with the same of the whole run
    weight: int  # kills of it, of 100
    expected: dict = field(default_factory=dict)
    total: float = 0  # `done` of the whole run
    seconds: float = 0  # of it
    first: float = 0  # seconds until the first of its work was done
    changes: int = 0  # of files


@dataclass
class Tally:
    """What came of the kills of one case."""

    rounds: int = 0
    starts: int = 0
    kills: int = 0
    identical: int = 0
    where: Counter = field(default_factory=Counter)
    survivors: int = 0  # kills that left a process behind
    differing: list = field(default_factory=list)


# the commands and what they leave


def cases(root):
    """Makes the inputs in `root` -> Cases."""
    videos = write_videos(root / "videos", 4)
    write_models(root)
    clips = root / "clips"
    ingest = [f"videos={videos}", "out=out", "run.dir=run", *INGEST]
    status = wait(fork(lambda: command("pipelines.ingest", *ingest, "workers=0", f"out={clips}", cwd=root)))
    assert status == 0, "the clips could not be made"
    shards = [f"clips={clips}", f"idm={root / 'idm'}", "out=out", "run.dir=run", "threads=1"]
    data = [f"data.train={clips}", f"data.validation={clips}", "run.dir=run", *TRAINING, "steps=8", "validate_every=2",
            "best=validation/loss"]  # fmt: skip
    played = [f"init={root / 'policy'}", "run.dir=run", "task.env.episode_tics=60", "episodes=1", "frames=128",
              "algo.stream.environments=2", "algo.stream.minibatches=2", "algo.stream.chunk=16",
              "evaluate_before=false", "checkpoint_every=1"]  # fmt: skip
    idm, vpt = ["method=idm", *NET_IDM], ["method=vpt", *NET_VPT, "data.workers=1"]
    return [
        Case("ingest", "pipelines.ingest", [*ingest, "workers=0"], shard_files, manifests, 24),
        Case("ingest, 2 workers", "pipelines.ingest", [*ingest, "workers=2"], shard_files, manifests, 4),
        Case("label", "pipelines.label", shards, shard_files, manifests, 24),
        Case("pretrain idm", "foundation.pretrain", [*idm, *data], training_files, steps, 16),
        Case("pretrain vpt", "foundation.pretrain", [*vpt, *data], training_files, steps, 16),
        Case("finetune ppo", "foundation.finetune", played, training_files, steps, 16),
    ]


def shard_files(folder):
    """Every file of the shards after the clean-up, what was set aside, and what `pipelines.verify` says of them."""
    seen = Shards(folder / "out", verify=True).fingerprint()  # garbage included: no reader must follow it
    gc.collect(folder / "out", older_than_seconds=-1)
    rejected = folder / "run" / "rejected.jsonl"
    others = {"run/rejected.jsonl": rejected.read_bytes()} if rejected.exists() else {}
    report = verify.check(folder / "out")
    return {**files(folder / "out"), **others, "fingerprint": seen, "damage": [str(item) for item in report.damage]}


def manifests(folder):
    return len(list((folder / "out").glob("*-[0-9][0-9][0-9][0-9][0-9].json")))


def training_files(folder):
    """Rows of metrics.csv without clocks, the model's files, and the state in the last and the best checkpoint."""
    run, found = folder / "run", {}
    for name, data in files(run / "model").items():
        found |= {} if name == "README.md" or name.endswith(".part") else {name: data}  # the card has minutes
    found |= {path.name: content(path) for path in run.glob("*.ckpt") if path.name != "last-1.ckpt"}
    return {"metrics.csv": rows(run / "metrics.csv"), **found}


def rows(path):
    """metrics.csv: [{column: text}] without empty cells and clocks."""
    with open(path, newline="") as file:
        return [{name: v for name, v in row.items() if v and name not in CLOCKS} for row in csv.DictReader(file)]


def content(path):
    """{"a/b": bytes or value} of a checkpoint: weights, optimizer, streams. Lightning's own counts are left out.

    (After a kill between the last step and the end of training it has ended one epoch less.)
    """
    whole = torch.load(path, map_location="cpu", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "agent", "global_step")
    flat, stack = {}, [(name, whole[name]) for name in names if name in whole]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack += [(f"{name}/{key}", item) for key, item in items]
        else:
            flat[name] = value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
    return flat


def steps(folder):
    """Optimizer steps in the newest checkpoint."""
    found = [step_of(path) for path in (folder / "run").glob("last*.ckpt")]
    return max(found, default=0)


# kills


def measure(case, folder):
    """Runs a case undisturbed: notes what comes out, how long that takes, how many changes of files it makes."""
    folder.mkdir(parents=True)
    counted = folder.with_suffix(".changes")

    def child():
        wire = Tripwire(folder)
        sys.addaudithook(wire)
        try:
            command(case.module, *case.arguments, cwd=folder)
        finally:
            counted.write_text(str(wire.seen))

    start, pid = time.monotonic(), fork(child, folder.with_suffix(".log"))
    while not ended(pid) and not case.done(folder):
        time.sleep(0.005)
    case.first = time.monotonic() - start
    status = wait(pid)
    case.seconds = time.monotonic() - start
    if status:
        raise DataError(f"{case.name} fails undisturbed (status {status}): {tail(folder)}")
    reap()
    case.expected, case.total, case.changes = case.outcome(folder), case.done(folder), int(counted.read_text())


def killed_run(case, folder, generator):
    """One start of a case, killed at a random moment -> exit status, -SIGKILL where the kill came in time.

    Nothing is written while a command starts: times in the first half of that are not tried.
    """
    if generator.random() < 0.5:
        wire = Tripwire(folder, int(generator.integers(1, case.changes + 1)))
        return start(case, folder, wire)
    return start(case, folder, seconds=generator.uniform(case.first / 2, case.seconds))


def start(case, folder, wire=None, seconds=None):
    """Runs a case until it ends or is killed -> exit status."""

    def child():
        if wire is not None:
            sys.addaudithook(wire)
        command(case.module, *case.arguments, cwd=folder)

    deadline = None if seconds is None else time.monotonic() + seconds
    pid = fork(child, folder.with_suffix(".log"))
    while deadline is not None and not ended(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    if deadline is not None:
        os.killpg(pid, signal.SIGKILL)  # its leader is not yet waited for, so the number is still that group's
    return wait(pid)


def one_round(case, folder, generator, tally):
    """Kills a case in an empty folder up to STARTS times, lets it end, and compares."""
    folder.mkdir(parents=True)
    tally.rounds += 1
    for _ in range(int(generator.integers(1, STARTS + 1))):
        status = killed_run(case, folder, generator)
        tally.starts += 1
        tally.survivors += not reap()
        if status != -signal.SIGKILL:
            break
        tally.kills += 1
        tally.where[place(case, folder)] += 1
    else:
        status = start(case, folder)
        tally.starts += 1
        reap()
    wrong = [f"exit status {status}: {tail(folder)}"] if status else differences(case, folder)
    tally.identical += not wrong
    tally.differing += [f"{case.name}, {folder.name}: {'; '.join(wrong)}"] if wrong else []


def place(case, folder):
    """Where in the work a kill came, by what was committed then."""
    share = case.done(folder) / case.total
    return "start" if share == 0 else "middle" if share < END else "end"


def differences(case, folder):
    """Names of what is not as in the undisturbed run."""
    try:
        got = case.outcome(folder)
    except (DataError, OSError) as error:
        return [str(error)]
    names = sorted(name for name in got.keys() | case.expected.keys() if got.get(name) != case.expected.get(name))
    return [f"{name} differs" if name in got else f"{name} is missing" for name in names]


def tail(folder):
    """End of what the command printed."""
    log = folder.with_suffix(".log")
    return " ".join(log.read_text(errors="replace").split())[-300:] if log.exists() else ""


def campaign(root, count, seed, only=(), tell=print):
    """At least `count` kills that hit, spread over the cases -> {case name: Tally}."""
    todo, tallies = [case for case in cases(root) if not only or case.name in only], {}
    weights = sum(case.weight for case in todo)
    for number, case in enumerate(todo):
        generator, tally = np.random.default_rng([seed, number]), Tally()
        measure(case, root / case.name / "whole")
        wanted = -(-count * case.weight // weights)
        while tally.kills < wanted and tally.rounds < 2 * wanted + 3:
            one_round(case, root / case.name / f"round{tally.rounds}", generator, tally)
        tallies[case.name] = tally
        tell(f"{case.name}: {tally.kills} kills in {tally.rounds} rounds, {tally.identical} ended identically")
    return tallies
