"""Reads OpenAI's VPT files (`.model` + `.weights`, openai/Video-Pre-Training) without running anything in them.

`.model` is a pickled dict of settings, `.weights` a saved state dict. Both formats can hold programs, so the first is
read by an unpickler that knows containers, numbers and strings only, the second with weights-only loading.
`build` returns the network with a report of every missing and unexpected parameter; `convert` writes a hub folder
(config, safetensors), after which neither file is needed any more.
"""

import inspect
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.vpt import VptInverseDynamics, VptPolicy
from models.vpt_layers import N_BASIS
from pipelines import card, checkpoint, construct, untrusted
from pipelines.actions import MINECRAFT, ActionCodec
from pipelines.command import command_line
from pipelines.schema import DataError

FPS = 20.0  # of the recordings the nets were trained on
MAX_MODEL_BYTES = 16 << 20  # a settings file has kilobytes
OPTIONAL = ("value_head.",)  # not needed to act or to label
CORE = ("net.", "pi_head.")  # here a name too many means another net, elsewhere a head that only training used
HEAD = "pi_head.{}.linear_layer.weight"
HEADS = "net.recurrent_layer.blocks.0.r.orc_block.r_layer.weight"
UNTRAINED = "net.lastlayer.norm.weight"  # all ones in an IDM whose `lastlayer` took no part in training

PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError,
    OverflowError, MemoryError, RecursionError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """What did not match by name. A policy may lack a value head; RL files bring heads that only training used."""

    missing: tuple[str, ...] = ()  # parameters of the net that the file lacks; they keep their initial values
    unexpected: tuple[str, ...] = ()  # tensors of the file that the net has no place for
    notes: tuple[str, ...] = ()

    def __str__(self):
        lines = [f"missing (initial values kept): {', '.join(self.missing) or 'none'}"]
        lines += [f"unexpected (not loaded): {', '.join(self.unexpected) or 'none'}", *self.notes]
        return "\n".join(lines)


class Release(NamedTuple):
    """A network of the release, in eval mode."""

    net: nn.Module
    config: dict  # {_target_, plain keyword arguments} that builds it again
    report: LoadReport


class PlainUnpickler(pickle._Unpickler):
    """Unpickles dicts, lists, tuples, sets, numbers, strings, bytes and OrderedDict; refuses every other name.

    The one written in Python: a five-byte instruction makes the one in C fill gigabytes with its table of references.
    """

    ALLOWED = {("collections", "OrderedDict"): OrderedDict}  # noqa: RUF012

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise DataError(f"it asks for {module}.{name}; only plain containers, numbers and strings are read")
        return self.ALLOWED[module, name]


def load_model_file(path):
    """`.model` -> keyword arguments of the net, `temperature` included."""
    settings = unpickle(Path(path))
    try:
        arguments = settings["model"]["args"]
        net, temperature = arguments["net"]["args"], arguments["pi_head_opts"]["temperature"]
        keywords = {str(name): value for name, value in net.items()}
        return {**keywords, "temperature": float(temperature)}  # it may be a string
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is not a VPT .model file: expected model.args.net.args and model.args.pi_head_opts.temperature"
            f" ({type(error).__name__}: {error})"
        ) from error


def unpickle(path):
    """The object in a pickle of plain values; DataError for anything else."""
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise DataError(f"{path} is larger than {MAX_MODEL_BYTES >> 20} MiB, a .model file is not; is it the .weights?")
    try:
        with path.open("rb") as handle:
            return untrusted.bounded(PlainUnpickler(handle).load(), path)
    except DataError as error:
        raise DataError(f"{path} was refused: {error}") from error
    except PICKLE_ERRORS as error:
        hint = "is it the .weights file, or damaged?"
        raise DataError(f"{path} is not a readable pickle of settings ({first_line(error)}); {hint}") from error


def load_weights(path):
    """`.weights` -> dict name -> tensor on the CPU, through weights-only loading."""
    try:
        check_stored(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, *PICKLE_ERRORS) as error:
        raise DataError(
            f"{path} was refused or is damaged: expected a state dict of tensors ({first_line(error)});"
            " download it again, and from its authors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{path} holds a {type(state).__name__}, expected a state dict of tensors only")
    return {str(name): tensor for name, tensor in state.items()}


def check_stored(path):
    """ValueError for an archive that unpacks to more than it is: torch writes without compression."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("its members are compressed, which torch never does")


def first_line(error):
    return str(error).strip().partition("\n")[0][:200]


def build(model_path, weights_path, spec=MINECRAFT):
    """`.model` and `.weights` -> Release. An IDM where the settings have `conv3d_params`, else a policy.

    Raises DataError for a wrong size, and for a missing parameter other than those of the value head.
    """
    keywords, weights = load_model_file(model_path), load_weights(weights_path)
    config = net_config(keywords, weights, ActionCodec(spec), weights_path)
    arguments = {name: value for name, value in config.items() if name != "_target_"}
    target = VptInverseDynamics if "conv3d_params" in keywords else VptPolicy
    unused = {name: value for name, value in keywords.items() if name not in arguments}  # known to the release alone
    try:
        construct.check_numbers(config)
        with torch.device("meta"), construct.at_most(4 * len(weights) + 64, model_path):  # before memory is spent
            expected = target(**arguments, **unused).state_dict()
        report = compare(expected, weights, weights_path)
        net = target(**arguments, **unused)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise DataError(f"{model_path} describes a net that cannot be built: {error}") from error
    net.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)
    if target is VptInverseDynamics and bool((weights[UNTRAINED] == 1).all()):
        note = f"{UNTRAINED} is all ones: `lastlayer` was never trained, skipping it is right"
        report = replace(report, notes=(note,))
    return Release(net.eval(), config, report)


def net_config(keywords, weights, codec, weights_path):
    """Arguments of the net as plain values: settings of the file, sizes of its weights."""
    target = VptInverseDynamics if "conv3d_params" in keywords else VptPolicy
    known = inspect.signature(target).parameters
    config = {name: value for name, value in keywords.items() if name in known}
    try:
        config["attention_heads"] = weights[HEADS].shape[0] // N_BASIS  # 1x and 3x files do not say
        buttons, camera = (weights[HEAD.format(name)].shape[0] for name in ("buttons", "camera"))
    except KeyError as error:
        raise DataError(f"{weights_path} has no {error}: not the weights of a VPT net") from error
    if target is VptInverseDynamics:
        sizes, expected = {"n_keys": buttons // 2, "n_bins": camera // 2}, (codec.n_keys, codec.n_bins)
    else:
        sizes, expected = {"n_buttons": buttons, "n_camera": camera}, (codec.n_buttons, codec.n_camera)
        config.update(camera_null=codec.camera_null)
        if codec.camera_on != [i % 2 == 1 for i in range(codec.n_buttons)]:  # the net's default spares 8,641 lines
            config.update(camera_on=codec.camera_on)
    if tuple(sizes.values()) != expected:
        raise DataError(f"{weights_path} has {sizes}, {codec.spec.name!r} actions have {expected}; pass its own spec")
    config = {"_target_": f"{target.__module__}.{target.__qualname__}", **config, **sizes}
    return checkpoint.plain(config, "net")


def compare(expected, weights, path):
    """LoadReport of names; DataError for wrong sizes, for a missing parameter that is needed, and for a deeper net."""
    wrong = [
        f"{name}: file has {list(weights[name].shape)}, its .model says {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        raise DataError(f"{path} does not belong to this .model file: {listed(wrong)}")
    missing = tuple(name for name in expected if name not in weights)
    needed = [name for name in missing if not name.startswith(OPTIONAL)]
    if needed:
        raise DataError(f"{path} lacks parameters of the net: {listed(needed)}")
    unexpected = tuple(name for name in weights if name not in expected)
    surplus = [name for name in unexpected if name.startswith(CORE)]
    if surplus:
        raise DataError(f"{path} has parameters that the net of its .model file lacks: {listed(surplus)}")
    return LoadReport(missing, unexpected)


def listed(faults, most=6):
    return "; ".join(faults[:most]) + (f"; and {len(faults) - most} more" if len(faults) > most else "")


def convert(model_path, weights_path, folder, spec=MINECRAFT):
    """Writes the net as a hub folder (`pipelines.checkpoint`) and returns the LoadReport."""
    release = build(model_path, weights_path, spec)
    files = {Path(path).name: checkpoint.file_sha256(path) for path in (model_path, weights_path)}
    lead = "A network of the VPT release (arXiv:2206.11795), converted from its own files.\n\n"
    lead += f"```\n{release.report}\n```"
    kind = "inverse-dynamics" if isinstance(release.net, VptInverseDynamics) else "policy"
    text = card.render(Path(weights_path).stem, kind, lead, {"sha256 of the files": files}, command_line())
    extras = {"actions": spec, "size": release.net.frame_shape[:2], "fps": FPS, "source_sha256": files}
    checkpoint.save(folder, release.config, release.net, extras, text)
    return release.report
