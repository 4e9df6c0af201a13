"""Processes that are started to be killed: forks that lead a group of their own, and a hook that kills from within.

A forked process starts with everything imported, which spares the seconds that Python takes for that; from there on it
is the process that `python -m <command>` would be: same arguments, same files, and it can be killed like any other.
"""

import contextlib
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.utime", "os.mkdir", "os.link")


def fork(function, log=os.devnull):
    """Runs `function` in a child that leads a process group of its own; what it prints goes to `log`; returns its id.

    It exits with 0, with the status of a SystemExit, or with 1 after a traceback.
    """
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here as well: whoever comes first
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        function()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(module, *arguments, cwd=None):
    """`python -m module arguments...` in this process; call it in a fork."""
    os.chdir(cwd or os.getcwd())
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def ended(pid):
    """Whether a child is over; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(pid):
    """Exit status of a child, negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def reap(seconds=10.0):
    """Waits for all that is left of ended children's processes; False if one is still alive after that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)
        except ChildProcessError:
            return True
    return False


class Tripwire:
    """Audit hook: kills this process group before its n-th change of a file in `folder`; counts the changes."""

    def __init__(self, folder, n=None):
        self.folder, self.n, self.seen = str(folder), n, 0

    def __call__(self, event, arguments):
        path = arguments[0] if event in EVENTS else None
        if not isinstance(path, (str, Path)) or not os.path.abspath(path).startswith(self.folder):
            return
        if event == "open" and "r" in (arguments[1] or "r"):
            return
        self.seen += 1
        if self.seen == self.n:
            os.killpg(0, signal.SIGKILL)
