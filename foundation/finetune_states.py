"""Fine-tuning on tasks of vectors: the half of `python -m foundation.finetune` for metaworld, reacher2d, gym_mujoco.

    init or a fresh policy, data.train -> offline updates -> rounds of whole episodes and updates -> hub folder `model`

`task.name` may be a list: every task has its own environments and target return, scores are per task and their mean.
"""

import dataclasses
import json
import logging
import time
from contextlib import ExitStack

import numpy as np
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from foundation import callbacks, hub
from foundation.actors import ScriptedActor, SequenceActor, UniformActor
from foundation.checkpoints import Checkpoint, StepSeed, resume_path, step_of
from foundation.envs import registry
from foundation.evaluate import check_spaces, evaluate, load_policy, opened, protocol_of
from foundation.finetuning.episodes import SIZES, Collector, Targets, floors, in_skills, opened_worlds, shaped
from foundation.finetuning.ppo import PPO
from foundation.finetuning.ppo_states import SequencePPO, WindowsOnPolicy
from foundation.finetuning.replay import OfflineToOnline
from foundation.preemption import Preemption
from foundation.training import fit_from, make_trainer, plain
from models.goal_policy import ConditionedPolicy
from models.hilbert import HilbertPolicy
from pipelines import checkpoint
from pipelines.card import numbers
from pipelines.command import run_folder, write_summary
from pipelines.schema import DataError
from pipelines.shards import ShardWriter
from pipelines.trajectories import Spaces, write_episode
from pipelines.trajectory_windows import Normalizer

FIXED = {"noise": None, "target_factor": 1.0, "recent": 0}  # of an algo that does not say: samples, one target
log = logging.getLogger("foundation-policy")


def main(cfg):
    """-> summary. Seeds are set, `cfg.task` shows vectors."""
    folder, algo = run_folder(cfg), plain(cfg.algo)
    tasks = in_skills(registry.tasks_of(cfg.task), cfg)
    if cfg.trainer.devices != 1:
        raise DataError(f"trainer.devices={cfg.trainer.devices}: RL runs in one process; choose trainer=cpu or gpu")
    with ExitStack() as stack:
        n = algo["stream"].pop("environments")
        worlds = opened_worlds(stack, shaped(tasks, cfg), n)
        bundle, data = begin(cfg, folder, worlds)
        start = resume_path(folder, cfg.resume, plain(cfg))
        acting = {name: algo["stream"].pop(name, value) for name, value in FIXED.items()}
        asked = floors(worlds, bundle, data and data.data, cfg.target)
        targets = Targets(cfg.target, asked, acting["target_factor"], acting["recent"], bundle.statistics)
        quiet = dataclasses.replace(bundle, statistics=without_quantiles(bundle.statistics))
        score = Scores(cfg, tasks, quiet, targets, n)
        agent, stream = prepared(cfg, algo, acting["noise"], quiet, data, worlds, targets)  # refuses before it plays
        before = untrained(folder, start, score, worlds, bundle, data) if cfg.evaluate_before else {}
        trained = fit(cfg, folder, algo, agent, stream, score, start)
        after = score("fine-tuned", "finetune")
    summary = {**before, **after, **trained}
    keep(cfg, folder, bundle, data, {"targets": {task: targets(task) for task in targets.floors}}, summary, tasks)
    return summary


# what it starts from


def begin(cfg, folder, worlds):
    """(Bundle of the policy, TrajectoryData or None). Without init a fresh policy, with statistics of the data."""
    name, (world, *_) = next(iter(worlds.items()))
    bundle = None if cfg.init is None else load_policy(cfg.init)
    if bundle is not None:
        check_told(bundle.net, cfg)
        check_spaces(bundle, world, cfg.init, name)
        if getattr(bundle.net, "query", None) == "first":
            raise DataError(f"init={cfg.init} answers one query a pass; pretrain it with method.net.query=last")
    source = plain(cfg.data)
    if bundle is None and source["train"] is None:
        source["train"] = str(random_episodes(folder / "random", worlds, cfg.policy_vectors.random_episodes, cfg))
    data = None
    if source["train"] is not None:
        context = bundle.net.context if bundle else cfg.policy_vectors.net.context
        source["length"] = source["length"] or context
        data = get_class(source.pop("_target_"))(**source, steps=0, seed=cfg.run.seed)
        if any(getattr(data.spaces, size) != getattr(world.spaces, size) for size in SIZES):
            raise DataError(f"data.train={cfg.data.train} holds {data.spaces}, the task {name} has {world.spaces}")
    if bundle is not None:
        return bundle, data
    log.info("no init: a fresh policy is trained from scratch, with state statistics of %s", source["train"])
    return fresh(cfg, data, worlds), data


def check_told(net, cfg):
    """DataError for a policy that is told a skill or a goal, which these algorithms never say."""
    if isinstance(net, HilbertPolicy):
        raise DataError(
            f"init={cfg.init} is a policy of skills (method=hilp), which algo={cfg.algo.name} does not train: use"
            f" algo=latent to search its skill, or skills.init={cfg.init} to learn which skill to play when"
        )
    if isinstance(net, ConditionedPolicy) and net.condition_dim:
        raise DataError(f"init={cfg.init} is told goals, algo={cfg.algo.name} tells returns or nothing: give a policy"
                        " of one reward, such as one of method=iql data.reward=<name>")  # fmt: skip


def fresh(cfg, data, worlds):
    """Bundle of an untrained policy as configured in `policy_vectors`."""
    net = data.derive(plain(cfg.policy_vectors.net))
    net["max_timestep"] = max([net["max_timestep"], *(limit(made[0]) for made in worlds.values())])
    policy = checkpoint.build(net)
    return checkpoint.Bundle(policy, None, None, data.fps, {"net": net, **data.contract()}, data.statistics(), "")


def random_episodes(out, worlds, n, cfg):
    """Shards of `n` episodes per task with uniform actions; their steps do not count as `frames`.

    A run that goes on plays them again, to the same bytes: which is quick.
    """
    collector = Collector(worlds, None, None, None, cfg.run.seed + 1)
    with ShardWriter(out, "random", unit="random") as writer:
        for task, made in worlds.items():
            spaces, fps = made[0].spaces, made[0].fps
            for number in range(-(-n // len(made))):
                played = collector.random(number * len(worlds) + list(worlds).index(task))
                for i, arrays in enumerate(played.arrays):
                    arrays = {**arrays, "action": spaces.from_unit(arrays["action"])}
                    key = f"{list(worlds).index(task):03d}-{number * len(made) + i:06d}"
                    tags = {**played.tags[i], "behaviour": "random"}
                    write_episode(writer, key, arrays, spaces, fps, f"random/{task}", tags)
    return out


def without_quantiles(statistics):
    """Statistics that no target is beyond: to ask for more than the data had is the plan here, and no news."""
    tasks = {name: {**own, "returns": {}} for name, own in statistics.get("tasks", {}).items()}
    return {**statistics, "returns": {}, **({"tasks": tasks} if tasks else {})}


# scores


class Scores:
    """score(who, prefix) -> numbers of the tasks' protocols, of each task and their mean; `make` builds the actor."""

    def __init__(self, cfg, tasks, bundle, targets, environments):
        self.cfg, self.tasks, self.bundle, self.targets = cfg, tasks, bundle, targets
        self.environments = environments

    def __call__(self, who, prefix, make=None):
        numbers, training = {}, self.bundle.net.training
        for task in self.tasks:
            protocol = protocol_of(self.cfg, OmegaConf.create(task))
            name, several = task["name"], len(self.tasks) > 1
            with opened(task, min(self.environments, protocol["episodes"]), **protocol["env"]) as worlds:
                actor = make(worlds[0].spaces) if make else self.actor(name)
                where = f"{prefix}/{name}" if several else prefix
                numbers |= evaluate(actor, worlds, protocol, f"{who} {name}" if several else who, where)
        self.bundle.net.train(training)
        return numbers | (self.mean(numbers, prefix) if len(self.tasks) > 1 else {})

    def actor(self, task):
        return SequenceActor(self.bundle, self.targets(task), self.cfg.run.seed, device=device_of(self.cfg))

    def mean(self, numbers, prefix):
        """Means over tasks, where every task has the number."""
        found = {}
        for metric in ("return", "success"):
            values = [numbers.get(f"{prefix}/{task['name']}/{metric}") for task in self.tasks]
            if None not in values:
                found[f"{prefix}/{metric}"] = float(np.mean(values))
        log.info("mean of %d tasks: %s", len(self.tasks), found)
        return found


def untrained(folder, start, score, worlds, bundle, data):
    """Scores of random, scripted and initial policy and of the data; a run that continues takes those of its start."""
    path = folder / "before.json"
    if start is None or not path.is_file():
        scores = score("random", "random", UniformActor)
        if all(getattr(made[0], "scripted", lambda: None)() is not None for made in worlds.values()):
            scores |= score("scripted", "scripted", ScriptedActor)
        scores |= score("initial", "initial") | ({} if score.cfg.shaping.init else behaviour(bundle, data))
        write_summary(path, scores)
    return json.loads(path.read_text())


def behaviour(bundle, data):
    """Mean return, and success, of who made the data: of the given ones, or of those the policy was trained on.

    Skills are learned without rewards, of data that were paid for whatever it was.
    """
    if data is None:
        known = None if bundle.config.get("condition") == "skill" else bundle.statistics.get("returns_mean")
        found = {} if known is None else {"behaviour/return": float(known)}
    else:
        found = {"behaviour/return": float(data.data.returns.mean())}
        success = [tags["success"] for tags in data.data.tags if "success" in tags]
        found |= {"behaviour/success": float(np.mean(success))} if success else {}
    for name, value in found.items():
        log.info("%-12s %s %.3f", "behaviour", name.partition("/")[2], value)
    return found


class Evaluations(Callback):
    """Scores the policy whenever another `every` frames were played (before them: updates made); 0 = never."""

    def __init__(self, stream, score, every):
        self.stream, self.score, self.every = stream, score, every
        self.next = every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not self.every or self.stream.left or trainer.global_step >= len(self.stream):
            return
        place = self.stream.frames or trainer.global_step
        if place >= self.next:
            unit = "frames" if self.stream.frames else "updates"
            numbers = self.score(f"{place} {unit}", "evaluate")
            row = {name: value for name, value in numbers.items() if not name.endswith("frames_per_second")}
            trainer.logger.log_metrics(row, step=trainer.global_step)
            self.next = (place // self.every + 1) * self.every

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


# training


def prepared(cfg, algo, noise, bundle, data, worlds, targets):
    """(what learns, around the policy of `bundle`; the stream of what it learns from)"""
    agent = make_agent(cfg, algo["agent"], bundle)
    clip = not isinstance(agent, PPO)  # whose probabilities are those of what was drawn
    collector = Collector(worlds, bundle, targets, noise, cfg.run.seed, device_of(cfg), clip)
    return agent, make_stream(cfg, algo["stream"], agent, collector, bundle, data, worlds)


def fit(cfg, folder, algo, agent, stream, score, start=None, progress=None):
    """Trains the agent's policy in place -> flat numbers. progress: (total, unit, count) of what the line shows."""
    experience = callbacks.Experience(stream, cfg.window)
    total = max(len(stream), 1)
    beside = lambda _: {"frames": stream.frames, **experience.averages()}  # noqa: E731
    show = callbacks.Progress(*progress or (total, "update"), show=beside)
    keeper = Checkpoint(folder, plain(cfg), cfg.checkpoint_every * stream.report_every, cfg.keep_checkpoints)
    evaluations = Evaluations(stream, score, cfg.evaluate_every)
    shown = [experience, show, StepSeed(cfg.run.seed), evaluations, keeper, Preemption(folder)]
    settings = {**plain(cfg.trainer), "gradient_clip_val": algo["grad_clip"], "accumulate_grad_batches": 1}
    kept = step_of(start) + 1 if start else 0  # rows of metrics.csv are written after their step
    trainer = make_trainer(settings, folder, shown, len(stream), max_epochs=1, resumed_step=kept,
                           log_every_n_steps=min(stream.report_every, total))  # fmt: skip
    made = stream.offline_updates, stream.online_updates
    log.info("%s, %s: %d updates on given episodes, %d as it plays", cfg.init or "from scratch", algo["name"], *made)
    clock = time.monotonic()
    fit_from(trainer, agent, stream, start)
    frames = stream.frames - experience.frames_at_start
    return {
        "finetune/train_frames": stream.frames,
        "finetune/updates": trainer.global_step,
        "finetune/train_frames_per_second": frames / (time.monotonic() - clock),  # of this process
        **{f"finetune/train_{name}": value for name, value in experience.averages().items()},
    }


def make_agent(cfg, settings, bundle):
    settings, condition = dict(settings), bundle.config.get("condition", "return")
    target = get_class(settings.pop("_target_"))
    if issubclass(target, PPO):
        return SequencePPO(bundle.net, bundle.net if cfg.init else None, condition=condition, **settings)
    return target(bundle.net, condition=condition, **settings)


def make_stream(cfg, settings, agent, collector, bundle, data, worlds):
    """The stream of windows, all normalised and scaled as the policy's own statistics say."""
    statistics, net, made = bundle.statistics, bundle.net, next(iter(worlds.values()))
    if (cfg.data.length or 0) > net.context:
        raise DataError(f"data.length={cfg.data.length}: the policy sees {net.context} steps")
    options = {
        "length": cfg.data.length or net.context,
        "normalizer": Normalizer.from_dict(statistics) if "state_mean" in statistics else None,
    }  # fmt: skip
    common = {
        "agent": agent, "collector": collector, "statistics": statistics, "fps": made[0].fps, "seed": cfg.run.seed,
        "spaces": Spaces.from_dict(bundle.config["spaces"]), "max_timestep": net.max_timestep,
    }  # fmt: skip
    if isinstance(agent, PPO):
        settings = dict(settings)
        each = len(made) * max(settings.pop("chunk"), *(limit(one[0]) for one in worlds.values()))
        settings |= {"iterations": -(-cfg.frames // each), "frames_each": each}
        return WindowsOnPolicy(**common, options=options, **settings)
    options |= {"gamma": cfg.data.gamma, "condition": agent.hparams.condition}
    offline = None if data is None else (data.data, data.weights)
    return OfflineToOnline(
        **common, options=options, offline=offline, frames=cfg.frames, batch_size=cfg.data.batch_size, **settings
    )


def limit(world):
    """Steps after which an environment cuts its episodes; 0 where it does not say."""
    spec = getattr(getattr(world, "_env", None), "spec", None)
    return getattr(world, "episode_steps", None) or getattr(spec, "max_episode_steps", None) or 0


def device_of(cfg):
    return "cpu" if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available() else "cuda"


# what it leaves


def keep(cfg, folder, bundle, data, found, summary, tasks):
    """Writes the hub folder `model`: spaces and statistics stay the policy's own, and `found` is added: what it is told
    from now on."""
    config = {name: bundle.config.get(name) for name in ("spaces", "fps", "condition") if name in bundle.config}
    config |= {"skills": tasks[0]["skills"]} if "skills" in tasks[0] else {}
    extras = {**config, "statistics": {**bundle.statistics, **found}}
    names = ", ".join(task["name"] for task in tasks)
    lead = (
        f"algo {cfg.algo.name}, task `{names}`, from {hub.origin(cfg.init, bundle if cfg.init else None)}, seed"
        f" {cfg.run.seed}, on {hub.machine_words()}. Play it with `python -m foundation.evaluate policy=<this folder>`."
    )
    tables = {"Data": data.provenance() if data else {}, "Measured": numbers(summary)}
    hub.save(folder / "model", bundle.net.cpu(), bundle.config["net"], extras, lead, tables, cfg.run.name)
