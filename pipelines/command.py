"""What every command shares: composing its config, its run directory, and errors without tracebacks."""

import functools
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hydra
from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.schema import DataError
from pipelines.values import CONFIGS, check_values, explain

USER_ERRORS = (DataError, OSError, OmegaConfBaseException)  # OSError: missing files, full disks, no permission
LOCK_SECONDS = 5
TRAINED = "last.ckpt"  # in the run directory of a training
log = logging.getLogger("foundation-policy")


def command(name):
    """Makes `main(cfg) -> summary dict` a command configured by `configs/<name>.yaml`.

    The run directory `cfg.run.dir` receives `config.yaml` (resolved), `machine.json` and `summary.json` (flat: the
    final numbers).
    DataError, missing files and unusable values end the command with one clear message and exit status 2.
    The undecorated function stays reachable as `main.function` for tests and other commands.
    """

    def decorate(function):
        state = {}

        @functools.wraps(function)
        def run(cfg):
            state["composing"] = False
            try:
                check_values(cfg, name)
                return execute(function, cfg)
            except USER_ERRORS as error:
                if cfg.get("debug"):
                    raise
                print(f"\n{name}: {error}\n", file=sys.stderr)
                sys.exit(getattr(error, "status", 2))

        entry = hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)(run)

        @functools.wraps(entry)
        def started(*arguments):
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its own errors on instead of printing a traceback
            state["composing"] = True
            try:
                return entry(*arguments)
            except KeyboardInterrupt:
                print(f"\n{name}: interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                known = isinstance(error, (*USER_ERRORS, HydraException))
                if "debug=true" in sys.argv or not (known or state["composing"]):
                    raise
                where = "" if known else f"the config files cannot be read ({type(error).__name__}): "
                missing = isinstance(error, OSError) and not isinstance(error, HydraException)
                if missing or "Unable to configure handler" in str(error):  # Hydra's, for its log
                    where = "the output folder cannot be written; set run.dir=<folder>: "
                print(f"\n{name}: {where}{explain(error, name)}\n", file=sys.stderr)
                sys.exit(getattr(error, "status", 2))

        started.function = function
        return started

    return decorate


def execute(function, cfg):
    """Runs `function(cfg)` in its run directory and writes `config.yaml`, `machine.json` and `summary.json` there."""
    start = time.monotonic()
    folder = run_folder(cfg)
    if "trainer" not in cfg and (folder / TRAINED).exists():
        raise DataError(f"{folder} holds a training, whose config and numbers this would replace; set run.dir=<folder>")
    writes = "trainer" not in cfg or first_process()  # only training starts several processes for one run.dir
    if not writes:
        return dict(function(cfg) or {})
    with alone(folder) if "trainer" in cfg else nullcontext(), described(folder, cfg):
        summary = dict(function(cfg) or {})
    summary.setdefault("minutes", (time.monotonic() - start) / 60)  # a training that was stopped knows its own
    summary["minutes"] = round(summary["minutes"], 3)
    write_summary(folder / "summary.json", summary)
    log.info("summary: %s", folder / "summary.json")
    return summary


@contextmanager
def alone(folder):
    """Holds the run directory; DataError if another training has it. The lock ends with its process, however that does.

    A run that is requeued waits for LOCK_SECONDS until the one before has gone.
    """
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"another training writes to {folder}; wait for its end, or set run.dir=<folder>") from error
    except NotImplementedError:
        log.warning("the file system of %s knows no locks: nothing keeps a second training out", folder)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def described(folder, cfg):
    """Writes `config.yaml` and `machine.json`; a command that then fails leaves those of an earlier one there instead.

    So they describe the run whose results the folder holds, unless there is none.
    """
    texts = {
        "config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
        "machine.json": json.dumps({"command": command_line(), **machine()}, indent=1) + "\n",
    }
    path = folder / "summary.json"
    finished = path.stat().st_mtime_ns if path.is_file() else None
    earlier = {name: (folder / name).read_bytes() for name in texts if (folder / name).is_file()}
    for name, text in texts.items():
        (folder / name).write_text(text)
    try:
        yield
    except Exception:
        if not path.is_file() or path.stat().st_mtime_ns == finished:  # else it has its own results, and refused them
            for name, content in earlier.items():
                (folder / name).write_bytes(content)
        raise


def first_process():
    """Whether this is the one of several training processes that writes; ranks as torchrun, Lightning and Slurm say."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def run_folder(cfg):
    """Creates and returns `cfg.run.dir`; DataError if it cannot be written."""
    folder = Path(cfg.run.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been here
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); set run.dir=<folder>"
        raise DataError(f"the output folder {folder} {reason}") from error
    return folder


def write_summary(path, summary):
    """Writes a flat JSON of numbers and strings; NaN becomes null because JSON has no NaN."""
    clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in summary.items()}
    Path(path).write_text(json.dumps(clean, indent=1, sort_keys=True, default=str) + "\n")


def command_line():
    """What was typed, with the module's name in place of its file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", spec.name, *sys.argv[1:]] if spec else sys.argv)


def machine():
    """The machine this runs on: {processor, cores, system, python, torch}."""
    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    try:
        return facts | {"torch": version("torch")}
    except PackageNotFoundError:
        return facts


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
