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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hydra
from omegaconf import OmegaConf

from pipelines.schema import DataError

CONFIGS = str(Path(__file__).resolve().parents[1] / "configs")
log = logging.getLogger("foundation-policy")


def command(name):
    """Makes `main(cfg) -> summary dict` a command configured by `configs/<name>.yaml`.

    The run directory `cfg.run.dir` receives `config.yaml` (resolved), `machine.json` and `summary.json` (flat: the
    final numbers).
    DataError and missing files end the command with one clear message and exit status 2.
    The undecorated function stays reachable as `main.function` for tests and other commands.
    """

    def decorate(function):
        @functools.wraps(function)
        def run(cfg):
            try:
                function_summary = execute(function, cfg)
            except (DataError, FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError) as error:
                if cfg.get("debug"):
                    raise
                print(f"\n{name}: {error}\n", file=sys.stderr)
                sys.exit(2)
            return function_summary

        entry = hydra.main(version_base="1.3", config_path=CONFIGS, config_name=name)(run)
        entry.function = function
        return entry

    return decorate


def execute(function, cfg):
    """Runs `function(cfg)` in its run directory and writes `config.yaml`, `machine.json` and `summary.json` there."""
    start = time.monotonic()
    folder = run_folder(cfg)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (folder / "machine.json").write_text(json.dumps({"command": command_line(), **machine()}, indent=1) + "\n")
    summary = dict(function(cfg) or {})
    summary["minutes"] = round((time.monotonic() - start) / 60, 3)
    write_summary(folder / "summary.json", summary)
    log.info("summary: %s", folder / "summary.json")
    return summary


def run_folder(cfg):
    """Creates and returns `cfg.run.dir`; DataError if it cannot be written."""
    folder = Path(cfg.run.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
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
