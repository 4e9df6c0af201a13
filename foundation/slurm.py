"""The Slurm job this process is part of: how many processes train together, and asking to be queued again."""

import os
import shlex
import subprocess
import sys

from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from pipelines.schema import DataError


def job_id():
    """`7`, or `7_2` for an array's task, whose plain number may stand for the whole array; None outside Slurm."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def trainer_settings(settings):
    """A `configs/trainer` node with what the job says about processes; outside Slurm as it is.

    Lightning must not requeue by itself: it would save inside the signal handler, in the middle of a step.
    """
    if "SLURM_JOB_ID" not in os.environ or TorchElasticEnvironment.detect():
        return settings
    if "SLURM_STEP_ID" not in os.environ:  # not started by srun: one process, whatever was allocated
        return {**settings, "plugins": [LightningEnvironment()]}
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
    here = {"devices": tasks // nodes, "num_nodes": nodes, "plugins": [SLURMEnvironment(auto_requeue=False)]}
    if settings["devices"] in (-1, "auto", here["devices"]) and tasks % nodes == 0:
        return {**settings, **here}
    raise DataError(
        f"Slurm started {tasks} tasks on {nodes} nodes, but trainer.devices={settings['devices']}; choose trainer=ddp,"
        " which takes as many processes as Slurm starts, or submit with --nodes=1 --ntasks-per-node=1"
    )


def requeue():
    """Puts the job back into the queue under its number -> None, or why that was not done.

    A job that is being cancelled is sent the same signals as a preempted one, but is no longer "RUNNING".
    """
    try:
        state = ask("squeue", "--noheader", "--format=%T", "--jobs", job_id()).strip()
        if state != "RUNNING":
            return f"the job is {state or 'gone'}"
        ask("scontrol", "requeue", job_id())
    except (OSError, subprocess.SubprocessError) as error:
        return (getattr(error, "stderr", None) or str(error)).strip()


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def again(overrides=None):
    """The command that continues this run, as one would type it."""
    spec, overrides = sys.modules["__main__"].__spec__, sys.argv[1:] if overrides is None else overrides
    module = spec.name if spec else "foundation.pretrain"
    verb = ["python", "-m", module] if job_id() is None else ["sbatch", f"slurm/{module.rpartition('.')[2]}.sh"]
    return shlex.join([*verb, *overrides])
