"""Faults on purpose: kills of running commands, and damaged inputs.

    python -m benchmarks.faults kills --count 100 --seed 0     each command, killed and started again, has to end as if
                                                               it had never been killed: byte for byte, bit for bit
    python -m benchmarks.faults inputs --count 1000 --seed 0   each damaged file has to be refused with a clear message
                                                               or give what it gave before: no crash, no hang, no lie

Prints a table; exit status 1 if anything else happened. `--only` repeats some commands, kinds or single cases.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a process with threads cannot be forked


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=["kills", "inputs"])
    parser.add_argument("--count", type=int, help="kills that hit (100), or damaged inputs (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="commands, kinds of input or numbers of cases")
    parser.add_argument("--folder", help="keep everything here, in place of a temporary folder")
    parser.add_argument("--out", help="write the numbers here as well, as JSON")
    return parser.parse_args(given)


def main(given=None):
    args = arguments(given)
    from benchmarks import faults_world

    faults_world.prepare()
    start = time.monotonic()
    with kept(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
        result = {"kills": kills, "inputs": inputs}[args.campaign](Path(folder).resolve(), args)
    minutes, cpu = (time.monotonic() - start) / 60, cpu_seconds() / 60
    result |= {"seed": args.seed, "minutes": round(minutes, 2), "cpu_minutes": round(cpu, 2)}
    print(f"{minutes:.1f} minutes, {cpu:.1f} of CPU, seed {args.seed}")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["problems"] else 0


@contextlib.contextmanager
def kept(folder):
    """A new folder in `folder` that stays."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield tempfile.mkdtemp(dir=folder)


def cpu_seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def kills(folder, args):
    """Runs the kill campaign -> plain numbers, with what went wrong under `problems`."""
    from benchmarks.faults_kills import campaign

    tallies = campaign(folder, args.count or 100, args.seed, args.only)
    columns = ("rounds", "starts", "kills", "start", "middle", "end", "identical", "differing")
    table = {}
    for name, tally in tallies.items():
        table[name] = {column: getattr(tally, column, None) for column in columns} | dict.fromkeys(columns[3:6], 0)
        table[name] |= dict(tally.where) | {"differing": len(tally.differing)}
    table["all"] = {column: sum(row[column] for row in table.values()) for column in columns}
    show(table, columns)
    problems = [text for tally in tallies.values() for text in tally.differing]
    problems += [f"{name}: {t.survivors} kills left a process behind" for name, t in tallies.items() if t.survivors]
    problems += [] if table["all"]["kills"] >= (args.count or 100) else ["fewer kills than asked for"]
    print("\n".join(problems))
    return {"table": table, "problems": problems}


def show(table, columns):
    """Prints {row: {column: number}}."""
    width = max(map(len, table)) + 2
    print(" " * width + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for name, row in table.items():
        print(f"{name:{width}}" + "".join(f"{row[column]:>{len(column) + 2}}" for column in columns))


def inputs(folder, args):
    """Runs the campaign of damaged inputs -> plain numbers, with every crash, hang and silent error."""
    from benchmarks.faults_inputs import BAD, OUTCOMES, campaign, tabulate

    cases = campaign(folder, args.count or 1000, args.seed, args.only)
    table = tabulate(cases)
    show(table, ("cases", *OUTCOMES))
    print("in part: what was lost is noted with the data; other: files without a checksum, read as other files")
    return {"table": table, "problems": [str(case) for case in cases if case.outcome in BAD]}


if __name__ == "__main__":
    sys.exit(main())
