"""Every config in configs/ composes, names what exists and, if it is a method or an algorithm, takes two steps.

The lists are read from the folders: a YAML dropped into configs/ is tested without a change here.
"""

import re
from functools import partial
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from foundation import finetune, hub, pretrain
from foundation.rollout import Environments
from pipelines.command import CONFIGS, execute
from pipelines.trajectories import Spaces
from pipelines.values import unknown, wrong_kinds
from tests.foundation.skills import write_skills
from tests.foundation.toy_world import CODEC, Bar, TinyPolicy

ROOT = Path(CONFIGS)
PRIMARY = sorted(path.stem for path in ROOT.glob("*.yaml"))
METHODS, ALGOS, EXPERIMENTS = (
    sorted(path.stem for path in (ROOT / group).glob("*.yaml")) for group in ("method", "algo", "experiment")
)
TINY_NET = {  # whatever of these a net has
    "dim": 32, "layers": 1, "heads": 2, "context": 8, "window": 16, "dropout": 0.0,
    "hidsize": 32, "attention_heads": 2, "impala_width": 0.25, "n_recurrence_layers": 1, "timesteps": 16,
    "attention_memory_size": 32, "width": 32,
}  # fmt: skip
TINY_ALGO = ("frames=32", "algo.stream.environments=2", "algo.stream.chunk=16")
TINY_ALGO += ("algo.stream.epochs=1", "algo.stream.minibatches=2")


def compose(name, *overrides):
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose(name, list(overrides))


def defaults(name):
    """{group: its option or None} of a primary config."""
    rows = [row for row in yaml.safe_load((ROOT / f"{name}.yaml").read_text())["defaults"] if isinstance(row, dict)]
    return {group.removeprefix("optional ").removeprefix("override /"): v for row in rows for group, v in row.items()}


@pytest.mark.parametrize("name", PRIMARY)
def test_no_value_is_named_as_a_group(name):
    own = yaml.safe_load((ROOT / f"{name}.yaml").read_text())
    assert not {path.name for path in ROOT.iterdir() if path.is_dir()} & own.keys()  # <name>=... would choose an option


def group_options():
    """(primary config, group=option) of every option but experiments, which belong to one command each."""
    for name in PRIMARY:
        for group in defaults(name):
            if group != "experiment":
                yield from ((name, f"{group}={path.stem}") for path in sorted((ROOT / group).glob("*.yaml")))


def check(cfg, required=()):
    """Interpolations resolve, every class exists, and nothing is left open that the command does not ask for."""
    assert OmegaConf.missing_keys(cfg) == set(required)
    plain = OmegaConf.to_container(cfg, resolve=True)
    for target in targets(plain):
        assert get_class(target)


def targets(node):
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "_target_")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)


@pytest.mark.parametrize("name", PRIMARY)
def test_a_command_composes_and_asks_only_for_its_inputs(name):
    written = yaml.safe_load((ROOT / f"{name}.yaml").read_text())
    check(compose(name), required=[key for key, value in written.items() if value == "???"])


@pytest.mark.parametrize(("name", "choice"), list(group_options()))
def test_every_option_of_every_group_composes(name, choice):
    check(compose(name, choice))


def test_no_group_is_left_out():
    groups = {path.parent.name for path in ROOT.glob("*/*.yaml")}
    assert groups == {group for name in PRIMARY for group in defaults(name)}


def command_of(experiment):
    """The command that an experiment's header, or a script in runs/, gives it to."""
    texts = [ROOT / "experiment" / f"{experiment}.yaml", *sorted(ROOT.parent.glob("runs/*.sh"))]
    call = rf"python -m \w+\.(\w+)[^\n]* experiment={experiment}\b"
    found = {match for path in texts for match in re.findall(call, path.read_text())}
    assert len(found) == 1, f"the header of {experiment} should have the one command that it configures, not {found}"
    return found.pop()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_sets_only_keys_that_its_command_has(experiment):
    name = command_of(experiment)
    cfg = compose(name, f"experiment={experiment}")
    check(cfg)
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        whole = hydra.compose(name, [f"experiment={experiment}"], return_hydra_config=True)
    chosen = [f"{group}={whole.hydra.runtime.choices[group]}" for group in defaults(name) if group != "experiment"]
    base = compose(name, *chosen)
    given, base = OmegaConf.to_container(cfg), OmegaConf.to_container(base)
    wrong = [complaint for look in (unknown, wrong_kinds) for complaint in look(given, base)]
    assert not wrong, f"{experiment} does not fit python -m ... {name}: {'; '.join(wrong)}"


def shrink(method):
    """Overrides that make a method's net and windows tiny; what its YAML derives from another value is left to it."""
    raw = compose("pretrain", f"method={method}")
    net, data = raw.method.net, raw.data
    own = [name for name in TINY_NET if name in net and literal(net, name) and net[name] is not None]
    values = {f"method.net.{name}": TINY_NET[name] for name in own}
    if "channels" in net:
        values["method.net.channels"] = [4] * len(net.channels)
    values |= {f"data.{name}": 16 for name in ("length", "stride") if name in data and literal(data, name)}
    return [f"{name}={value}" for name, value in values.items()]


def literal(node, name):
    return not OmegaConf.is_interpolation(node, name)


def given(whole, data_for):
    """Overrides with the shards that a method trains on, or of tasks that are drawn, with how many are held out."""
    if "train" not in whole.data:
        return ["data.validation=4"]
    train, held_out = data_for(whole)
    return [f"data.train={train}", f"data.validation={held_out}"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_two_steps(method, data_for, init_for, tmp_path):
    whole = compose("pretrain", f"method={method}")
    data = [*given(whole, data_for), "data.batch_size=2", *init_for(whole)]
    cfg = compose("pretrain", f"method={method}", f"run.dir={tmp_path}", "steps=2", *data, *shrink(method))
    summary = execute(pretrain.main.function, cfg)
    assert summary["steps"] == 2
    assert summary["train/loss"] > 0 and summary["validation/loss"] > 0
    net = hub.load(tmp_path).net
    assert type(net) is get_class(cfg.method.net._target_)


TINY_ALGO_VECTORS = (
    "task=gym_mujoco", "task.name=Pendulum-v1", "task.env.episode_steps=10", "policy_vectors.net.width=16",
    "policy_vectors.net.layers=1", "policy_vectors.random_episodes=2", "algo.stream.environments=2", "episodes=1",
    "evaluate_before=false", "data.batch_size=4", "algo.stream.offline_updates=1", "frames=20",
)  # fmt: skip


def take_two_steps_on_vectors(algo, pretrained, folder):
    """From scratch, or from what that left, with its random episodes as the given ones."""
    online = "algo.stream.offline_updates=2" if algo == "bc" else "algo.stream.updates_per_frame=0.05"
    scratch, again = folder / "scratch", folder / "again"
    more = [f"init={scratch}", f"data.train={scratch / 'random'}"]
    for place, given in ((scratch, []), *([(again, more)] if pretrained else [])):
        cfg = compose("finetune", f"algo={algo}", f"run.dir={place}", *TINY_ALGO_VECTORS, online, *given)
        assert execute(finetune.main.function, cfg)["finetune/updates"] == 2


def on_vectors(algo):
    return "Aux" in compose("finetune", f"algo={algo}").algo.agent._target_


def search_twice(folder):
    """Two generations of algo=latent, whose `stream` and `agent` belong to no policy that learns."""
    skills = write_skills(folder / "skills", Spaces(3, 1, low=(-2.0,), high=(2.0,)))
    tiny = ["algo.stream.population=2", "algo.agent.elites=1", "algo.stream.episodes=1", "frames=40", f"init={skills}"]
    task = [one for one in TINY_ALGO_VECTORS if one.startswith("task") or "environments" in one]
    cfg = compose("finetune", "algo=latent", f"run.dir={folder}", *task, *tiny, "episodes=1", "evaluate_before=false")
    assert execute(finetune.main.function, cfg)["finetune/updates"] == 2


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("pretrained", [False, True])
def test_every_algorithm_takes_two_steps(algo, pretrained, tmp_path):
    if algo == "latent":
        return search_twice(tmp_path)
    if on_vectors(algo):
        return take_two_steps_on_vectors(algo, pretrained, tmp_path)
    cfg = compose("finetune", f"algo={algo}", f"run.dir={tmp_path}", *TINY_ALGO)
    settings = OmegaConf.to_container(cfg.algo, resolve=True)
    worlds = [Bar() for _ in range(settings["stream"].pop("environments"))]
    build = partial(get_class(settings["agent"].pop("_target_")), **settings["agent"])
    policy = TinyPolicy()
    agent = build(policy, pretrained=policy if pretrained else None)
    environments = Environments(worlds, finetune.training_seeds(0))
    summary = finetune.fit(agent, environments, CODEC, settings, cfg, tmp_path)
    assert agent.trainer.global_step == 2
    assert 0 < summary["finetune/train_frames"] <= 32
