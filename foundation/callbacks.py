"""What a run shows and writes: progress with rate and time left, metrics.csv."""

import csv
import math
import sys
import time
import warnings
from collections import deque
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from tqdm import tqdm

from foundation.rollout import Episode
from pipelines.command import first_process


def csv_logger(folder, every=1, resumed_step=0):
    """A logger that writes `<folder>/metrics.csv`, going on from the rows before `resumed_step` that are there."""
    path = Path(folder) / "metrics.csv"
    kept = rows_before(path, resumed_step) if path.is_file() else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        logger = CSVLogger(str(folder), name="", version="", flush_logs_every_n_steps=every)
        if first_process():
            logger.experiment.metrics.extend(kept)  # Lightning starts the file anew; these rows are written first
    return logger


def rows_before(path, step):
    """Rows of a metrics.csv with a step below `step`; later ones are repeated by the resumed run."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) < step]
    return [{name: value for name, value in row.items() if value not in ("", None)} for row in rows]


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


class Experience(Callback):
    """One row of metrics.csv per rollout of an on-policy stream: frames, returns, and the means of the losses.

    `return` and `success` are means over the last `window` training episodes that ended; in the first rollouts those
    are the short ones, which in a task that ends at its goal are the successful ones.
    """

    def __init__(self, stream, window=100):
        self.stream, self.sums, self.count = stream, {}, 0
        self.recent = deque(maxlen=window)
        self.episodes = 0
        self.start, self.frames_at_start = time.monotonic(), stream.frames

    def on_train_start(self, trainer, module):
        self.start, self.frames_at_start = time.monotonic(), self.stream.frames

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name, value in outputs["metrics"].items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        if self.count == self.stream.per_iteration:
            self._write(trainer, module)

    def _write(self, trainer, module):
        self.recent.extend(self.stream.episodes)
        self.episodes += len(self.stream.episodes)
        row = {name: value / self.count for name, value in self.sums.items()}
        row |= {"frames": self.stream.frames, "episodes": self.episodes, **module.rollout_metrics, **self.averages()}
        seconds = time.monotonic() - self.start
        row["frames_per_second"] = (self.stream.frames - self.frames_at_start) / max(seconds, 1e-9)
        trainer.logger.log_metrics(row, step=trainer.global_step)
        self.sums, self.count = {}, 0

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
            "count": self.count,
        }  # fmt: skip

    def load_state_dict(self, state):
        self.stream.load_state_dict(state["stream"])
        self.recent.extend(Episode(*values) for values in state["recent"])
        self.episodes, self.sums, self.count = state["episodes"], state["sums"], state["count"]


def _mean(values):
    return sum(values) / len(values) if values else math.nan

