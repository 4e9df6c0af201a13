"""Checks of what a command was given, before it begins: names that it knows, values of the right kind.

What is right follows from the YAML: a name must be in it, or be an argument of the class that its group describes
(`_target_`); a value must be of the kind of the value there. Where that is null, `KINDS` has the kind by name.
"""

import inspect
import re
from difflib import get_close_matches
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import OmegaConf

from pipelines.schema import DataError

CONFIGS = str(Path(__file__).resolve().parents[1] / "configs")
MAX_SEED = 2**32 - 1  # NumPy's
CLASSES = {"trainer": "lightning.Trainer", "method.optimizer": "torch.optim.AdamW"}  # groups that take their arguments
FREE = {"task.evaluation": ("env",)}  # groups -> names that they may have; the environment takes what is below
SIZES = {"batch_size", "dim", "heads", "hidsize", "latent_dim", "width"}  # nothing has none of these
FRACTIONS = {"alpha", "impala_width", "limit_mb", "updates_per_frame"}  # numbers whose default happens to be whole


def is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN is none


def is_text(value):
    return isinstance(value, str)


def list_of(fits):
    return lambda value: isinstance(value, list) and all(map(fits, value))


def any_of(*tests):
    return lambda value: any(fits(value) for fits in tests)


def is_label(value):
    return is_number(value) or is_text(value)


def is_group(value):
    return isinstance(value, dict)


ANYTHING = "anything", lambda value: True
BOOL = "true or false", lambda value: isinstance(value, bool)
SIZE = "a whole number of at least 1", lambda value: is_whole(value) and value >= 1
COUNT = "a whole number of at least 0", lambda value: is_whole(value) and value >= 0
SEED = "a whole number in 0..2^32-1", lambda value: is_whole(value) and 0 <= value <= MAX_SEED
WHOLE = "a whole number", is_whole
NUMBER = "a number", is_number
GROUP = "a group of values, {name: value}", is_group
TEXT = "text (in quotes, if it looks like a number)", is_text
LISTS = {  # of kinds
    WHOLE: ("a list of whole numbers", list_of(is_whole)),
    NUMBER: ("a list of numbers", list_of(is_number)),
    TEXT: ("a list of texts", list_of(is_text)),
    ANYTHING: ("a list", list_of(ANYTHING[1])),
}
LENGTHS = "a whole number or a list of them", any_of(is_whole, list_of(is_whole))
SHARES = (
    "shares, {name: number}, or a list of numbers",
    lambda value: list_of(is_number)(list(value.values()) if is_group(value) else value),
)
TABLE = {  # of names that are null, empty, required or taken from elsewhere in the YAML
    TEXT: "after answers artifact basedir best clean clip_model clips cursor_image dir dpt dt ends exemplars format"
    " from idm init keep labels logs message model normalise nulls out policy prior prior_labels prompt reference"
    " repo revision sheet shards task_name to tokenizer train truth weights",
    ("text or a list of texts", any_of(is_text, list_of(is_text))): "runs targets videos",
    LISTS[NUMBER]: "goals shares",
    LISTS[TEXT]: "also heldout observation only pretrained seeds",
    ("a list of whole numbers in 0..2^32-1", list_of(SEED[1])): "run.seeds",
    COUNT: "action_dim camera_null camera_on context episode_steps episodes goal_dim height length limit maps"
    " max_timestep n_actions n_bins n_buttons n_camera n_keys queries representation_steps skills state_dim stop_after"
    " stride threads vocabulary width workers",
    NUMBER: "encoder_lr fps gamma grad_clip gradient_clip_val hours noise returns_scale reward_scale spread"
    " target_entropy timeout_seconds",
    BOOL: "carry greedy roam",
    GROUP: "actor_goals augment base numbers shift tags where",
    ("text or a group of values", any_of(is_text, is_group)): "encoder reward",
    ("a whole number or a group of values", any_of(is_whole, is_group)): "tasks",
    ("a number or text", is_label): "return_scale validation",
    ("a number, text or a list of them", any_of(is_label, list_of(is_label))): "target",
    ("a number or a list of numbers", any_of(is_number, list_of(is_number))): "high low scale state_mean state_std",
    ("a number or tags, {name: value}", any_of(is_number, is_group)): "best_return random_return",
    SHARES: "mix",
}
KINDS = {name: kind for kind, names in TABLE.items() for name in names.split()}


def check_values(cfg, name):
    """DataError for inputs of a command not given (`???`), names it does not know or lacks, values of another kind."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise DataError(f"set {' '.join(f'{key}=...' for key in missing)} (--help says what they are)")
    given, base = OmegaConf.to_container(cfg), OmegaConf.to_container(defaults(name))
    wrong = [complaint for look in (unknown, wrong_kinds, lacking) for complaint in look(given, base)]
    if wrong:
        raise DataError("; ".join(wrong))


def defaults(name):
    """The config of a command with the groups chosen for it and nothing else.

    Experiments are left out: their values are those of a command or group, for one purpose.
    """
    choices = {g: c for g, c in HydraConfig.get().runtime.choices.items() if c and g.split("/")[0] != "hydra"}
    choices.pop("experiment", None)
    chosen = [f"{group}={choice}" for group, choice in choices.items()]
    if not all((Path(CONFIGS) / group.split("@")[0] / f"{choice}.yaml").is_file() for group, choice in choices.items()):
        return hydra.compose(name, chosen)  # a group's YAML in a folder of one's own
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # so that the YAML is ours also where --config-path names another folder
    try:
        with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
            return hydra.compose(name, chosen)
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().initialize(running)


def unknown(given, base, prefix=""):
    """Complaints about names that the YAML has not, unless the class that a group describes takes them."""
    group = prefix.rstrip(".")
    for name, value in given.items():
        if name in base:
            if isinstance(value, dict) and isinstance(base[name], dict) and base[name]:
                yield from unknown(value, base[name], f"{prefix}{name}.")
        elif name not in FREE.get(group, ()) and group != "task.evaluation.env":
            taken = arguments(given.get("_target_", CLASSES.get(group)))
            if taken is not None and name not in taken:
                near = [f"{prefix}{known}" for known in get_close_matches(name, sorted({*base, *taken}), 2)]
                yield f"there is no {prefix}{name}; {hint(near)}"


def hint(near):
    return f"did you mean {' or '.join(near)}?" if near else "--help lists what there is"


def arguments(target):
    """Names that a class takes, with those it hands on to the classes it extends; None: unknown, it will say itself."""
    names = set()
    if target is None:
        return names
    try:
        kind = get_class(target)
    except Exception:  # whatever goes wrong in a module that is imported
        return None
    for part in kind.__mro__:
        parameters = list(inspect.signature(part.__init__).parameters.values())[1:]  # without self
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def lacking(given, base, prefix=""):
    """Complaints about names that the YAML has and `given` has not: a config file of one's own, or a damaged one."""
    for name, default in base.items():
        if name not in given:
            yield f"{prefix}{name} is missing in the config files"
        elif isinstance(default, dict) and isinstance(given[name], dict):
            yield from lacking(given[name], default, f"{prefix}{name}.")


def wrong_kinds(given, base, prefix=""):
    """Complaints about values whose kind differs from that of the value in the YAML.

    Null fits where the YAML has it, and inside of a group in place of values that belong together: none of them.
    """
    for name, default in base.items():
        if name not in given or (prefix == "" and name == "trainer"):  # Lightning checks those values
            continue
        value, (words, fits) = given[name], kind(name, default, prefix)
        if (isinstance(value, str) and "${" in value) or (value is None and nullable(default, prefix)):
            continue
        if not fits(value):
            yield f"{prefix}{name}={value} must be {words}"
        elif isinstance(default, dict) and default:
            yield from wrong_kinds(value, default, f"{prefix}{name}.")


def nullable(default, prefix):
    return default is None or (bool(prefix) and isinstance(default, dict))


def kind(name, default, prefix=""):
    """(in words, test) of what may stand in place of the default value of that name in the groups of `prefix`."""
    if str(name).endswith("seed"):
        return SEED
    if default in (None, [], {}, "???") or (is_text(default) and "${" in default):
        return KINDS.get(f"{prefix}{name}", KINDS.get(name, ANYTHING))
    if isinstance(default, bool):
        return BOOL
    if is_number(default):
        if not is_whole(default) or name in FRACTIONS:
            return NUMBER
        return WHOLE if default < 0 else SIZE if name in SIZES else COUNT  # none of ours counts below zero
    if isinstance(default, dict):
        return GROUP
    if isinstance(default, list):
        if name == "length":
            return LENGTHS
        return next(found for (_, fits), found in LISTS.items() if all(map(fits, default)))
    return ANYTHING


def explain(error, name):
    """What Hydra's error about an override of the command means, with the names that may have been meant."""
    lost = re.search(r"Could not find '([^/']+)/([^']+)'", str(error))
    if lost and (Path(CONFIGS) / lost[1]).is_dir():
        known = sorted(path.stem for path in (Path(CONFIGS) / lost[1]).glob("*.yaml"))
        near = [f"{lost[1]}={one}" for one in get_close_matches(lost[2], known, 3, 0.5)]
        return f"there is no {lost[1]}={lost[2]}; " + (hint(near) if near else f"there are {', '.join(known)}")
    found = re.match(r"Could not override '([^']+)'", str(error))
    if not found:
        return str(error)
    key = found[1]
    known = dict(names_of(name))
    if known.get(key.rpartition(".")[0], "") is None:
        return f"{key.rpartition('.')[0]} is null; to give it a part, write +{key}=..."
    last = "." + key.rpartition(".")[2]
    near = dict.fromkeys([*[n for n in known if f".{n}".endswith(last)], *get_close_matches(key, known, 3, 0.75)])
    if key in near:
        return f"there is no {key} here, only with another {key.partition('.')[0]}=...; --help lists what there is"
    return f"there is no {key}; {hint(near)}"


def names_of(name):
    """Yields (dotted name, default) of the values of a command and of all options of its groups."""
    own = yaml.safe_load((Path(CONFIGS) / f"{name}.yaml").read_text(encoding="utf-8"))
    yield from leaves(own)
    groups = [group for row in own["defaults"] if isinstance(row, dict) for group in row]
    groups = [group for group in groups if " " not in group and group != "experiment"]
    for path in (path for group in groups for path in sorted((Path(CONFIGS) / group).rglob("*.yaml"))):
        text, group = path.read_text(encoding="utf-8"), path.relative_to(CONFIGS).parts[0]
        yield from leaves(yaml.safe_load(text), "" if "@package _global_" in text else f"{group}.")


def leaves(values, prefix=""):
    for name, value in values.items():
        if name not in ("defaults", "hydra"):
            yield f"{prefix}{name}", value
            yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else ()
