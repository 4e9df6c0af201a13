"""What all pretraining methods share: optimizer and schedule from the config, metrics, gradient norm."""

import math

import lightning as L
import torch

from pipelines.schema import DataError

SCHEDULES = {  # progress after the warm-up, 0 to 1 -> factor
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


class PretrainTask(L.LightningModule):
    """A network and its optimizer. Subclasses add `losses(batch) -> (loss, metrics)`.

    optimizer: {lr, weight_decay, betas, warmup_steps, schedule: linear | cosine | constant}; only matrices decay.
    """

    started = None  # initial weights in words, where they came by neither init= nor chance
    seeds = 0  # leading axes of all parameters beside their own: 1 = of several seeds (foundation.seeds)
    base = None  # address of a language model whose weights are left out of what is saved

    @classmethod
    def configured(cls, net, method, init):
        """The network's config with what follows from the method's other settings, or from init=, filled in."""
        return net

    def __init__(self, net, optimizer):
        super().__init__()
        self.net = net
        self.optimizer = optimizer

    def forward(self, batch):
        return self.losses(batch)

    def training_step(self, batch, _):
        loss, metrics = self.losses(batch)
        self._log("train", {"loss": loss, **metrics})
        return loss

    def validation_step(self, batch, _):
        loss, metrics = self.losses(batch)
        self._log("validation", {"loss": loss, **metrics})

    def report(self, dataset, folder, fps):
        """What the trained network does on held-out data, beyond its metrics -> (flat numbers, hub statistics)."""
        return {}, {}

    def describe(self, data):
        """Numbers of the trained network that need no held-out data; data: the data module -> flat numbers."""
        return {}

    def _log(self, stage, metrics):
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", on_epoch=stage != "train", batch_size=1)

    def rates(self):
        """[(learning rate, parameters that have it)] of all parameters."""
        return [(self.optimizer["lr"], self.parameters())]

    def configure_optimizers(self):
        settings = dict(self.optimizer)
        warmup, schedule = settings.pop("warmup_steps"), settings.pop("schedule")
        decay = settings.pop("weight_decay")
        if schedule not in SCHEDULES:
            raise DataError(f"method.optimizer.schedule={schedule!r}: expected one of {sorted(SCHEDULES)}")
        groups = []
        for lr, parameters in self.rates():
            learning = [p for p in parameters if p.requires_grad]
            matrices = [p for p in learning if p.ndim - self.seeds >= 2]
            groups.append({"params": matrices, "lr": lr, "weight_decay": decay})
            groups.append({"params": [p for p in learning if p.ndim - self.seeds < 2], "lr": lr, "weight_decay": 0.0})
        try:
            optimizer = torch.optim.AdamW(groups, **settings)
        except ValueError as error:
            raise DataError(f"method.optimizer: {error}") from error
        total = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate(t, warmup, total, schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def rate(step, warmup, total, schedule):
    """Learning-rate factor: linear warm-up over `warmup` steps, then linear or cosine to 0 at `total`, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return SCHEDULES[schedule](progress)
