"""Stopping at the end of a step when asked to, and going on later as if nothing had happened."""

import logging
import signal
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from foundation import slurm
from foundation.checkpoints import LAST, save_atomically, validation_follows

log = logging.getLogger("foundation-policy")
SIGNALS = {signal.SIGUSR1, signal.SIGTERM}
AGAIN = 75  # exit status of a run that was stopped: EX_TEMPFAIL of sysexits.h, "run the same command again"


class Preemption(Callback):
    """On SIGUSR1 or SIGTERM: checkpoint at the end of the running optimizer step, requeue under Slurm, exit with 75.

    The handler only notes the signal. Under `slurm/*.sh` both signals are held back from the process and all its
    children from the start, so that neither one that comes while data is loaded nor one that reaches a loader's worker
    or a game engine kills anything; then it is read here as a pending signal.

    Comes last in the list of callbacks: the state of the others must be that after the step.
    """

    def __init__(self, folder):
        self.path = Path(folder) / LAST
        self.noted, self.saved, self.step = False, False, 0

    def on_train_start(self, trainer, module):
        self.step = trainer.global_step
        for number in SIGNALS:  # in place of Lightning's, which puts the earlier ones back when training ends
            signal.signal(number, self._note)
        if self.step and trainer.is_global_zero:
            log.info("going on from step %d", self.step)

    def _note(self, number, frame):
        self.noted = True

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        if stepped and not validation_follows(trainer):
            self._save_if_asked(trainer)

    def on_validation_end(self, trainer, module):
        self._save_if_asked(trainer)

    def _save_if_asked(self, trainer):
        asked = self.noted or bool(SIGNALS & signal.sigpending())
        if trainer.strategy.reduce_boolean_decision(asked, all=False):  # ranks hear of it in different steps
            save_atomically(trainer, self.path)
            self.saved = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._leave_if_saved(trainer)  # not before: the metrics of a step are logged after on_train_batch_end

    def on_train_end(self, trainer, module):
        self._leave_if_saved(trainer)

    def on_exception(self, trainer, module, exception):
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            known = f"{self.path} is of an earlier step" if self.path.exists() else "no checkpoint is written yet"
            log.warning("interrupted at step %d; %s, what came after it is lost (kill -TERM saves first); to continue "
                        "run the same command again: %s", trainer.global_step, known, slurm.again())  # fmt: skip

    def _leave_if_saved(self, trainer):
        if not self.saved:
            return
        if trainer.is_global_zero:
            log.warning("%s", farewell(f"stopped at step {trainer.global_step}, {self.path} is written"))
        sys.exit(AGAIN)


def farewell(done):
    """Requeues under Slurm -> what to tell the user after `done`."""
    refused = None if slurm.job_id() is None else slurm.requeue()
    if slurm.job_id() is None or refused:
        reason = f"; not requeued ({refused})" if refused else ""
        return f"{done}{reason}; to continue run the same command again: {slurm.again()}"
    return f"{done}; job {slurm.job_id()} is queued again and continues from there"
