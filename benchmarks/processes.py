"""Runs a command and measures it with all of its worker processes: seconds, CPU seconds, memory."""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
INTERVALS = 0.1, 2.0  # seconds between looks, the shortest and the longest: shorter peaks can be missed
SHARE = 50  # of the time so far that passes until the next look: a look costs milliseconds of somebody's CPU
TAIL = 2000  # characters of the log of a command that failed


@dataclass
class Usage:
    """What one command took."""

    seconds: float = 0.0
    tree_bytes: int = 0  # peak of the resident memory of the process and its descendants, shared pages counted in each
    process_bytes: int = 0  # peak of the largest of them
    cpu: dict = field(default_factory=dict)  # {process id: CPU seconds when last seen}

    @property
    def cpu_seconds(self):
        return sum(self.cpu.values())

    def look(self, process):
        """Adds what a process and its descendants hold at the moment."""
        total = 0
        for member in descendants(process):
            with contextlib.suppress(psutil.Error):  # it has just ended
                times, rss = member.cpu_times(), member.memory_info().rss
                self.cpu[member.pid] = times.user + times.system
                self.process_bytes = max(self.process_bytes, rss)
                total += rss
        self.tree_bytes = max(self.tree_bytes, total)


def descendants(process):
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def run(module, *overrides, log, threads=1):
    """`python -m module overrides...` -> Usage; its output goes into the file `log`. SystemExit where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    usage, start = Usage(), time.monotonic()
    with open(log, "ab") as output:
        process = psutil.Popen(
            [sys.executable, "-m", module, *map(str, overrides)], env=environment, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                usage.look(process)
                with contextlib.suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
                    process.wait(min(max(INTERVALS[0], (time.monotonic() - start) / SHARE), INTERVALS[1]))
        except BaseException:
            process.kill()
            raise
    usage.seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"python -m {module} failed, the end of {log}:\n{Path(log).read_text(errors='replace')[-TAIL:]}")
    return usage
