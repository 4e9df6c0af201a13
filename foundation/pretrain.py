"""Pretrain a model on shards: `python -m foundation.pretrain method=idm data.train=<trajectory shards>`."""

import json
import logging
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig, OmegaConf

from foundation import callbacks, hub, seeds
from foundation.checkpoints import LOSS, Checkpoint, StepSeed, StopAfter, resume_path, step_of, take_best
from foundation.preemption import Preemption
from foundation.training import class_of, fit_from, made, make_trainer, plain, world_size
from pipelines import checkpoint
from pipelines.command import command, described, run_folder, write_summary
from pipelines.schema import DataError

log = logging.getLogger(__name__)


@command("pretrain")
def main(cfg):
    if cfg.run.get("seeds") is not None:
        return several(cfg)
    run = prepare(cfg)
    trainer = fit(cfg, run.task, run.data)
    if not trainer.is_global_zero:
        return {}
    return {**finish(run, trainer.global_step, numbers(trainer)), "minutes": minutes(trainer)}


def several(cfg):
    """Trains all of run.seeds at once, each saved in a folder as its own run would be -> means of their numbers."""
    seeds.check(cfg)
    runs = [prepare(one) for one in seeds.configs(cfg)]
    task, data = seeds.joined([run.task for run in runs], [run.data for run in runs], cfg.run.seeds)
    trainer = fit(cfg, task, data, partial(seeds.SeedLogger, cfg.run.seeds))
    task.give([run.task for run in runs])
    measured, summaries = numbers(trainer), []
    for name, run in zip(task.names, runs, strict=True):
        own = {n.removeprefix(f"{name}/"): value for n, value in measured.items() if n.startswith(f"{name}/")}
        with described(run_folder(run.cfg), run.cfg):
            summaries.append(finish(run, trainer.global_step, own))
        write_summary(run_folder(run.cfg) / "summary.json", summaries[-1])
    return {
        "seeds": len(runs),
        "minutes": minutes(trainer),
        **{n: sum(s[n] for s in summaries) / len(runs) for n in summaries[0]},
    }


@dataclass
class Prepared:
    """A training before its first step. words: where its initial weights come from."""

    cfg: DictConfig
    data: L.LightningDataModule
    net_config: dict
    task: L.LightningModule
    words: str


def prepare(cfg):
    L.seed_everything(cfg.run.seed, verbose=False)
    check_frozen(cfg)
    check_init(cfg)
    run_folder(cfg)  # says so if it cannot be written
    data = made(plain(cfg.data), steps=cfg.steps, seed=cfg.run.seed)
    check_ending(cfg, data)
    method = plain(cfg.method)
    net_config = class_of(method).configured(data.derive(method["net"]), method, cfg.init)
    if cfg.init is not None and hasattr(data, "inherit"):
        before = hub.load(cfg.init)
        data.inherit(before.statistics, before.config)
    net, words = initial_net(net_config, cfg.init)
    net = net.to(memory_format=torch.channels_last)  # convolutions are faster so
    task = made(method, net=net)
    log.info("%s: %.1f M parameters, %d frames", method["net"]["_target_"], count(net) / 1e6, data.frames)
    return Prepared(cfg, data, net_config, task, words)


def fit(cfg, task, data, logger=callbacks.csv_logger):
    """Trains the task, or goes on with it -> the trainer"""
    folder, settings, config = run_folder(cfg), plain(cfg.trainer), plain(cfg)
    start = resume_path(folder, cfg.resume, config, world_size(settings))
    best = cfg.best or (LOSS if cfg.final == "best" else None)
    keeper = Checkpoint(folder, config, cfg.checkpoint_every, cfg.keep_checkpoints, best)
    stop = [] if cfg.stop_after is None else [StopAfter(cfg.stop_after)]  # before the keeper, which saves its count
    every, shown = min(cfg.validate_every, cfg.steps), min(20, cfg.steps)
    trainer = make_trainer(
        settings, folder,
        [callbacks.Progress(cfg.steps), StepSeed(cfg.run.seed), Timer(), *stop, keeper, Preemption(folder)],
        max_steps=cfg.steps, resumed_step=step_of(start), logger=logger,
        val_check_interval=every * settings["accumulate_grad_batches"], check_val_every_n_epoch=None,
        log_every_n_steps=shown,
    )  # fmt: skip
    fit_from(trainer, task, data, start)
    if trainer.is_global_zero:
        trainer.logger.save()
    return trainer


def numbers(trainer):
    """What was measured last; empty if the run had ended before."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}


def minutes(trainer):
    """Spent on training, also before it was stopped and went on."""
    return next(one for one in trainer.callbacks if isinstance(one, Timer)).time_elapsed("train") / 60


def finish(run, steps, measured):
    """Saves what was trained -> its summary."""
    cfg, data, task, folder = run.cfg, run.data, run.task, run_folder(run.cfg)
    summary = {"frames/train": data.frames, "steps": steps, "parameters": count(task.net), **data.set_aside}
    summary |= measured or ended_with(folder)
    if cfg.final == "best":
        summary |= take_best(folder, task)
    summary |= task.describe(data)
    scores, statistics = task.report(data.validation, folder, data.fps) if data.validation else ({}, {})
    summary |= scores
    words = task.started or run.words
    hub.save_trained(folder / "model", task.net, run.net_config, data, summary, cfg, statistics, words, task.base)
    return summary


def ended_with(folder):
    """Training and validation numbers of the run that was already at its end when it was started again."""
    path = folder / "summary.json"
    numbers = json.loads(path.read_text()) if path.is_file() else {}
    return {name: value for name, value in numbers.items() if name.startswith(("train/", "validation/"))}


def check_frozen(cfg):
    """DataError where data.features=cached would cache outputs of an encoder that is trained, or random."""
    if cfg.data.get("features") != "cached":
        return
    if cfg.method.get("train_encoder", True):
        raise DataError(
            "data.features=cached computes the encoder's outputs once, but this method trains its encoder; set"
            " method.train_encoder=false (policies only) or data.features=frames"
        )
    if cfg.init is None:
        raise DataError(
            "data.features=cached without init= would train on features of a random encoder; give init=<hub folder>"
            " of a trained policy, or set data.features=frames"
        )


def check_init(cfg):
    """DataError where init= and the method's own language.init would fill the same weights."""
    language = OmegaConf.select(cfg, "method.language.init")
    if cfg.init is not None and language not in (None, "random"):
        raise DataError(f"init={cfg.init} already has a trunk; leave out method.language.init={language}, or init")


def check_ending(cfg, data):
    """DataError for lengths that train nothing, and values of stop_after, final and best without meaning here."""
    if cfg.steps < 1 or cfg.data.batch_size < 1 or cfg.validate_every < 1:
        given = f"steps={cfg.steps}, data.batch_size={cfg.data.batch_size}, validate_every={cfg.validate_every}"
        raise DataError(f"{given}: expected at least 1 of each")
    if cfg.final not in ("last", "best") or (cfg.stop_after is not None and cfg.stop_after < 1):
        given = f"final={cfg.final}, stop_after={cfg.stop_after}"
        raise DataError(f"{given}: expected last or best, and null or at least 1")
    if (cfg.final == "best" or cfg.stop_after is not None or cfg.best) and not data.validation:
        raise DataError("best, final=best and stop_after go by held-out data: set data.validation")


def initial_net(net_config, init):
    """(A fresh network, or the one saved at `init` if its configuration is the same; its origin in words)

    A network that goes around another, its `base`, takes the one at `init`: net_config["base"] is filled in.
    """
    if "base" in net_config and init is None:
        raise DataError(f"{net_config['_target_']} changes a trained policy: give init=<run or hub folder>")
    if init is None:
        checkpoint.check_targets(net_config)
        return checkpoint.construct(net_config), hub.origin(None, None)
    bundle = hub.load(init)
    if "base" in net_config:
        theirs = bundle.config["net"]
        net_config["base"] = theirs.get("base", theirs)
        if "base" not in theirs:
            checkpoint.check_targets(net_config)
            net = checkpoint.construct(net_config)
            net.base.load_state_dict(bundle.net.state_dict())
            return net.train(), hub.origin(init, bundle)
    ours, theirs = {k: v for k, v in net_config.items() if k != "dropout"}, dict(bundle.config["net"])
    different = sorted(k for k in ours if ours[k] != theirs.get(k))
    if different:
        values = ", ".join(f"{name}={theirs.get(name)}, here {ours[name]}" for name in different)
        raise DataError(f"init={init} was built with {values}; set method.net.<name> to match, or give data that fits")
    return bundle.net.train(), hub.origin(init, bundle)


def count(net):
    return sum(p.numel() for p in net.parameters())


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
