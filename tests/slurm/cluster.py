"""A real Slurm of one node on this machine: munged, slurmctld and slurmd with their own folder, key and ports.

    python tests/slurm/cluster.py start <folder>    prints the SLURM_CONF to export for sbatch, squeue, ...
    python tests/slurm/cluster.py stop <folder>

Needs the Debian packages `slurm-wlm munge`, root and neither systemd nor cgroups. It touches no other Slurm.
"""

import fcntl
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CPUS = 8  # as told to Slurm, whatever the machine has
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order in which they are stopped
PATIENCE = 1700  # seconds: on a busy machine a job's Python takes minutes to start
TAIL = 3000  # characters of a log in an error
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the delay of a requeue, by default 120 s; 5 is the least
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
# neither cgroups nor systemd, no accounting
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
# as on clusters where a job must ask to be requeued
JobRequeue=0
ReturnToService=2
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2
# finished jobs stay known for the whole session; everything else waits for a busy machine
MinJobAge=86400
KillWait=60
MessageTimeout=60
TCPTimeout=60
BatchStartTimeout=600
UnkillableStepTimeout=600
SlurmctldTimeout=600
SlurmdTimeout=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=120 State=UP
PartitionName=high Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing():
    """Why no Slurm can be started here, or None."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting slurmd needs root"


class Cluster:
    """Starts in `root`, stops on `stop()`; `environment` is what clients need."""

    def __init__(self, root):
        self.root = Path(root).resolve()
        self.conf = self.root / "slurm.conf"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = {**inherited, "PATH": PATH, "SLURM_CONF": str(self.conf)}

    def own(self):
        """The cluster is to end with this process, however that ends: see `end_leftovers`."""
        fcntl.flock(os.open(self.root / "owner", os.O_CREAT | os.O_WRONLY), fcntl.LOCK_EX)  # never closed
        return self

    def start(self):
        for name in ("state", "spool", "log", "run"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(parents=True, mode=0o755)
        host, ports = socket.gethostname().partition(".")[0], free_ports(2)
        self.conf.write_text(CONF.format(host=host, root=self.root, controller=ports[0], daemon=ports[1], cpus=CPUS))
        try:
            self._munge()
            self.run("slurmctld", "-c", "-f", self.conf, timeout=120)
            self.run("slurmd", "-c", "-f", self.conf, "-N", host, timeout=120)
            until(self._is_ready, 120)
        except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
            self._end()
            raise RuntimeError(f"Slurm does not start: {error}\n{self._logs()}") from error
        return self

    def _munge(self):
        key, run = self.root / "munge.key", self.root / "run"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key, "socket": run / "munge.sock", "pid-file": run / "munged.pid"}
        files |= {"log-file": self.root / "log" / "munged.log", "seed-file": run / "munged.seed"}
        # --force: it objects to a folder below a world-writable one, such as /tmp
        self.run("munged", "--force", *(f"--{name}={path}" for name, path in files.items()), timeout=120)

    def _is_ready(self):
        return self.ask("sinfo", "-h", "-p", "main", "-o", "%T").stdout.strip() == "idle"

    def _logs(self):
        paths = sorted((self.root / "log").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-TAIL:]}" for path in paths)

    def stop(self):
        """Cancels the jobs that still run, then ends the daemons of this folder; does nothing where there are none."""
        if any(self._daemon("slurmctld")):
            self.ask("scancel", "--user=root")
            try:
                until(lambda: not self.ask("squeue", "-h").stdout, 120)
            except TimeoutError:
                print(f"jobs outlive their Slurm:\n{self.ask('squeue').stdout}", file=sys.stderr)
        self._end()

    def _end(self):
        for name in DAEMONS:
            for pid in self._daemon(name):
                end(pid)

    def _daemon(self, name):
        return [pid for pid, daemon, root in daemons() if (daemon, root) == (name, self.root)]

    def submit(self, folder, *command):
        """`sbatch *command` in `folder` -> job number."""
        return self.run("sbatch", "--parsable", "--mem=1G", "--cpus-per-task=1", *command, cwd=folder)

    def job(self, number):
        """What Slurm knows of a job, or of a task `7_2` of an array: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, number):
        """What a job printed so far."""
        path = Path(self.job(number)["StdOut"])
        return path.read_text(errors="replace") if path.is_file() else ""

    def wait(self, number, *states):
        """Waits until the job is in one of `states`, by default any in which it is over -> `job(number)`."""
        self.until(lambda: self.job(number)["JobState"] in (states or OVER), number, pause=0.25)
        return self.job(number)

    def until(self, condition, number, pause=0.02):
        """Waits for something that a job brings about; an error with its log if it ends before."""
        ticks = itertools.count()

        def holds():
            over = next(ticks) % 20 == 0 and self.job(number)["JobState"] in OVER  # asking is slower than looking
            if not condition():
                assert not over, f"job {number} is over: {self._words(number)}"
                return False
            return True

        try:
            until(holds, pause=pause)
        except TimeoutError as error:
            raise TimeoutError(f"{error} for job {number}: {self._words(number)}") from None

    def _words(self, number):
        facts = self.job(number)
        shown = ", ".join(f"{name} {facts.get(name)}" for name in ("JobState", "Reason", "ExitCode", "Restarts"))
        return f"{shown}\n{self.log(number)[-TAIL:]}"

    def ask(self, *command, **options):
        """A client command such as `squeue`, done."""
        options = {"env": self.environment, "capture_output": True, "text": True, "timeout": PATIENCE} | options
        return subprocess.run([*map(str, command)], **options)

    def run(self, *command, **options):
        """Its output; RuntimeError if it failed."""
        done = self.ask(*command, **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout.strip()


def processes():
    """(pid, command line as words) of everything on this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue


def daemons():
    """(pid, name, folder) of every daemon on this machine that was started by this file."""
    for pid, words in processes():
        files = [word.partition("=")[2] or word for word in words if word.endswith(("/slurm.conf", "/munge.key"))]
        if Path(words[0]).name in DAEMONS and files:
            yield pid, Path(words[0]).name, Path(files[0]).parent


def end_leftovers():
    """Stops every cluster with an owner (`Cluster.own`) that is no more, such as a test session that was killed."""
    for root in {root for _, _, root in daemons() if (root / "owner").is_file()}:
        with open(root / "owner") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            Cluster(root).stop()


def until(condition, timeout=PATIENCE, pause=0.1):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain")
        time.sleep(pause)


def end(pid):
    """Terminates a daemon and waits until it is gone."""
    try:
        os.kill(pid, signal.SIGTERM)
        until(lambda: pid not in {running for running, _, _ in daemons()}, 60)
    except ProcessLookupError:
        pass
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    if sys.argv[1] == "stop":
        Cluster(sys.argv[2]).stop()
    elif missing():
        sys.exit(missing())
    else:
        print(f"export SLURM_CONF={Cluster(sys.argv[2]).start().conf}")
