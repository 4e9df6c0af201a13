"""python -m foundation.finetune task=... algo=ppo init=<hub folder>: improves a policy by RL in an environment.

Tasks of vectors (metaworld, reacher2d, gym_mujoco) go on in `foundation.finetune_states`; what follows is for frames.
Without `init` it is the from-scratch arm; with `algo.kl=0` the unanchored one. Run again it continues where it stopped.
Leaves in run.dir: metrics.csv (one row per rollout), last.ckpt, the final policy as the hub folder `model`, and
summary.json with the task's protocol.
"""

import json
import logging
import time

import lightning as L
import torch
from hydra.utils import get_class

from foundation import finetune_states
from foundation.actors import PolicyActor, RandomActor
from foundation.callbacks import Experience, Progress
from foundation.checkpoints import Checkpoint, StepSeed, resume_path, step_of
from foundation.envs import registry
from foundation.evaluate import codec_for, evaluate, load_policy, opened, protocol_of
from foundation.finetuning import latent
from foundation.finetuning.ppo import PPO
from foundation.hub import machine_words, origin, save
from foundation.preemption import Preemption
from foundation.pretraining.encoders import frame_encoder, start_from
from foundation.rollout import Environments, OnPolicy, Rollout, training_seed
from foundation.training import derive, fit_from, make_trainer, plain
from pipelines import checkpoint
from pipelines.card import numbers
from pipelines.command import command, run_folder, write_summary
from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")


@command("finetune")
def main(cfg):
    L.seed_everything(cfg.run.seed, verbose=False)
    if registry.shows_vectors(cfg.task):
        if cfg.policy.init is not None:
            raise DataError(f"policy.init={cfg.policy.init} is an encoder of frames, {cfg.task.name} shows vectors;"
                            " start from a policy of vectors with init=, or from skills with skills.init=")  # fmt: skip
        searches = issubclass(get_class(cfg.algo.agent._target_), latent.LatentSearch)
        return (latent if searches else finetune_states).main(cfg)
    if not issubclass(get_class(cfg.algo.agent._target_), PPO):
        raise DataError(f"algo={cfg.algo.name} is for tasks of vectors, {cfg.task.name} shows frames; use algo=ppo")
    if cfg.skills.init or cfg.shaping.init:
        raise DataError(f"skills.init and shaping.init are for tasks of vectors, {cfg.task.name} shows frames")
    folder, algo, protocol = run_folder(cfg), plain(cfg.algo), protocol_of(cfg)
    bundle, encoder, size = begin(cfg)
    n = algo["stream"].pop("environments")
    with opened(cfg.task, n, size=size) as worlds:
        codec, fps = codec_for(bundle, worlds[0]), worlds[0].fps
        net_config = bundle.config["net"] if bundle else derive({**plain(cfg.policy.net), **encoder}, size, codec)
        policy = bundle.net if bundle else checkpoint.build(net_config)
        started = start_from(policy, cfg.policy.init) or origin(cfg.init, bundle)
        play_protocol = scorer(policy, codec, cfg, size, protocol, n)
        start = resume_path(folder, cfg.resume, plain(cfg))
        before = untrained(folder, start, codec, play_protocol) if cfg.evaluate_before else {}
        agent = get_class(algo["agent"].pop("_target_"))(policy, pretrained=bundle and policy, **algo["agent"])
        trained = fit(agent, Environments(worlds, training_seeds(cfg.run.seed)), codec, algo, cfg, folder, start)
    after = play_protocol("fine-tuned", "finetune")
    summary = {**before, **after, **trained}
    extras = {"actions": codec.spec, "size": size, "fps": fps, "statistics": bundle.statistics if bundle else {}}
    lead = (
        f"{arm(agent)}, task `{cfg.task.name}`, from {started}, seed {cfg.run.seed}, on"
        f" {machine_words()}. Play it with `python -m foundation.evaluate task={cfg.task.name} policy=<this folder>`."
    )
    save(folder / "model", policy, net_config, extras, lead, {"Measured": numbers(summary)}, cfg.run.name)
    return summary


def begin(cfg):
    """(Bundle of the policy or None, an `encoder` of a fresh one, h and w of the frames it sees)"""
    if cfg.init is None and cfg.policy.init is None:
        return None, {}, tuple(cfg.policy.size)
    if cfg.init is None:
        encoder = frame_encoder(cfg.policy.init)
        return None, {"encoder": encoder}, (encoder["height"], encoder["width"])
    if cfg.policy.init is not None:
        raise DataError(f"init={cfg.init} brings its encoder; leave out policy.init={cfg.policy.init}, or init")
    bundle = load_policy(cfg.init)
    if not all(hasattr(bundle.net, name) for name in ("latent", "head", "width")):
        raise DataError(
            f"algo={cfg.algo.name} does not fine-tune the {type(bundle.net).__name__} init={cfg.init}; give a policy of"
            " method=vpt, or train this one on with foundation.pretrain"
        )
    return bundle, {}, bundle.size


def untrained(folder, start, codec, play_protocol):
    """Scores of the random and the initial policy; a run that continues takes those it measured at its start."""
    path = folder / "before.json"
    if start is None or not path.is_file():
        scores = play_protocol("random", "random", RandomActor(codec)) | play_protocol("initial", "initial")
        write_summary(path, scores)
    return json.loads(path.read_text())


def training_seeds(seed):
    return lambda slot, episode: training_seed(seed, slot, episode)


def scorer(policy, codec, cfg, size, protocol, n):
    """Function (who, prefix, actor=the policy) -> numbers of the evaluation protocol, in environments of its own."""

    def play(who, prefix, actor=None):
        actor = actor or PolicyActor(policy.to(device_of(cfg)), codec, cfg.run.seed, device=device_of(cfg))
        with opened(cfg.task, min(n, protocol["episodes"]), **protocol["env"], size=size) as worlds:
            return evaluate(actor, worlds, protocol, who, prefix)

    return play


def device_of(cfg):
    return "cpu" if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available() else "cuda"


def fit(agent, environments, codec, algo, cfg, folder, start=None):
    """Trains `agent` on `cfg.frames` frames and more until the last rollout is full -> flat numbers."""
    if cfg.trainer.devices != 1:
        raise DataError(f"trainer.devices={cfg.trainer.devices}: RL runs in one process; choose trainer=cpu or gpu")
    rollout = Rollout(environments, codec, cfg.run.seed, features=not agent.hparams.train_encoder)
    iterations = -(-cfg.frames // (len(environments) * algo["stream"]["chunk"]))
    stream = OnPolicy(agent, rollout, iterations, **algo["stream"], seed=cfg.run.seed)
    experience = Experience(stream, cfg.window)
    total = iterations * len(environments) * stream.chunk
    show = Progress(total, "frame", count=lambda _: stream.frames, show=lambda _: experience.averages())
    settings = {**plain(cfg.trainer), "gradient_clip_val": algo["grad_clip"], "accumulate_grad_batches": 1}
    keeper = Checkpoint(folder, plain(cfg), cfg.checkpoint_every * stream.per_iteration, cfg.keep_checkpoints)
    shown = [experience, show, StepSeed(cfg.run.seed), keeper, Preemption(folder)]
    kept = step_of(start) + 1 if start else 0  # rows of metrics.csv are written after their step
    options = {"max_epochs": 1, "log_every_n_steps": stream.per_iteration, "resumed_step": kept}
    trainer = make_trainer(settings, folder, shown, len(stream), **options)
    log.info("%s, %s; %d rollouts", cfg.init or "from scratch", arm(agent), iterations)
    clock = time.monotonic()
    fit_from(trainer, agent, stream, start)
    environments.close()
    seconds, frames = time.monotonic() - clock, stream.frames - experience.frames_at_start
    return {
        "finetune/train_frames": stream.frames,
        "finetune/iterations": iterations,
        "finetune/train_frames_per_second": frames / seconds,  # of this process; 0 where nothing was left to do
        **{f"finetune/train_{name}": value for name, value in experience.averages().items()},
    }


def arm(agent):
    """Which of the three arms this is, in words."""
    if agent.prior is not None:
        return f"PPO with {agent.hparams.kl} KL to the pretrained policy"
    return f"PPO without KL, entropy bonus {agent.entropy}"


if __name__ == "__main__":
    main()
