"""One way to build the Trainer that every command uses: counts steps, writes metrics.csv and one checkpoint."""

import ctypes
import logging
import sys
import zipfile

import lightning as L
import torch
from omegaconf import OmegaConf

from foundation import callbacks
from pipelines.schema import DataError


def make_trainer(settings, folder, callbacks_, max_steps, resumed_step=0, **options):
    """settings: a `configs/trainer` node as a dict; options go to `lightning.Trainer`.

    Epochs are ours to count, not Lightning's: it sees one loader and stops at `max_steps`.
    """
    keep_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        **{
            **settings,
            "max_steps": max_steps,
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": callbacks.csv_logger(folder, 20, resumed_step),
            "callbacks": callbacks_,
            "default_root_dir": folder,
            **options,
        }
    )


def keep_memory():
    """Lets the process reuse freed memory; without it every large tensor is fetched from the system anew, each step.

    glibc returns blocks above 32 MB at once, and clearing their pages again can cost as much as the arithmetic
    (measured by `benchmarks.behaviour_cloning`). Elsewhere than on glibc this does nothing.
    """
    mmap_max, trim_threshold = -4, -1  # parameters of mallopt(3)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def resume_path(folder, resume):
    """`last.ckpt` of the run directory if it is there and `resume=auto`, else None."""
    if resume not in ("auto", "never"):
        raise DataError(f"resume={resume!r}: expected auto or never")
    last = folder / "last.ckpt"
    if resume == "auto" and last.is_file() and not zipfile.is_zipfile(last):
        raise DataError(f"{last} is damaged; resume=never starts again")
    return str(last) if resume == "auto" and last.is_file() else None


def step_of(checkpoint):
    """Optimizer steps in a checkpoint file; 0 for None."""
    return 0 if checkpoint is None else torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


def plain(node):
    """A config node as dicts, lists and plain values, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)


def derive(net, size, codec):
    """Fills in what follows from frames (h, w) and actions. A value set in the config stays."""
    known = {
        "height": size[0], "width": size[1], "n_keys": codec.n_keys, "n_bins": codec.n_bins,
        "n_buttons": codec.n_buttons, "n_camera": codec.n_camera, "camera_on": codec.camera_on,
        "camera_null": codec.camera_null,
    }  # fmt: skip
    return {name: known.get(name) if value is None else value for name, value in net.items()}
