"""Pretrain a model on shards: `python -m foundation.pretrain method=idm data.train=<trajectory shards>`."""

import json
import logging

import lightning as L
import torch
from omegaconf import OmegaConf

from foundation import callbacks, hub
from foundation.checkpoints import LOSS, Checkpoint, StepSeed, StopAfter, resume_path, step_of, take_best
from foundation.preemption import Preemption
from foundation.training import class_of, fit_from, made, make_trainer, plain, world_size
from pipelines import checkpoint
from pipelines.command import command, run_folder
from pipelines.schema import DataError

log = logging.getLogger(__name__)


@command("pretrain")
def main(cfg):
    L.seed_everything(cfg.run.seed, verbose=False)
    check_frozen(cfg)
    check_init(cfg)
    folder = run_folder(cfg)
    data = made(plain(cfg.data), steps=cfg.steps, seed=cfg.run.seed)
    check_ending(cfg, data)
    method = plain(cfg.method)
    net_config = class_of(method).configured(data.derive(method["net"]), method, cfg.init)
    if cfg.init is not None and hasattr(data, "inherit"):
        before = hub.load(cfg.init)
        data.inherit(before.statistics, before.config)
    net, started = initial_net(net_config, cfg.init)
    net = net.to(memory_format=torch.channels_last)  # convolutions are faster so
    task = made(method, net=net)
    log.info("%s: %.1f M parameters, %d frames", method["net"]["_target_"], count(net) / 1e6, data.frames)
    settings, config = plain(cfg.trainer), plain(cfg)
    start = resume_path(folder, cfg.resume, config, world_size(settings))
    best = cfg.best or (LOSS if cfg.final == "best" else None)
    keeper = Checkpoint(folder, config, cfg.checkpoint_every, cfg.keep_checkpoints, best)
    stop = [] if cfg.stop_after is None else [StopAfter(cfg.stop_after)]  # before the keeper, which saves its count
    every, shown = min(cfg.validate_every, cfg.steps), min(20, cfg.steps)
    trainer = make_trainer(
        settings, folder, [callbacks.Progress(cfg.steps), StepSeed(cfg.run.seed), *stop, keeper, Preemption(folder)],
        max_steps=cfg.steps, resumed_step=step_of(start),
        val_check_interval=every * settings["accumulate_grad_batches"], check_val_every_n_epoch=None,
        log_every_n_steps=shown,
    )  # fmt: skip
    fit_from(trainer, task, data, start)
    if not trainer.is_global_zero:
        return {}
    trainer.logger.save()
    summary = {"frames/train": data.frames, "steps": trainer.global_step, "parameters": count(net), **data.set_aside}
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    summary |= measured or ended_with(folder)
    if cfg.final == "best":
        summary |= take_best(folder, task)
    summary |= task.describe(data)
    scores, statistics = task.report(data.validation, folder, data.fps) if data.validation else ({}, {})
    summary |= scores
    words = task.started or started
    hub.save_trained(folder / "model", task.net, net_config, data, summary, cfg, statistics, words, task.base)
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
        raise DataError(f"init={init} was built with other values of {different}; set method.net.<name> to match them")
    return bundle.net.train(), hub.origin(init, bundle)


def count(net):
    return sum(p.numel() for p in net.parameters())


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
