"""Environments by the name of their task: `make("doom_my_way_home", seed=0)`."""

from collections.abc import Mapping
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from foundation.envs.states import StateEnv
from pipelines import construct
from pipelines.command import CONFIGS
from pipelines.schema import DataError

PACKAGE = "foundation"  # what a task may build is defined in it


def load_task(name):
    """The config of `configs/task/<name>.yaml`; DataError names the tasks there are."""
    path = Path(CONFIGS) / "task" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise DataError(f"unknown task {name!r}; tasks: {known}")
    return OmegaConf.load(path)


def tasks_of(task):
    """Resolved mappings, one per name of a task whose `name` is a list, or stands for one (mt40), to loop over.

    `task`: the name of a task YAML, or its mapping.
    """
    task = load_task(task) if isinstance(task, str) else task
    task = OmegaConf.to_container(task) if OmegaConf.is_config(task) else dict(task)
    names = task["name"] if isinstance(task["name"], list) else [task["name"]]
    target = construct.find_class(task["env"]["_target_"], PACKAGE, object)
    names = [full for name in names for full in getattr(target, "names", lambda name: [name])(name)]
    if not names:
        raise DataError("task.name is an empty list; give at least one name")
    made = [OmegaConf.create({**task, "name": name}) for name in dict.fromkeys(names)]
    return [OmegaConf.to_container(one, resolve=True) for one in made]


def env_class(task):
    """The class of the environments of a task (its mapping)."""
    return construct.find_class(task["env"]["_target_"], PACKAGE, object)


def shows_vectors(task):
    """Whether the observations of a task (its mapping) are vectors instead of frames."""
    return issubclass(env_class(task), StateEnv)


def check_targets(value, path):
    """DataError unless every `_target_` in the mapping, however deep, is a class that our own package defines.

    Hydra builds nested targets too, and finds `foundation.x.os.system` by way of what a module imported.
    """
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name == "_target_":
            try:
                construct.find_class(item, PACKAGE, object)
            except DataError as error:
                raise DataError(f"{path}.{name}={item!r}: a task builds classes of package {PACKAGE} only") from error
        check_targets(item, f"{path}.{name}")


def make(task, seed=None, **overrides):
    """Builds the environment of `task` (a name, or the mapping of a task YAML).

    `overrides` replace entries of the task's `env`, e.g. `size=(64, 80)` or `split="heldout"`.
    """
    task = load_task(task) if isinstance(task, str) else task
    if not isinstance(task, Mapping) and not OmegaConf.is_dict(task):
        raise DataError(f"expected the name of a task or its mapping, got {type(task).__name__}")
    env = OmegaConf.create(task)["env"] if OmegaConf.is_dict(task) else task["env"]
    env = {**(OmegaConf.to_container(env, resolve=True) if OmegaConf.is_config(env) else env), **overrides}
    target = str(env.get("_target_"))
    check_targets({"_target_": None, **env}, "env")
    try:
        return instantiate(env, seed=seed, _convert_="all")
    except InstantiationException as error:  # hydra wraps what the constructor says
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise DataError(f"task environment {target}: {error.__cause__ or error}; check the entries of `env`") from error
