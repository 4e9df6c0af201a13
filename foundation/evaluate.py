"""python -m foundation.evaluate task=... policy=<hub folder>|random|noop|player: final numbers, with their spread.

Plays a fixed list of seeded episodes, every one to its end (so that short episodes do not count more often than long
ones), several environments in one forward pass, and puts untrained baselines beside the result.
"""

import logging
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from foundation import distances, evaluate_worlds, hub, overlay
from foundation.actors import (
    NoopActor,
    PlayerActor,
    PolicyActor,
    RandomActor,
    RestingActor,
    ScriptedActor,
    SequenceActor,
    UniformActor,
)
from foundation.envs import registry
from foundation.envs.skills import with_skills, wrapped
from foundation.envs.world_env import WorldEnv
from foundation.prompted import prompted
from foundation.prompts import Prompts
from foundation.rollout import Environments, evaluation_seed
from foundation.scores import say, summarise
from models.goal_policy import ConditionedPolicy
from models.hilbert import HilbertPolicy
from models.in_context import InContext
from pipelines import checkpoint
from pipelines.actions import ActionCodec
from pipelines.command import command
from pipelines.schema import DataError
from pipelines.trajectories import Spaces

log = logging.getLogger("foundation-policy")


def play(actor, environments, seeds, watch=None, label="playing"):
    """Plays one episode per seed in a list of gymnasium environments -> Episodes, in the order they ended.

    Environment i of b plays the seeds i, i + b, i + 2b, ... and leaves the batch when its share is done.
    `watch(number, environment, action)` is called before every step and, with action None, at an episode's end.
    """
    b = min(len(environments), len(seeds))
    vector = Environments(environments[:b], lambda slot, episode: seeds[slot + b * episode])
    slots, episodes, frame = list(vector.slots), [], vector.reset()
    actor.start(slots)
    with tqdm(total=len(seeds), unit="episode", desc=label, disable=None, leave=False) as bar:
        while True:
            actions = actor.act(frame)
            if watch is not None:
                for slot, action in zip(slots, actions, strict=True):
                    watch(slot.index + b * slot.episode, slot.environment, None if slot.done else action)
            goes_on = [not slot.done or slot.index + b * (slot.episode + 1) < len(seeds) for slot in slots]
            if not any(goes_on):
                break
            if not all(goes_on):
                slots = [slot for slot, on in zip(slots, goes_on, strict=True) if on]
                actions = [action for action, on in zip(actions, goes_on, strict=True) if on]
                actor.keep(np.flatnonzero(goes_on))
            outcome, frame = vector.step(actions, slots)
            episodes += outcome.episodes
            bar.update(len(outcome.episodes))
    vector.close()
    return episodes


def evaluate(actor, environments, protocol, who, prefix, watch=None):
    """Plays the protocol's episodes, says the result, and returns it as flat numbers. Same seeds for every actor.

    Of an actor that remembers the episodes before also `return@<n>`: that of every environment's n-th episode.
    """
    start = time.monotonic()
    tasks = protocol.get("tasks", 1)
    seeds = [evaluation_seed(protocol["seed"], i, tasks) for i in range(protocol["episodes"])]
    episodes = play(actor, environments, seeds, watch, who)
    numbers = summarise(episodes, prefix) | (by_task(episodes, tasks, prefix) if tasks > 1 else {})
    frames = sum(e.frames for e in episodes)
    numbers[f"{prefix}/frames_per_second"] = frames / (time.monotonic() - start)
    numbers |= {f"{prefix}/{name}": value for name, value in getattr(actor, "numbers", {}).items()}
    say(who, numbers, prefix)
    return numbers | (by_number(episodes, seeds, len(environments), prefix) if remembers(actor) else {})


def by_task(episodes, tasks, prefix):
    """Mean return, and success where it is defined, of each of the tasks that the seeds go through."""
    numbers = {}
    for n in range(tasks):
        own = [e for e in episodes if e.seed % tasks == n]
        for name, values in (("return", [e.returns for e in own]), ("success", [e.success for e in own])):
            if values and None not in values:
                numbers[f"{prefix}/task{n + 1}/{name}"] = float(np.mean(values))
    shown = {name.split("/")[-2]: value for name, value in numbers.items() if name.endswith("/success")}
    if shown:
        log.info("success by task: %s", "  ".join(f"{task} {value:.2f}" for task, value in shown.items()))
    return numbers


def remembers(actor):
    return getattr(actor, "memory", "episode") == "task"


def by_number(episodes, seeds, environments, prefix):
    """Mean return of the first, second, ... episodes of all environments, see `play`."""
    returns, b = {episode.seed: episode.returns for episode in episodes}, min(environments, len(seeds))
    means = [float(np.mean([returns[seed] for seed in seeds[i : i + b]])) for i in range(0, len(seeds), b)]
    log.info("return by episode: %s", "  ".join(f"{n}: {mean:.4g}" for n, mean in enumerate(means, 1)))
    return {f"{prefix}/return@{n}": mean for n, mean in enumerate(means, 1)}


# the command


@command("evaluate")
def main(cfg):
    """Plays the protocol of a task, or of several, with `cfg.policy` and with the baselines."""
    cfg.device = checkpoint.device(cfg.device)
    for name in cfg.baselines:
        check_baseline(name)
    bundle = None if cfg.policy in BASELINES else load_policy(cfg.policy)
    tasks, numbers = registry.tasks_of(cfg.task), {}
    if evaluate_worlds.is_world(tasks[0]) and (bundle is None or isinstance(bundle.net, InContext)):
        if len(tasks) > 1:
            raise DataError(f"{[task['name'] for task in tasks]}: a world is played alone; give one name")
        return evaluate_worlds.score(tasks[0], bundle, cfg)
    if cfg.memory == "task" and any(issubclass(registry.env_class(task), WorldEnv) for task in tasks):
        raise DataError("memory=task: every episode of a world is another task, of which there is nothing to remember")
    for task in with_skills(tasks, bundle and bundle.config.get("skills")):
        prefix = "evaluate" if len(tasks) == 1 else f"evaluate/{task['name']}"
        if len(tasks) > 1:
            log.info("%s", task["name"])
        numbers |= score(OmegaConf.create(task), bundle, cfg, prefix)
    return {**numbers, **(means(numbers, tasks, cfg.baselines) if len(tasks) > 1 else {})}


def score(task, bundle, cfg, prefix):
    """Numbers of the policy and of the baselines on one task; films the first `cfg.video` episodes."""
    protocol, vectors = protocol_of(cfg, task), registry.shows_vectors(task)
    overrides = dict(protocol["env"])
    if any(task.env.get(name) != value for name, value in overrides.items()):
        log.info("played with %s, as task.evaluation.env says", overrides)
    if vectors and cfg.video:
        raise DataError(f"video={cfg.video}: the task {task.name} shows vectors, there is nothing to film; set video=0")
    if bundle is not None and bundle.spec is None and not vectors:
        raise DataError(f"{cfg.policy} acts on vectors, the task {task.name} shows frames; choose another task")
    if not vectors:
        overrides |= {} if bundle is None else {"size": bundle.size}
        overrides |= {"privileged": True} if "player" in (cfg.policy, *cfg.baselines) else {}
    with opened(task, min(cfg.environments, protocol["episodes"]), **overrides) as worlds:
        film = overlay.Film(cfg.video, codec_for(bundle, worlds[0]).spec) if cfg.video else None
        if vectors:
            numbers = score_targets(bundle, worlds, protocol, cfg, prefix)
        else:
            if cfg.prompt is not None:
                raise DataError(
                    f"prompt={cfg.prompt} is for policies of skills or goals, the task {task.name} shows frames"
                )
            numbers = evaluate(frame_actor(bundle, worlds[0], cfg), worlds, protocol, "policy", prefix, film)
        if bundle is not None and isinstance(bundle.net, HilbertPolicy) and hasattr(worlds[0], "distances"):
            numbers |= distances.compare(Prompts(bundle, cfg.device), worlds[0], prefix)
        for name in cfg.baselines:
            numbers |= evaluate(baseline(name, worlds[0]), worlds, protocol, name, f"{prefix}/{name}")
        if film:
            numbers[f"{prefix}/videos"] = film.write(Path(cfg.run.dir), worlds[0].fps)
    return numbers


def score_targets(bundle, worlds, protocol, cfg, prefix):
    """A policy on vectors, asked for `cfg.target`; of a list, for each, under `<prefix>/target=<t>`."""
    if not OmegaConf.is_list(cfg.target):
        return evaluate(sequence_actor(bundle, worlds[0], cfg, cfg.target), worlds, protocol, "policy", prefix)
    if not cfg.target:
        raise DataError("target=[]: expected a return to ask for, or several")
    numbers = {}
    for target in cfg.target:
        actor, name = sequence_actor(bundle, worlds[0], cfg, target), f"target={target}"
        numbers |= evaluate(actor, worlds, protocol, name, f"{prefix}/{name}")
    return numbers


def means(numbers, tasks, baselines):
    """Mean return and success over tasks, of the policy and of each baseline."""
    result = {}
    for suffix in ("", *(f"/{name}" for name in baselines)):
        for metric in ("return", "success"):
            values = [numbers.get(f"evaluate/{task['name']}{suffix}/{metric}") for task in tasks]
            if None not in values:
                result[f"evaluate{suffix}/{metric}"] = float(np.mean(values))
    return result


def frame_actor(bundle, world, cfg):
    if bundle is None:
        return baseline(cfg.policy, world)
    return PolicyActor(bundle.net.to(cfg.device), codec_for(bundle, world), cfg.run.seed, bool(cfg.greedy), cfg.device)


def sequence_actor(bundle, world, cfg, target=None):
    """The policy asked for `target`, or a baseline; DataError if the policy was made for other spaces."""
    if bundle is None:
        return baseline(cfg.policy, world)
    check_spaces(bundle, world, cfg.policy, cfg.task.name)
    if isinstance(bundle.net, ConditionedPolicy) and bundle.net.condition_dim:
        return prompted(bundle, world, cfg)
    if cfg.prompt is not None:
        raise DataError(f"prompt={cfg.prompt}: this {type(bundle.net).__name__} has neither skills nor goals; leave it"
                        " out, or give one of method=hilp, iql or goal_bc")  # fmt: skip
    if target is not None and bundle.config.get("condition") == "none":
        log.warning("target=%s is passed over: %s was trained with data.condition=none", target, cfg.policy)
    targets = bundle.statistics.get("targets", {})  # what fine-tuning asked for last
    target = targets.get(world.tags["task"]) if target is None else target
    return SequenceActor(bundle, target, cfg.run.seed, cfg.greedy is not False, cfg.device, cfg.cache, cfg.memory)


def check_spaces(bundle, world, policy, task):
    """DataError unless a policy on vectors fits an environment."""
    if "spaces" not in bundle.config:
        raise DataError(f"{policy} acts on frames, the task {task} shows vectors; give a policy of method=dt, say")
    ours, theirs = Spaces.from_dict(bundle.config["spaces"]), world.spaces
    for what in ("state_dim", "action_dim", "n_actions"):
        if getattr(ours, what) != getattr(theirs, what):
            raise DataError(
                f"{policy} was trained with {what}={getattr(ours, what)}, the task {task} has {getattr(theirs, what)};"
                " give a policy that was trained on data of this task"
            )


BASELINES = ("random", "noop", "player")


def check_baseline(name):
    """DataError lists the names there are."""
    if name not in BASELINES:
        raise DataError(f"baseline {name!r}: expected one of {sorted(BASELINES)}")


def baseline(name, world):
    """The untrained actor of that name for an environment."""
    check_baseline(name)
    if hasattr(world, "spaces"):
        return {"random": UniformActor, "noop": RestingActor, "player": ScriptedActor}[name](world.spaces)
    codec = ActionCodec(world.spec_of_actions)
    return {"random": RandomActor, "noop": NoopActor, "player": lambda _: PlayerActor()}[name](codec)


def load_policy(address):
    """Bundle of a policy; DataError if there is none at `address`, or it does not act."""
    if address is None:
        raise DataError(f"policy=<folder> is missing: one that pretrain or finetune left, or {sorted(BASELINES)}")
    bundle = hub.load(address)
    if not hasattr(bundle.net, "step"):
        raise DataError(
            f"{address} holds a {type(bundle.net).__name__}, which does not act: give a policy, such as one of"
            " method=vpt, dt or hilp"
        )
    return bundle


def codec_for(bundle, environment):
    """Codec of the policy's own actions (of the environment's without one); DataError if their keys differ.

    Mouse bins may differ: the environment takes degrees. Another frame rate is worth a warning.
    """
    theirs = environment.spec_of_actions
    if bundle is None:
        return ActionCodec(theirs)
    if bundle.spec.keys != theirs.keys:
        raise DataError(f"the policy presses {list(bundle.spec.keys)}, the task takes {list(theirs.keys)}")
    if bundle.fps and abs(bundle.fps / environment.fps - 1) > 0.01:
        log.warning("the policy learned at %.2f frames/s, the task runs at %.2f", bundle.fps, environment.fps)
    return ActionCodec(bundle.spec)


def protocol_of(cfg, task=None):
    """{"episodes", "seed", "env"}: the task's evaluation protocol, with the command's `episodes` if it gives one.

    Where it has `tasks`, episode i plays the i mod `tasks`-th of an environment whose task is that of its seed.
    """
    evaluation = (cfg.task if task is None else task).evaluation
    protocol = {"seed": 0, "env": {}, **OmegaConf.to_container(evaluation, resolve=True)}
    protocol["episodes"] = protocol["episodes"] if cfg.episodes is None else cfg.episodes
    if cfg.get("environments", 1) < 1:
        raise DataError(f"environments={cfg.environments}: expected at least 1")
    if protocol.get("tasks", 1) < 1:
        raise DataError(f"task.evaluation.tasks={protocol['tasks']}: expected at least 1")
    if protocol["episodes"] < 1:
        raise DataError(f"episodes={protocol['episodes']}: expected at least 1")
    return protocol


@contextmanager
def opened(task, n, **overrides):
    """A list of `n` environments of a task, closed at the end."""
    environments = [wrapped(registry.make(task, seed=i, **overrides), task) for i in range(n)]
    for environment in environments:
        environment.tags = {"task": task["name"]}  # as on the episodes that were collected in it
    try:
        yield environments
    finally:
        for environment in environments:
            environment.close()


if __name__ == "__main__":
    main()
