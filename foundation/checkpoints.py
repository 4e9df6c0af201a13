"""Checkpoints of a run, and what it takes to go on from one as if nothing had happened.

    run.dir/last.ckpt     the newest; last-1.ckpt, ... the ones before it
    run.dir/best.ckpt     the lowest value of one metric so far

A batch is a function of (seed, step), and so is every draw of a training step (`StepSeed`), so a checkpoint holds no
state of loaders or random generators. Streams of experience keep theirs in their callback.
"""

import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from pipelines.schema import DataError

log = logging.getLogger("foundation-policy")
LAST, BEST = "last.ckpt", "best.ckpt"
LOSS = "validation/loss"
KEPT = 2  # checkpoints that stay, the newest included
FREE = {  # config entries that may differ from those of the checkpoint
    "run", "resume", "debug", "frames", "hydra", "checkpoint_every", "keep_checkpoints", "best", "final",
    "experiment", "evaluate_before", "episodes", "data.workers", "data.cache_gb", "trainer.devices",
    "trainer.num_nodes", "trainer.accelerator", "trainer.strategy",
}  # fmt: skip


class StepSeed(Callback):
    """Seeds torch before each training batch with (seed, batch number, rank): dropout goes on as if never stopped."""

    def __init__(self, seed):
        self.seed = seed

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        sequence = np.random.SeedSequence([self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


class Checkpoint(Callback):
    """Writes `last.ckpt` every `every` steps (0: never) and at the end, keeping `keep`; `best.ckpt` by `best`.

    config: the run's, as plain values; it goes into the checkpoint, and resuming with another one is refused.
    best: a logged validation metric of which lower is better, or None.
    """

    def __init__(self, folder, config, every=0, keep=KEPT, best=None):
        self.folder, self.config, self.every, self.keep, self.best = Path(folder), config, every, keep, best
        self.lowest, self.row_to_come = float("inf"), False

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["run"] = {"config": self.config, "world_size": trainer.world_size}
        numbers = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("validation/")}
        checkpoint["run"]["validation"] = numbers  # of these weights only in what `best` keeps

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.every and whole and trainer.global_step % self.every == 0 and not validation_follows(trainer):
            save_atomically(trainer, self.folder / LAST, self.keep)
            self.row_to_come = True  # Lightning logs the step after this hook

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.row_to_come and trainer.logger is not None:
            trainer.logger.save()  # or a kill would lose a row that the resumed run does not write again
        self.row_to_come = False

    def on_validation_end(self, trainer, module):
        value = trainer.callback_metrics.get(self.best)
        better = value is not None and float(value) < self.lowest
        self.lowest = float(value) if better else self.lowest
        if better:
            save_atomically(trainer, self.folder / BEST, keep=1)
        if self.every and trainer.global_step % self.every == 0:
            save_atomically(trainer, self.folder / LAST, self.keep)

    def on_train_end(self, trainer, module):
        save_atomically(trainer, self.folder / LAST, self.keep)

    def state_dict(self):
        return {"lowest": self.lowest}

    def load_state_dict(self, state):
        self.lowest = state["lowest"]


class StopAfter(EarlyStopping):
    """Ends training once `validation/loss` has not improved for `patience` validations; a resumed run knows it ended.

    It belongs before `Checkpoint` in the list of callbacks, which then saves what this one just counted.
    """

    def __init__(self, patience):
        super().__init__(LOSS, patience=patience, check_on_train_epoch_end=False)

    def on_train_start(self, trainer, module):
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def take_best(folder, module):
    """Gives `module` the weights of best.ckpt -> {its validation metrics, "steps_best": when it was written}."""
    path = Path(folder) / BEST
    if not path.is_file():
        raise DataError(f"final=best, but {path} was not written: no validation gave a number; is the loss finite?")
    kept = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    return {**kept["run"]["validation"], "steps_best": kept["global_step"]}


def validation_follows(trainer):
    """Whether a validation follows this batch: a checkpoint is written after it, so that none is left out."""
    batches = trainer.fit_loop.total_batch_idx + 1
    return trainer.enable_validation and batches % trainer.val_check_batch == 0


def save_atomically(trainer, path, keep=KEPT):
    """Writes the trainer's checkpoint to `path`, and metrics.csv with it; every rank calls it.

    A kill, or a full disk, leaves the old file or the new one. The `keep - 1` before it stay as `<stem>-1.ckpt`, ...
    """
    path = Path(path)
    part = path.with_suffix(".ckpt.part")
    if trainer.logger is not None:
        trainer.logger.save()
    try:
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            with open(part, "rb+") as handle:
                os.fsync(handle.fileno())
            for i in range(keep - 1, 0, -1):
                newer = older(path, i - 1)
                if newer.exists():
                    os.replace(newer, older(path, i))
            os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) or "write" in str(error).lower():
            raise DataError(f"cannot write {path} ({error}); the one before it is good: free space, go on") from error
        raise


def older(path, i):
    """The i-th file before `path`: last.ckpt, last-1.ckpt, ..."""
    return path if i == 0 else path.with_stem(f"{path.stem}-{i}")


def resume_path(folder, resume, config, world_size=1):
    """The newest whole checkpoint in the run directory, or None: nothing there, or resume=never.

    Torn files are passed over with a warning. DataError where the run's config or number of processes is another.
    """
    if resume not in ("auto", "never"):
        raise DataError(f"resume={resume!r}: expected auto or never")
    if resume == "never":
        return None
    last, found = Path(folder) / LAST, None
    candidates = [path for path in [last, *(older(last, i) for i in range(1, 100))] if path.exists()]
    for path in candidates:
        if whole(path):
            found = path
            break
        log.warning("%s is damaged and passed over", path)
    if candidates and found is None:
        raise DataError(f"none of {[str(p) for p in candidates]} is whole; resume=never starts again")
    if found is not None:
        check_same_run(found, config, world_size)
    return None if found is None else str(found)


def whole(path):
    """Whether a checkpoint file is complete and undamaged: every member's checksum is compared, then it is opened.

    (The checksums do not cover the archive's own tables; torch maps the file, so opening it reads next to nothing.)
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        opened(path)
    except Exception as error:  # what a damaged zip or pickle raises has no end
        log.warning("%s does not open (%s: %.200s)", path, type(error).__name__, error)
        return False
    return True


def opened(path):
    """The content of a checkpoint file, its tensors on disk."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_same_run(path, config, world_size):
    written = opened(path).get("run")
    if written is None:
        raise DataError(f"{path} was not written by this version of the command; resume=never starts again")
    if written["world_size"] != world_size:
        raise DataError(
            f"{path} was written by {written['world_size']} processes, now there are {world_size}: the order of samples"
            " would change; use as many as before, or resume=never to start again"
        )
    before, now = flat(written["config"]), flat(config)
    both = sorted(before.keys() & now.keys())  # an option that another version did not have stands at its default
    differing = [name for name in both if before[name] != now[name]]
    differing = [name for name in differing if not free(name, before)]
    if differing:
        changes = "; ".join(f"{n}: {before[n]} then, {now[n]} now" for n in differing[:6])
        raise DataError(
            f"{path} belongs to a run with another config ({changes}); set them back, choose another run.dir (for"
            " several seeds 'run.dir=outputs/<name>/seed${run.seed}'), or start again with resume=never"
        )


def free(name, config):
    """Whether an entry may change between a checkpoint and the run that goes on from it."""
    if name == "steps":
        return config.get("method.optimizer.schedule") == "constant"  # the others depend on the end
    if name in ("run.seed", "run.seeds"):
        return False
    return any(name == entry or name.startswith(entry + ".") for entry in FREE)


def flat(config, prefix=""):
    """Nested dicts as {"a.b": value}."""
    pairs = {}
    for name, value in config.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return pairs


def step_of(checkpoint):
    """Optimizer steps in a checkpoint file; 0 for None."""
    if checkpoint is None:
        return 0
    return opened(checkpoint)["global_step"]
