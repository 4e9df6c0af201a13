"""Continual learning by a penalty on the distance to what earlier tasks ended with: EWC (arXiv:1612.00796) and L2."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from foundation.losses.quadratic_penalty import merge, quadratic_penalty
from foundation.pretraining.mddt import MultiDomainTask
from pipelines.schema import DataError

FILE = "anchor.safetensors"  # in the run directory: what the run on the next task is held by


class AnchoredTask(MultiDomainTask):
    """Cross-entropy + strength * penalty. importance: fisher (EWC) | one (L2); batches: that estimate the Fisher.

    after: run directory of the task before, None = the first, which nothing holds. The Fisher's diagonal is the mean
    square of the gradient of a batch's mean loss, so its size goes down with the batch's.
    """

    def __init__(self, net, optimizer, only=(), strength=400.0, importance="fisher", batches=10, after=None):
        super().__init__(net, optimizer, only)
        if importance not in ("fisher", "one"):
            raise DataError(f"method.importance={importance!r}: expected fisher or one")
        self.strength, self.kind, self.batches = strength, importance, batches
        path = None if after is None else Path(after) / FILE
        if path is not None and not path.is_file():
            raise DataError(f"method.after={after} holds no {FILE}; give the finished run on the task before")
        held = load_file(path) if path else {}
        self.anchor, self.importance = ({n[2:]: v for n, v in held.items() if n.startswith(p)} for p in ("a/", "i/"))

    def losses(self, batch):
        loss, metrics = super().losses(batch)
        weights = dict(self.net.named_parameters())
        for part in (self.anchor, self.importance):
            part.update({name: value.to(loss.device) for name, value in part.items()})
        penalty = quadratic_penalty(weights, self.anchor, self.importance).to(loss.device)
        return loss + self.strength * penalty, {**metrics, "penalty": penalty}

    def describe(self, data):
        """Writes what holds the weights from now on, next to the model."""
        weights = {name: p.detach().cpu() for name, p in self.net.named_parameters() if p.requires_grad}
        if self.kind == "one":
            new = {name: torch.ones_like(value) for name, value in weights.items()}
        else:
            new = self.fisher(data)
        held = ({name: value.cpu() for name, value in part.items()} for part in (self.anchor, self.importance))
        anchor, importance = merge(*held, weights, new)
        values = {**{f"a/{n}": v for n, v in anchor.items()}, **{f"i/{n}": v for n, v in importance.items()}}
        save_file({name: value.contiguous() for name, value in values.items()}, self.folder / FILE)
        return super().describe(data)

    @property
    def folder(self):
        return Path(self.trainer.default_root_dir)

    def fisher(self, data):
        """{name: mean squared gradient} over `batches` batches of the training data, without dropout."""
        self.net.eval()
        sampler = data.train_dataloader().batch_sampler
        parameters = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p, device="cpu") for name, p in parameters.items()}
        device = next(iter(parameters.values())).device
        for step in range(self.batches):
            batch = {n: v.to(device) for n, v in data.dataset.__getitems__(sampler.batch(step)).items()}
            with torch.enable_grad():
                loss, _ = MultiDomainTask.losses(self, batch)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += 0 if gradient is None else gradient.square().cpu() / self.batches
        return total
