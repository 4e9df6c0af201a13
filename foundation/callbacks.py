"""What a run shows and writes: progress with rate and time left, metrics.csv."""

import csv
import math
import os
import sys
import time
from collections import deque
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from tqdm import tqdm

from foundation.rollout import Episode
from pipelines.command import first_process
from pipelines.schema import DataError


class Rows(ExperimentWriter):
    """Writes metrics.csv so that a kill at any moment loses no row of an earlier run.

    Lightning's deletes the file that it finds, until the first row comes, and changes the header in place.
    """

    def __init__(self, folder, resumed_step):
        super().__init__(folder)
        path = Path(self.metrics_file_path)
        self.metrics_keys, rows = read_rows(path) if path.is_file() else ([], [])
        kept = [row for row in rows if row["step"].isdigit() and int(row["step"]) < resumed_step]
        if kept:
            self._replace(kept)
        else:
            path.unlink(missing_ok=True)
            self.metrics_keys = []

    def _check_log_dir_exists(self):
        pass

    def _rewrite_with_new_header(self, fieldnames):
        self._replace(read_rows(self.metrics_file_path)[1])

    def _replace(self, rows):
        part = Path(f"{self.metrics_file_path}.part")
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.metrics_file_path)


def read_rows(path):
    """(column names, rows) of a metrics.csv, without a last row that a killed writer left unfinished."""
    lines = Path(path).read_text().splitlines(keepends=True)
    reader = csv.DictReader([line for line in lines if line.endswith("\n")])
    rows = [row for row in reader if row.get("step")]
    return list(reader.fieldnames or ()), rows


class RunLogger(CSVLogger):
    """`<folder>/metrics.csv`, going on from its rows before `resumed_step`: the later ones come again."""

    def __init__(self, folder, every, resumed_step):
        super().__init__(str(folder), name="", version="", flush_logs_every_n_steps=every)
        self.folder, self.resumed_step = str(folder), resumed_step

    @property
    @rank_zero_experiment
    def experiment(self):
        if self._experiment is None:
            self._experiment = Rows(self.folder, self.resumed_step)
        return self._experiment


def csv_logger(folder, every=1, resumed_step=0):
    """A logger that writes `<folder>/metrics.csv`, going on from the rows before `resumed_step` that are there."""
    logger = RunLogger(folder, every, resumed_step)
    if first_process():
        logger.experiment  # noqa: B018 now, whether this run will have rows or not
    return logger


class Progress(Callback):
    """A line with rate and time left.

    `count(trainer)` says how many of `total` units are done, `show(trainer)` which numbers stand beside them.
    """

    def __init__(self, total, unit="step", count=lambda t: t.global_step, show=lambda t: t.progress_bar_metrics):
        self.total, self.unit, self.count, self.show = total, unit, count, show

    def on_train_start(self, trainer, module):
        # in a log file a new line now and then, in a terminal a line that moves
        interval = 0.5 if sys.stderr.isatty() else 10
        start = min(self.count(trainer), self.total)
        self.bar = tqdm(total=self.total, initial=start, unit=self.unit, mininterval=interval, dynamic_ncols=True)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        shown = {name: f"{float(value):.4g}" for name, value in self.show(trainer).items()}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(min(self.count(trainer), self.total) - self.bar.n)

    def on_train_end(self, trainer, module):
        self.bar.close()

    def on_exception(self, trainer, module, exception):
        if hasattr(self, "bar"):
            self.bar.close()


class Diverged(Callback):
    """Ends a run whose loss, or any weight at its end, is NaN or infinite; to stand before what writes checkpoints."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if outputs is not None:
            self._check(trainer, [("loss", outputs["loss"])])

    def on_train_end(self, trainer, module):
        self._check(trainer, module.named_parameters())

    def _check(self, trainer, named):
        name = next((name for name, value in named if not value.isfinite().all()), None)
        broken = name is not None
        if trainer.world_size > 1:  # all of them stop, or the others would wait for this one
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if broken:
            raise DataError(
                f"{name or 'another process'} holds NaN or infinity after step {trainer.global_step}: training"
                " diverged. Lower the learning rate (method.optimizer.lr, algo.agent.lr), or clip gradients"
                " (trainer.gradient_clip_val), and start again with resume=never"
            )


class Experience(Callback):
    """One row of metrics.csv per rollout of an on-policy stream: frames, returns, and the means of the losses.

    `return` and `success` are means over the last `window` training episodes that ended; in the first rollouts those
    are the short ones, which in a task that ends at its goal are the successful ones.
    """

    def __init__(self, stream, window=100):
        self.stream, self.sums, self.counts, self.count = stream, {}, {}, 0
        self.recent = deque(maxlen=window)
        self.episodes = 0
        self.start, self.frames_at_start = time.monotonic(), stream.frames

    def on_train_start(self, trainer, module):
        self.start, self.frames_at_start = time.monotonic(), self.stream.frames

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name, value in outputs["metrics"].items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1  # not every update has every term
        self.count += 1
        if self.count == self.stream.per_iteration:
            self._write(trainer, module)

    def _write(self, trainer, module):
        self.recent.extend(self.stream.episodes)
        self.episodes += len(self.stream.episodes)
        row = {name: value / self.counts[name] for name, value in self.sums.items()}
        row |= {"frames": self.stream.frames, "episodes": self.episodes, **module.rollout_metrics, **self.averages()}
        seconds = time.monotonic() - self.start
        row["frames_per_second"] = (self.stream.frames - self.frames_at_start) / max(seconds, 1e-9)
        trainer.logger.log_metrics(row, step=trainer.global_step)
        self.sums, self.counts, self.count = {}, {}, 0

    def averages(self):
        known = [e.success for e in self.recent if e.success is not None]
        return {
            "return": _mean([e.returns for e in self.recent]),
            "success": _mean(known),
            "episode_frames": _mean([e.frames for e in self.recent]),
        }

    def state_dict(self):
        recent = [(e.seed, e.returns, e.frames, e.success) for e in self.recent]
        return {
            "stream": self.stream.state_dict(), "recent": recent, "episodes": self.episodes, "sums": dict(self.sums),
            "counts": dict(self.counts), "count": self.count,
        }  # fmt: skip

    def load_state_dict(self, state):
        self.stream.load_state_dict(state["stream"])
        self.recent.extend(Episode(*values) for values in state["recent"])
        self.episodes, self.sums, self.count = state["episodes"], state["sums"], state["count"]
        self.counts = state.get("counts", dict.fromkeys(self.sums, self.count))  # before: every update had every term


def _mean(values):
    return sum(values) / len(values) if values else math.nan
