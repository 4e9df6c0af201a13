"""Runs ingest in this process on its real config, shrunk."""

import json
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipelines import ingest as command
from pipelines.command import CONFIGS, execute


def config(videos, out, **changes):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIGS):
        cfg = compose("ingest")
    base = {"videos": str(videos), "out": str(out), "workers": 0, "size": [32, 40], "run": {"dir": f"{out}-run"}}
    cfg.merge_with(OmegaConf.create({**base, **changes}))
    return cfg


def ingest(videos, out, **changes):
    """The summary of `python -m pipelines.ingest`."""
    return execute(command.main.function, config(videos, out, **changes))


def rejections(out):
    """{file: code} of rejected.jsonl."""
    lines = (Path(out) / "rejected.jsonl").read_text().splitlines()
    return {row["file"]: row["code"] for row in map(json.loads, lines)}


def files(out):
    """{relative path: bytes} of everything in a folder of shards but the units' records, which hold file times."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).glob("*")) if p.is_file()}
