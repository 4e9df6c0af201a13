"""Damages files and gives them to what reads them: each case in a forked process with limits of time and memory."""

import os
import pickle
import resource
import select
import shutil
import signal
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults_kinds import CORRECT, OTHER, PART, REFUSED, REJECTED, SILENT
from benchmarks.faults_mutations import mutate
from benchmarks.faults_processes import fork, reap, wait
from benchmarks.faults_readers import Configs, Films, Logs, Runs
from benchmarks.faults_stores import Checkpoints, Models, Records, Tars
from benchmarks.faults_world import write_models
from pipelines.command import USER_ERRORS

SECONDS = 30  # of CPU until a case counts as hanging; an undamaged one takes one or two
WAITING = 600  # seconds until it does if it waits for something
MEMORY = 1 << 30  # bytes beyond those of the parent: address space, so the case fails before the machine does
KINDS = (Films, Logs, Tars, Records, Checkpoints, Models, Runs, Configs)
CRASH, HANG = "crash", "hang"
OUTCOMES = (REJECTED, CORRECT, PART, OTHER, CRASH, HANG, SILENT)
BAD = (CRASH, HANG, SILENT)


@dataclass
class Case:
    """One damaged file."""

    number: int
    kind: object
    home: Path
    victim: Path  # in the home
    damage: str = ""
    outcome: str = ""
    detail: str = ""

    def __str__(self):
        where = self.victim.relative_to(self.home.parent)
        return f"case {self.number}: {self.kind.name}, {where}, {self.damage}: {self.outcome}. {self.detail}"


def campaign(root, count, seed, only=(), tell=print):
    """`count` damaged files, the same ones for the same seed -> [Case]. only: kinds or numbers of cases."""
    chosen = {kind.name for kind in KINDS if not only or kind.name in only or any(map(str.isdigit, only))}
    kinds = worlds(root, chosen)
    answers = {home: answer(kind, home, root) for kind in kinds.values() if kind.name in chosen for home in kind.homes}
    weights = np.array([kind.weight for kind in KINDS])
    cases = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        name = KINDS[generator.choice(len(weights), p=weights / weights.sum())].name
        if name not in chosen or (only and name not in only and str(number) not in only):
            continue
        cases.append(attempt(number, kinds[name], root, answers, generator, keep=str(number) in only))
        if cases[-1].outcome in BAD:
            tell(cases[-1])
    return cases


def worlds(root, chosen):
    """{name: kind} of the chosen kinds, and of those whose files they need."""
    write_models(root)
    needed = {name for kind in KINDS if kind.name in chosen for name in kind.needs}
    return {kind.name: kind(root) for kind in KINDS if kind.name in chosen | needed}


def answer(kind, home, root):
    """What a kind's readers say of the undamaged folder, read where damaged ones will be."""
    copy = copied(home, root / "whole" / kind.name)
    outcome, result = isolated(lambda: kind.read(home if isinstance(kind, Checkpoints) else copy), root / "log")
    if outcome != "answer" or REFUSED in repr(result):
        raise RuntimeError(f"{kind.name}: {home} cannot be read undamaged: {outcome} {result!r:.2000}")
    return result


def copied(home, target):
    """A copy of a home, under its own name."""
    shutil.copytree(home, target / home.name)
    return target / home.name


def attempt(number, kind, root, answers, generator, keep=False):
    """Damages one file of a copy and lets it be read."""
    home = kind.homes[generator.integers(len(kind.homes))]
    victims = kind.victims(home)
    victim = victims[generator.integers(len(victims))]
    others = [p.read_bytes() for h in kind.homes for p in kind.victims(h) if p != victim and p.suffix == victim.suffix]
    case = Case(number, kind, home, victim)
    folder = copied(home, root / f"case{number}")
    text = kind.text and victim.suffix != ".safetensors"
    case.damage, damaged = mutate(victim.read_bytes(), others, text, generator)
    (folder / victim.relative_to(home)).write_bytes(damaged)

    def child():
        return kind.judge(answers[home], kind.read(folder))

    case.outcome, case.detail = isolated(child, root / "log")
    if case.outcome == "answer":
        case.outcome, case.detail = case.detail, ""
    if not keep and case.outcome not in BAD:
        shutil.rmtree(folder.parent)
    return case


def isolated(function, log):
    """("answer", what it returns), or (REJECTED | CRASH | HANG, detail), from a fork with limits."""
    reader, writer = os.pipe()

    def child():
        os.close(reader)
        with open(writer, "wb") as pipe:
            pickle.dump(limited(function), pipe)

    Path(log).write_text("")
    pid = fork(child, log)
    os.close(writer)
    data, late = received(reader, WAITING)
    if late:
        os.killpg(pid, signal.SIGKILL)
    status = wait(pid)
    reap()
    if late or status == -signal.SIGXCPU:
        return HANG, f"not done after {WAITING if late else SECONDS} s"
    if status:
        return CRASH, f"exit status {status}: {Path(log).read_text(errors='replace')[-600:]}"
    return pickle.loads(data)  # of our own child


def received(reader, seconds):
    """(all bytes that come through a pipe, whether they took too long)"""
    parts = []
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], seconds)[0]:
            part = pipe.read(1 << 20)
            if not part:
                return b"".join(parts), False
            parts.append(part)
    return b"", True


def limited(function):
    """(outcome, detail) of `function` with MEMORY to grow into and SECONDS of CPU."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        return "answer", function()
    except USER_ERRORS as error:
        return REJECTED, str(error)[:300]
    except SystemExit as error:
        return (REJECTED, "") if error.code == 2 else (CRASH, f"exit status {error.code}")
    except Exception as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return CRASH, f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name} line {place.lineno})"


def tabulate(cases):
    """{kind: {outcome: count}} with a last row for all."""
    table = {}
    for name in dict.fromkeys(case.kind.name for case in cases):
        count = Counter(case.outcome for case in cases if case.kind.name == name)
        table[name] = {"cases": count.total(), **{outcome: count[outcome] for outcome in OUTCOMES}}
    return table | {"all": {name: sum(row[name] for row in table.values()) for name in ("cases", *OUTCOMES)}}
