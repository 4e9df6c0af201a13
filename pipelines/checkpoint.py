"""A hub folder: everything needed to use a network elsewhere, readable without running anything it contains.

    config.yaml         net: {_target_: models.inverse_dynamics.InverseDynamics, ...}, actions, size, fps, schema
    model.safetensors   weights
    statistics.json     numbers measured in training: normalisers, `label_report`
    README.md           model card

Only classes under `models.` are built, pickles are never opened, and `config.yaml` records the sha256 of the weights:
it is written last, so a folder whose writer was killed, or whose bytes changed, is told from a good one.
"""

import hashlib
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.actions import ActionSpec, spec_from
from pipelines.schema import SCHEMA_VERSION, DataError

CONFIG, WEIGHTS, STATISTICS, CARD = "config.yaml", "model.safetensors", "statistics.json", "README.md"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".weights", ".model")
PACKAGE = "models"  # the only package whose classes a folder may name
MAX_TEXT_BYTES = 16 << 20  # of config.yaml and statistics.json


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


def save(folder, net_config, net, extras, card):
    """Writes `net`, built by `net_config` ({_target_: models...., plain values}), as a hub folder; returns its path.

    extras: `actions` (ActionSpec or dict), `size` (h, w), `fps`, `statistics` (dict), anything else plain goes to
    config.yaml as it is. card: text of README.md.
    """
    extras = dict(extras)
    statistics = plain(extras.pop("statistics", {}), "statistics")
    if isinstance(extras.get("actions"), ActionSpec):
        extras["actions"] = extras["actions"].to_dict()
    config = {"schema": SCHEMA_VERSION, "net": plain(net_config, "net"), **plain(extras, "extras")}
    check_targets(config["net"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
    config["weights_sha256"] = replace(folder / WEIGHTS, lambda part: save_file(weights, part))
    write_text(folder / STATISTICS, json.dumps(statistics, indent=1, sort_keys=True) + "\n")
    write_text(folder / CARD, card.rstrip("\n") + "\n")
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))  # the commit point
    return folder


def load(folder):
    """Reads a hub folder -> Bundle with the network in eval mode; DataError says what is wrong with it."""
    folder = Path(folder)
    config = read_config(folder)
    statistics = read_statistics(folder)
    weights, weights_sha256 = read_weights(folder)
    if config.get("weights_sha256") not in (None, weights_sha256):
        raise DataError(
            f"{folder / WEIGHTS} has sha256 {weights_sha256[:12]}, but {CONFIG} was written for"
            f" {config['weights_sha256'][:12]}: the weights changed or the writer was stopped; save or copy it again"
        )
    net = build(config["net"])
    load_weights(net, weights, folder)
    actions, size = config.get("actions"), config.get("size")
    return Bundle(
        net=net.eval(),
        spec=None if actions is None else spec_from(actions),
        size=None if size is None else tuple(int(n) for n in size),
        fps=None if config.get("fps") is None else float(config["fps"]),
        config=config,
        statistics=statistics,
        sha256=content_hash(config, statistics, weights_sha256),
    )


def update_statistics(folder, values):
    """Merges `values` into the folder's statistics.json (a label report measured after training, say)."""
    folder = Path(folder)
    statistics = {**read_statistics(folder), **plain(values, "statistics")}
    write_text(folder / STATISTICS, json.dumps(statistics, indent=1, sort_keys=True) + "\n")


def build(net_config):
    """{_target_: models.<module>.<Class>, ...} -> module. Nested dicts with a `_target_` are built first."""
    check_targets(net_config)
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random stream
        return construct(net_config)


def construct(value):
    if isinstance(value, dict):
        built = {name: construct(item) for name, item in value.items() if name != "_target_"}
        if "_target_" not in value:
            return built
        target = find_class(value["_target_"])
        try:
            return target(**built)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{value['_target_']} cannot be built from {CONFIG}: {error}") from error
    return [construct(item) for item in value] if isinstance(value, list) else value


def check_targets(value, path="net"):
    """DataError unless every `_target_` in a nested config is a class of our own `models` package."""
    if path == "net" and (not isinstance(value, dict) or "_target_" not in value):
        raise DataError(f"{CONFIG} has no net._target_; expected e.g. models.inverse_dynamics.InverseDynamics")
    if isinstance(value, dict):
        hidden = [name for name in value if str(name).startswith("_") and name != "_target_"]
        if hidden:
            raise DataError(f"{path} uses {hidden}: only _target_ and plain arguments are allowed in a hub folder")
        if "_target_" in value:
            find_class(value["_target_"])
        for name, item in value.items():
            check_targets(item, f"{path}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_targets(item, f"{path}[{i}]")


def find_class(target):
    """`models.<module>.<Class>` -> that class, refusing what a module merely imported (`models.vpt.torch...`)."""
    module_name, _, name = str(target).rpartition(".")
    refused = DataError(f"{CONFIG} asks for {target!r}; only classes defined under {PACKAGE}. may be built")
    if not module_name.startswith(PACKAGE + "."):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise DataError(f"{CONFIG} asks for {target!r}, which this version does not have ({error})") from error
    if not isinstance(found, type) or found.__module__ != module_name:
        raise refused
    return found


def load_weights(net, weights, folder):
    """Copies `weights` into `net`; DataError names every missing, unexpected or wrong-size tensor."""
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    faults = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in given]
    faults += [f"unexpected {name} {list(shape)}" for name, shape in given.items() if name not in expected]
    faults += [
        f"{name}: file has {list(given[name])}, config.yaml builds {list(shape)}"
        for name, shape in expected.items()
        if given.get(name, shape) != shape
    ]
    if faults:
        listed = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise DataError(f"the weights in {folder} do not fit their config.yaml: {listed}")
    net.load_state_dict(weights)


def read_config(folder):
    if not folder.is_dir():
        raise DataError(f"{folder} is not a hub folder: expected a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder} has no {CONFIG}: not a hub folder, or its writer was stopped before the end")
    try:
        config = yaml.safe_load(read_text(folder / CONFIG))
    except yaml.YAMLError as error:
        raise DataError(f"{folder / CONFIG} is not plain YAML: {error}") from error
    if not isinstance(config, dict) or "net" not in config:
        raise DataError(f"{folder / CONFIG} has no `net` entry: not the config of a hub folder")
    if config.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"{folder / CONFIG} has schema {config.get('schema')!r}, this version reads {SCHEMA_VERSION};"
            " save the model again or install the matching release"
        )
    return config


def read_statistics(folder):
    path = folder / STATISTICS
    if not path.is_file():
        return {}
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


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


def read_text(path):
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DataError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB: not a file of a hub folder")
    return path.read_text(encoding="utf-8")


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
