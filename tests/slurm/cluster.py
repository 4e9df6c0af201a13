"""A real Slurm of one node on this machine: munged, slurmctld and slurmd with their own folder, key and ports.

    python tests/slurm/cluster.py start <folder>    prints the SLURM_CONF to export for sbatch, squeue, ...
    python tests/slurm/cluster.py stop <folder>

Needs the Debian packages `slurm-wlm munge`, root and neither systemd nor cgroups. It touches no other Slurm.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CPUS = 8  # as told to Slurm, whatever the machine has
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
JobRequeue=1
ReturnToService=2
KillWait=10
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30 State=UP
PartitionName=high Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing():
    """Why no Slurm can be started here, or None."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting slurmd needs root"


PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


class Cluster:
    """Starts in `root`, stops on `stop()`; `environment` is what clients need."""

    def __init__(self, root):
        self.root = Path(root).resolve()
        self.conf = self.root / "slurm.conf"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = {**inherited, "PATH": PATH, "SLURM_CONF": str(self.conf)}

    def start(self, timeout=30):
        for name in ("state", "spool", "log", "run"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(parents=True, mode=0o755)
        host, ports = socket.gethostname().partition(".")[0], free_ports(2)
        self.conf.write_text(CONF.format(host=host, root=self.root, controller=ports[0], daemon=ports[1], cpus=CPUS))
        self._munge()
        self._run("slurmctld", "-c", "-f", self.conf)
        self._run("slurmd", "-c", "-f", self.conf, "-N", host)
        deadline = time.monotonic() + timeout
        while (state := self._state()) != "idle":
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the node is {state!r} after {timeout} s, see {self.root / 'log'}")
            time.sleep(0.2)
        return self

    def _state(self):
        asked = subprocess.run(["sinfo", "-h", "-p", "main", "-o", "%T"], env=self.environment, capture_output=True)
        return asked.stdout.decode().strip()

    def _jobs(self):
        return subprocess.run(["squeue", "-h"], env=self.environment, capture_output=True).stdout

    def _munge(self):
        key, run = self.root / "munge.key", self.root / "run"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key, "socket": run / "munge.sock", "pid-file": run / "munged.pid"}
        files |= {"log-file": self.root / "log" / "munged.log", "seed-file": run / "munged.seed"}
        # --force: it objects to a folder below a world-writable one, such as /tmp
        self._run("munged", "--force", *(f"--{name}={path}" for name, path in files.items()))

    def _run(self, *command):
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True, timeout=30)
        if done.returncode:
            self.stop()
            raise RuntimeError(f"{command[0]}: {done.stderr}")

    def stop(self):
        """Cancels what still runs, then ends the three daemons by their pid files."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        deadline = time.monotonic() + 20
        while self._jobs() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            path = self.root / "run" / f"{name}.pid"
            if path.is_file():
                end(int(path.read_text()))

    def submit(self, folder, *command):
        """`sbatch *command` in `folder` -> job number."""
        return self.run("sbatch", "--parsable", "--mem=1G", "--cpus-per-task=1", *command, cwd=folder)

    def job(self, number):
        """What Slurm knows of a job, or of a task `7_2` of an array: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number, *states, timeout=600):
        """Waits until the job is in one of `states`, by default any in which it is over -> `job(number)`."""
        deadline = time.monotonic() + timeout
        while (facts := self.job(number))["JobState"] not in (states or OVER):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} is {facts['JobState']} after {timeout} s")
            time.sleep(0.1)
        return facts

    def run(self, *command, **options):
        """Output of a client command such as `squeue`."""
        options = {"env": self.environment, "capture_output": True, "text": True, "timeout": 60} | options
        done = subprocess.run([*map(str, command)], **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout.strip()


def end(pid, timeout=20):
    """Terminates a daemon and waits until it is gone."""
    deadline = time.monotonic() + timeout
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


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
