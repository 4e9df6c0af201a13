"""Folders of transformers' `DecisionTransformerModel` <-> hub folders: weights, statistics, what the actions mean.

    config.json          sizes of the net and, in later exports, state_mean, state_std, returns_scale, context_size;
                         ours add action_low, action_high, condition, returns (quantiles of the data's), targets
    model.safetensors    or pytorch_model.bin, a pickle, of which tensors alone are read

A statistic is what the user gives, else what config.json says, else that of the card of an early Hopper checkpoint.
"""

import inspect
import json
import logging
import math
import re
from pathlib import Path

from safetensors.torch import save_file

from models.decision_transformer import DecisionTransformer
from pipelines import card, checkpoint, construct, remote, untrusted, vpt_release
from pipelines.command import command_line
from pipelines.dt_release import HOPPER, export_weights, import_weights, net_config, their_config
from pipelines.schema import DataError
from pipelines.trajectories import Spaces
from pipelines.trajectory_windows import Normalizer
from pipelines.values import is_number, is_whole

CONFIG, WEIGHTS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
STATISTICS = ("state_mean", "state_std", "returns_scale")
PASSED = ("returns", "targets")  # {name: number}, of our own exports
EARLY = re.compile(r"gym-hopper-(medium-replay|medium|expert)$")
SCALE = 1000.0  # of the returns, in the recipe of all three
SAME = {  # settings of ours with which a DecisionTransformerModel computes the same
    "layout": ("interleaved",), "embed": ("linear",), "time": ("before",), "head": ("tanh", "linear"),
    "n_actions": (None,), "condition_dim": (1,), "trunk": (None,),
}  # fmt: skip
log = logging.getLogger("foundation-policy")


# theirs -> ours


def import_folder(where, out, given):
    """Writes their model, of a folder or a name on the hub, as a hub folder.

    given: {state_mean, state_std, returns_scale, context_size, action_low, action_high: value, or None for theirs}.
    """
    found = located(where)
    refuse(out, CONFIG)
    config, (weights, digest) = read_config(found.folder), read_weights(found.folder)
    known, origins = facts(config, {name: v for name, v in given.items() if v is not None}, name_of(found))
    net, settings = built(config | {"context_size": known["context_size"]}, weights, found.folder)
    if settings["head"] == "linear" and {"action_low", "action_high"} & origins["usual"]:
        raise DataError(
            f"action_tanh is false in {CONFIG}: actions may lie beyond [-1, 1], where this program cuts; give low= and"
            " high=, the actions that the network's -1 and 1 stand for"
        )
    values = statistics(known, settings) | {name: passed(config[name], name) for name in PASSED if name in config}
    extras = {
        "spaces": spaces(known, settings).to_dict(), "condition": known["condition"], "statistics": values,
        "source_sha256": digest,
    }  # fmt: skip
    source, told = found.origin or found.folder, {place: sorted(names) for place, names in origins.items() if names}
    lead = (
        f"A `DecisionTransformerModel` of transformers, read from `{source}`. Ask it for a return:"
        " `python -m foundation.evaluate policy=<this folder> target=<return> task=...`."
    )
    tables = {"Where its statistics are from": told, "Source": {"sha256 of the weights": digest}}
    text = card.render(name_of(found), "policy", lead, tables, command_line())
    checkpoint.save(out, settings, net, extras, text)
    log.info("%s: %s", source, "; ".join(f"{place}: {', '.join(names)}" for place, names in told.items()))


def located(where):
    """remote.Found: their three files in a folder here, or of owner/name[@revision] on the hub."""
    name = remote.named(where)
    if name is None:
        return remote.Found(Path(where))
    folder = remote.snapshot(*name, (CONFIG, WEIGHTS, PICKLE))
    return remote.Found(folder, f"{name[0]}@{folder.name}")


def name_of(found):
    return found.origin.partition("@")[0] if found.origin else found.folder.resolve().name


def read_config(folder):
    if not (folder / CONFIG).is_file():
        ours = "; it is a hub folder already" if (remote.find(folder).folder / remote.CONFIG).is_file() else ""
        raise DataError(f"{folder} has no {CONFIG}: expected a folder of transformers' DecisionTransformerModel{ours}")
    config = untrusted.read_json(folder / CONFIG, checkpoint.MAX_CONFIG_BYTES)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "decision_transformer":
        raise DataError(f"{folder / CONFIG} has model_type={kind!r}: expected decision_transformer")
    return config


def read_weights(folder):
    """-> (state dict of theirs, sha256 of the file)"""
    if (folder / WEIGHTS).is_file():
        return checkpoint.read_weights(folder)
    path = folder / PICKLE
    if not path.is_file():
        raise DataError(f"{folder} has neither {WEIGHTS} nor {PICKLE}; download it again, with its weights")
    return vpt_release.load_weights(path), checkpoint.file_sha256(path)


def facts(config, given, name):
    """({name: value}, {where they come from: set of names}); DataError names what nobody knows."""
    early = EARLY.search(name)
    table = dict(zip(STATISTICS, (*HOPPER[early[1]], SCALE), strict=True)) if early else {}
    usual = {"context_size": 20, "action_low": -1.0, "action_high": 1.0, "condition": "return"}
    places = {"given": given, CONFIG: config, "card of the Hopper checkpoint": table, "usual": usual}
    known, origins = {}, {place: set() for place in places}
    for wanted in (*STATISTICS, *usual):
        place = next((place for place, values in places.items() if values.get(wanted) is not None), None)
        if place is not None:
            known[wanted] = places[place][wanted]
            origins[place].add(wanted)
    missing = [wanted for wanted in STATISTICS if wanted not in known]
    if missing:
        raise DataError(
            f"the {CONFIG} of {name} does not have {', '.join(missing)}; give"
            f" {' '.join(f'{wanted}=...' for wanted in missing)} as its card or training code has them (one number for"
            " all dimensions or a list of them; states that were not normalised: state_mean=0 state_std=1)"
        )
    return known, origins


def built(config, weights, folder):
    """(net of ours with their weights, its settings); DataError where they do not fit each other."""
    context = config["context_size"]
    if not is_whole(context) or context < 1:
        raise DataError(f"context={context!r}: expected the steps that the network was trained on, at least 1")
    try:
        settings = net_config(config)
        ours = {name: value.float() for name, value in import_weights(weights).items()}
        net = construct.build_to_fit(settings, ours, folder)
    except construct.BUILD_ERRORS as error:
        raise DataError(f"{folder} holds no Decision Transformer: {error}") from error
    except DataError as error:  # of our own folders it would be config.yaml
        raise DataError(str(error).replace(remote.CONFIG, CONFIG)) from error
    net.load_state_dict(ours)
    return net.eval(), settings


def statistics(known, settings):
    """What goes to statistics.json; DataError unless the values are what they should be."""
    values = {name: numbers(known[name], settings["state_dim"], name) for name in ("state_mean", "state_std")}
    Normalizer.from_dict(values)
    (scale,) = numbers(known["returns_scale"], 1, "returns_scale")
    if scale <= 0:
        raise DataError(f"returns_scale={scale}: expected more than 0")
    return {**values, "returns_scale": scale, "context_size": settings["context"]}


def spaces(known, settings):
    n = settings["action_dim"]
    low, high = (numbers(known[name], n, name) for name in ("action_low", "action_high"))
    if not all(a < b for a, b in zip(low, high, strict=True)):
        raise DataError(f"low={low}, high={high}: expected low below high in every dimension")
    if known["condition"] not in ("return", "delayed", "none"):
        raise DataError(f"condition={known['condition']!r} in {CONFIG}: expected return, delayed or none")
    return Spaces(settings["state_dim"], n, low=tuple(low), high=tuple(high))


def numbers(value, n, name):
    """n finite floats, of one number for all or a list of n."""
    values = value if isinstance(value, list | tuple) else [value] * n
    if len(values) != n or not all(is_number(v) and math.isfinite(v) for v in values):
        raise DataError(f"{name}: expected {n} finite numbers, or one for all, got {len(values)}: {str(value)[:80]}")
    return [float(v) for v in values]


def passed(values, name):
    if not isinstance(values, dict) or not all(map(is_number, values.values())):
        raise DataError(f"{name} in {CONFIG} is {str(values)[:80]}; expected {{name: number}}")
    return values


# ours -> theirs


def export_folder(where, out):
    """Writes a policy of method=dt, of a run, a hub folder or the hub, as transformers reads it."""
    bundle, out = checkpoint.load(where), Path(out)
    refuse(out, remote.CONFIG)
    if type(bundle.net) is not DecisionTransformer:
        raise DataError(f"{where} holds a {type(bundle.net).__name__}; transformers has a model for method=dt only")
    defaults = {p.name: p.default for p in inspect.signature(DecisionTransformer).parameters.values()}
    settings = defaults | bundle.config["net"]
    odd = [f"{name}={str(settings[name])[:40]}" for name, fits in SAME.items() if settings[name] not in fits]
    odd += [f"data.{option} per task" for option, key in (("normalise", "by"), ("return_scale", "returns_by"))
            if bundle.statistics.get(key)]  # fmt: skip
    if odd:
        raise DataError(f"{where} has {', '.join(odd)}, which a DecisionTransformerModel of transformers cannot have")
    n, acts = settings["state_dim"], Spaces.from_dict(bundle.config.get("spaces", {}))
    raw = {"state_mean": [0.0] * n, "state_std": [1.0] * n, "returns_scale": 1.0}
    known = {name: bundle.statistics[name] for name in (*STATISTICS, *PASSED) if name in bundle.statistics}
    config = their_config(settings) | raw | known | {
        "context_size": bundle.net.context, "action_low": acts.low, "action_high": acts.high,
        "condition": bundle.config.get("condition", "return"),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in export_weights(bundle.net).items()}
    checkpoint.replace(out / WEIGHTS, lambda part: save_file(weights, part, metadata={"format": "pt"}))
    checkpoint.write_text(out / remote.CARD, CARD.format(**config))
    checkpoint.write_text(out / CONFIG, json.dumps(config, indent=1) + "\n")


def refuse(out, other):
    """DataError if `out` holds a model of the other kind, whose weights have the same name."""
    if (Path(out) / other).is_file():
        raise DataError(f"out={out} holds a model with its {other}; choose another folder")


CARD = """\
---
library_name: transformers
tags: [decision_transformer, reinforcement-learning]
---

# Decision Transformer

```python
from transformers import DecisionTransformerModel
model = DecisionTransformerModel.from_pretrained("<this folder>")
```

The statistics are in `config.json`, so in `model.config`:

- states: `(state - state_mean) / state_std`
- returns to go: divided by `returns_scale` = {returns_scale:g}; `condition` is `{condition}` (`return`: rewards are
  taken off as they come; `delayed`: the whole return at every step; `none`: always 0)
- actions in [-1, 1] stand for `action_low` to `action_high` in the environment, also where past ones are told
- the model was trained on the last `context_size` = {context_size} steps; timesteps go up to {max_ep_len} - 1
"""
