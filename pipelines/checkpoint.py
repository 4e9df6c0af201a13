"""A hub folder: everything needed to use a network elsewhere, readable without running anything it contains.

    config.yaml         net: {_target_: models.inverse_dynamics.InverseDynamics, ...}, actions, size, fps, schema
    model.safetensors   weights
    statistics.json     numbers measured in training: normalisers, `label_report`
    README.md           model card

Only classes under `models.` are built, pickles are never opened, and `config.yaml` records the sha256 of the weights:
it is written last, so a folder whose writer was killed, or whose bytes changed, is told from a good one. Both texts
carry a checksum of their values, `check`: a wrong digit in `fps` would otherwise make wrong labels, and no error.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines import base_weights, untrusted
from pipelines.actions import ActionSpec, spec_from
from pipelines.construct import build, build_to_fit, check_targets, construct, find_class
from pipelines.remote import CARD, CONFIG, STATISTICS, WEIGHTS, find
from pipelines.schema import SCHEMA_VERSION, DataError

__all__ = [
    "CARD", "CONFIG", "STATISTICS", "WEIGHTS", "Bundle", "build", "check_targets", "construct", "find_class", "load",
    "plain", "save", "update_statistics",
]  # fmt: skip

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".weights", ".model")
MAX_CONFIG_BYTES = 1 << 20  # the largest of ours, with 8,641 action classes, has 0.1 MB
MAX_STATISTICS_BYTES = 16 << 20
MAX_SIDE = 4096  # pixels of a frame's side
CHECK, CHECKSUM = "check", re.compile("[0-9a-f]{16}")  # entry of a text with the checksum of all others


@dataclass(frozen=True)
class Bundle:
    """A loaded folder. `sha256` identifies config, weights and statistics, but not the card or the label report."""

    net: nn.Module  # eval mode, on the CPU
    spec: ActionSpec | None
    size: tuple[int, int] | None  # (height, width) of the frames it takes
    fps: float | None
    config: dict
    statistics: dict
    sha256: str
    origin: str | None = None  # owner/name@commit of one that came from the hub


def save(folder, net_config, net, extras, card):
    """Writes `net`, built by `net_config` ({_target_: models...., plain values}), as a hub folder; returns its path.

    extras: `actions` (ActionSpec or dict), `size` (h, w), `fps`, `statistics` (dict), `base` ({"init": a language
    model whose weights are left out, see pipelines.base_weights}), anything else plain goes to config.yaml as it is.
    card: text of README.md.
    """
    extras = dict(extras)
    statistics = plain(extras.pop("statistics", {}), "statistics")
    if isinstance(extras.get("actions"), ActionSpec):
        extras["actions"] = extras["actions"].to_dict()
    config = {"schema": SCHEMA_VERSION, "net": plain(net_config, "net"), **plain(extras, "extras")}
    config["measured"] = sorted(statistics)  # so that a lost statistics.json is missed
    check_targets(config["net"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
    if "base" in config:
        weights, config["base"]["sha256"] = base_weights.split(net, weights)
    config["weights_sha256"] = replace(folder / WEIGHTS, lambda part: save_file(weights, part))
    write_statistics(folder, statistics, config["weights_sha256"])
    write_text(folder / CARD, card.rstrip("\n") + "\n")
    write_text(folder / CONFIG, yaml.safe_dump(sealed(config), sort_keys=False, allow_unicode=True))  # the commit point
    return folder


def load(where):
    """A hub folder, a run directory that holds one, or a name on the hub (`pipelines.remote`) -> Bundle.

    The network is in eval mode; DataError says what is wrong with the folder.
    """
    found = find(where)
    try:
        return dataclasses.replace(read(found.folder), origin=found.origin)
    except DataError as error:
        if found.origin is None:
            raise
        hint = f"if the download was damaged, delete {found.folder.parents[1]} and run again; else tell its author"
        raise DataError(f"{found.origin} from the hub: {error}. {hint[0].upper()}{hint[1:]}") from error


def device(name):
    """ "cpu" or "cuda", of auto, cpu or cuda; DataError for cuda where torch sees no GPU."""
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not there):
        raise DataError(f"device={name}: expected cpu, auto or, where torch sees a GPU, cuda")
    return ("cuda" if there else "cpu") if name == "auto" else name


def read(folder):
    """The Bundle in a local folder."""
    config = read_config(folder)
    weights, weights_sha256 = read_weights(folder)
    if config.get("weights_sha256") not in (None, weights_sha256):
        raise DataError(
            f"{folder / WEIGHTS} has sha256 {weights_sha256[:12]}, but {CONFIG} was written for"
            f" {str(config['weights_sha256'])[:12]}: the weights changed or the writer was stopped; save or copy it"
            " again"
        )
    spec, size, fps = contract(config, folder)
    weights = base_weights.joined(config, weights, folder)
    net = build_to_fit(config["net"], weights, folder)
    net.load_state_dict(weights)
    statistics = read_statistics(folder, weights_sha256)
    measured = config.get("measured", [])  # absent in folders of earlier versions
    if not isinstance(measured, list) or not all(isinstance(name, str) for name in measured):
        raise DataError(f"{folder / CONFIG}: measured={measured!r:.60}: expected the names in {STATISTICS}")
    if lost := sorted(set(measured) - statistics.keys()):
        raise DataError(f"{folder / STATISTICS} is missing or lacks {lost[:5]}, without which the model would act on"
                        " inputs of another unit; copy the whole folder again")  # fmt: skip
    return Bundle(net.eval(), spec, size, fps, config, statistics, content_hash(config, statistics, weights_sha256))


def contract(config, folder):
    """(action spec, (height, width), frames/s) of a config, each None where it has none; DataError for nonsense."""
    spec, size, fps = (config.get(name) for name in ("actions", "size", "fps"))
    try:
        spec = None if spec is None else spec_from(spec)
        size = None if size is None else tuple(map(int, size))
        fps = None if fps is None else float(fps)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{folder / CONFIG}: actions, size or fps is not what it should be ({error})") from error
    if size is not None and (len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size)):
        raise DataError(f"{folder / CONFIG}: size is {size}, expected [height, width] up to {MAX_SIDE}")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise DataError(f"{folder / CONFIG}: fps is {fps}, expected a positive number")
    return spec, size, fps


def update_statistics(folder, values):
    """Merges `values` into the statistics.json of a local folder (a label report measured after training, say)."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder} is no hub folder on this machine; statistics are written to local ones only")
    weights_sha256 = file_sha256(folder / WEIGHTS)
    write_statistics(folder, read_statistics(folder, weights_sha256) | plain(values, "statistics"), weights_sha256)


def write_statistics(folder, statistics, weights_sha256):
    text = json.dumps(sealed(statistics, weights_sha256), indent=1, sort_keys=True)
    write_text(folder / STATISTICS, f"{text}\n")


def sealed(values, weights_sha256=None):
    """`values` with their checksum, which comes first: a file that is cut short keeps it."""
    return {CHECK: checksum(values, weights_sha256), **values}


def unsealed(values, path, weights_sha256=None):
    """`values` without their checksum, if they have one; DataError if it is that of other values or weights."""
    values = dict(values)
    given = values.pop(CHECK, None)
    renamed = given is None and any(CHECKSUM.fullmatch(value) for value in values.values() if isinstance(value, str))
    try:
        intact = not renamed and given in (None, checksum(values, weights_sha256))
    except TypeError as error:  # names that cannot be put in order
        raise DataError(f"{path} has names that are no text ({error}); copy it again") from error
    if not intact:
        raise DataError(
            f"{path} is damaged or was changed (its checksum differs); copy it again or, if the change is yours, delete"
            f" its entry `{CHECK}`"
        )
    return values


def checksum(*values):
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_config(folder):
    if not folder.is_dir():
        raise DataError(f"{folder} is not a hub folder: expected a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        if (folder / "config.json").is_file():
            raise DataError(f"{folder} has no {CONFIG} but a config.json: a folder of transformers? `python -m"
                            f" pipelines.convert dt={folder} out=<folder>` makes a hub folder of it")  # fmt: skip
        raise DataError(f"{folder} has no {CONFIG}: not a hub folder, or its writer was stopped before the end")
    config = untrusted.read_yaml(folder / CONFIG, MAX_CONFIG_BYTES)
    if not isinstance(config, dict) or "net" not in config:
        raise DataError(f"{folder / CONFIG} has no `net` entry: not the config of a hub folder; of a run that failed or"
                        " has several models give the folder of one")  # fmt: skip
    if config.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"{folder / CONFIG} has schema {config.get('schema')!r}, this version reads {SCHEMA_VERSION};"
            " save the model again or install the matching release"
        )
    return unsealed(config, folder / CONFIG)


def read_statistics(folder, weights_sha256):
    path = folder / STATISTICS
    if not path.is_file():
        return {}
    statistics = untrusted.read_json(path, MAX_STATISTICS_BYTES)
    if not isinstance(statistics, dict) or not isinstance(statistics.get("label_report", {}), dict):
        raise DataError(f"{path} is no table of named numbers; copy the folder again, or delete this file")
    return unsealed(statistics, path, weights_sha256)


def read_weights(folder):
    """-> (name -> tensor, sha256 of the file). Never opens a pickle."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        hint = f"; it holds {pickles}, which may be pickles and are refused: convert to safetensors" if pickles else ""
        raise DataError(f"{folder} has no {WEIGHTS}{hint}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged or not safetensors ({error}); copy it again") from error
    if broken := [name for name, value in weights.items() if value.is_floating_point() and value.isnan().any()]:
        raise DataError(f"{path} holds NaN in {broken[:5]}: its training diverged, or the file is damaged")
    return weights, file_sha256(path)


def content_hash(config, statistics, weights_sha256):
    """sha256 over what decides the model's output. The label report only describes it, so it stays out."""
    statistics = {name: value for name, value in statistics.items() if name != "label_report"}
    text = json.dumps([config, statistics, weights_sha256], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value, path):
    """Nested numbers, strings, lists and dicts of `value` (numpy scalars and tuples converted), else DataError."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(name): plain(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy, torch
        return plain(value.tolist(), path)
    if isinstance(value, tuple | list) or hasattr(value, "__iter__"):
        return [plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise DataError(f"{path} is a {type(value).__name__}; a hub folder stores numbers, strings, lists and dicts only")


def write_text(path, text):
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def replace(path, write):
    """Calls write(<temporary path>), syncs and renames it to `path`; returns the sha256 of what was written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        digest = file_sha256(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return digest


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
