"""One way to build the Trainer that every command uses: counts steps, writes metrics.csv and one checkpoint."""

import ctypes
import inspect
import logging
import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager

import lightning as L
import torch
from hydra.errors import HydraException
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from foundation import callbacks, slurm
from pipelines.schema import DataError


def make_trainer(settings, folder, callbacks_, max_steps, resumed_step=0, logger=callbacks.csv_logger, **options):
    """settings: a `configs/trainer` node as a dict; options go to `lightning.Trainer`.

    Epochs are ours to count, not Lightning's: it sees one loader and stops at `max_steps`.
    """
    keep_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments = {
        **slurm.trainer_settings(settings),
        "max_steps": max_steps,
        "max_epochs": -1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": logger(folder, 20, resumed_step),
        "callbacks": [callbacks.Diverged(), *callbacks_],
        "default_root_dir": folder,
        **options,
    }
    try:
        with quiet():
            return L.Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise DataError(f"these trainer settings cannot be used ({error}); see configs/trainer") from error


def made(node, **more):
    """What a config node describes, {_target_: class, its arguments}; DataError where it does not fit the class."""
    kind, values = class_of(node), {name: value for name, value in {**node, **more}.items() if name != "_target_"}
    try:
        inspect.signature(kind).bind(**values)
    except (TypeError, ValueError) as error:
        raise DataError(f"the config of {node.get('_target_')} does not fit it: {error}; see configs/") from error
    return kind(**values)


def class_of(node):
    """The class that a config node names; DataError where there is none."""
    if not isinstance(node, Mapping):
        raise DataError(f"expected a config with a _target_, such as those in configs/, got {node!r}")
    try:
        return get_class(node["_target_"])
    except (KeyError, TypeError, ValueError, ImportError, HydraException) as error:
        raise DataError(f"the config of {node.get('_target_')} does not fit it: {error}; see configs/") from error


def fit_from(trainer, module, data, start):
    """`trainer.fit` from the checkpoint `start`; None: from the beginning. Interrupted, it ends as everything else."""
    try:
        with quiet():
            trainer.fit(module, data, ckpt_path=start, weights_only=True)
    except SystemExit as ended:  # Lightning's, with status 1
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise


@contextmanager
def quiet():
    """Without advice of Lightning's that does not apply: our data know their place by the step alone, for one."""
    beside_the_point = "many workers|has `__len__`|in eval mode|LeafSpec|weights_only|srun|not resumable|ranks is zero"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"(?s).*({beside_the_point}).*")
        yield


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


def world_size(settings):
    """Processes that a `configs/trainer` node starts or, under Slurm, takes part in."""
    settings = slurm.trainer_settings(settings)
    devices = settings.get("devices", "auto")
    if devices in (-1, "auto"):
        devices = max(1, torch.cuda.device_count())
    return int(devices) * int(settings.get("num_nodes", 1))


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
