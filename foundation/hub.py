"""Saving a trained network as a hub folder, and loading one from a path."""

from pathlib import Path

import torch

from pipelines import checkpoint
from pipelines.command import machine


def load(address):
    """A local hub folder or the run directory that holds one as `model` -> `pipelines.checkpoint.Bundle`."""
    path = Path(address)
    return checkpoint.load(path / "model" if not (path / checkpoint.CONFIG).is_file() or is_run(path) else path)


def is_run(path):
    """A run directory also has a config.yaml; what makes it a run is the model folder beside it."""
    return (path / "model" / checkpoint.CONFIG).is_file()


def save_trained(folder, net, net_config, data, summary, cfg, statistics=None):
    """Writes `net` with its action spec, frame size and rate, measured numbers and a card that says how it was made."""
    extras = {"actions": data.spec, "size": data.size, "fps": data.fps, "statistics": statistics or {}}
    return checkpoint.save(folder, net_config, net, extras, card(net_config, data, summary, cfg))


def card(net_config, data, summary, cfg):
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(summary.items()) if is_number(value))
    return f"""---
library_name: foundation-policy
license: mit
---

# {cfg.run.name}

`{net_config["_target_"]}` for {data.spec.name} actions, frames {data.size[0]}x{data.size[1]} RGB at {data.fps} Hz.

Trained on {data.frames} frames of `{cfg.data.train}`, seed {cfg.run.seed}, on {machine_words()}.

| measured | value |
|---|---|
{rows}

Load it with `foundation.hub.load(<this folder>)`.
"""


def is_number(value):
    return isinstance(value, int | float)


def machine_words():
    """Processor, threads and GPU, if there is one, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{machine()['processor']}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
