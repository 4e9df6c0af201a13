"""Runs ingest in this process on its real config, shrunk; and workers that fail on purpose."""

import json
import os
import signal
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines import ingest as command
from pipelines.command import CONFIGS, execute
from pipelines.ingest_unit import process


def config(source, out, **changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("ingest")
    base = {"videos": str(source), "out": str(out), "workers": 0, "size": [32, 40], "run": {"dir": f"{out}-run"}}
    cfg.merge_with(OmegaConf.create({**base, **changes}))
    return cfg


def ingest(source, out, **changes):
    """The summary of `python -m pipelines.ingest`."""
    return execute(command.main.function, config(source, out, **changes))


def rejections(out):
    """{file: code} of rejected.jsonl."""
    lines = (Path(out) / "rejected.jsonl").read_text().splitlines()
    return {row["file"]: row["code"] for row in map(json.loads, lines)}


def files(out):
    """{relative path: bytes} of everything in a folder of shards but the units' records, which hold file times."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).glob("*")) if p.is_file()}


def crash(task):
    if "v0" in task[1].name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return process(task)


def hang(task):
    if "v0" in task[1].name:
        time.sleep(60)
    return process(task)


def stumble(task):
    if "v0" in task[1].name:
        raise ZeroDivisionError("on purpose")
    return process(task)
