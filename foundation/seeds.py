"""Several seeds of one small model trained in one process, each as in a run of its own.

    parameters  [k ...]    of every seed, beside one another: one Adam and one average of targets serve all
    batches     {name: [k b ...]}, of every seed the one that its own run has at this step
    losses      [k]        those of the task, under torch.vmap; their sum has the gradients of each

It saves the time between operations, of which small networks on a CPU or GPU waste most. There are as many products as
in runs one after another (`benchmarks.seeds`).
"""

import copy
from pathlib import Path

import lightning as L
import torch
from omegaconf import OmegaConf
from torch.func import functional_call, stack_module_state
from torch.utils.data import Dataset

from foundation.callbacks import RunLogger, csv_logger
from foundation.pretraining.goal_data import GoalData
from foundation.pretraining.token_data import by_step
from foundation.target_networks import Followed
from foundation.training import plain, world_size
from pipelines.schema import DataError


def name_of(seed):
    """Of its folder in run.dir, and of its numbers in the trainer."""
    return f"seed{seed}"


def configs(cfg):
    """The config of the run that each seed would be."""
    for seed in cfg.run.seeds:
        own = {"seed": seed, "seeds": None, "dir": str(Path(cfg.run.dir) / name_of(seed))}
        yield OmegaConf.merge(cfg, {"run": own})


def check(cfg):
    """DataError for settings that several seeds cannot share."""
    seeds, settings = list(cfg.run.seeds), plain(cfg.trainer)
    if not seeds or len(set(seeds)) < len(seeds):
        raise DataError(f"run.seeds={seeds}: expected different whole numbers, at least one")
    listed = ",".join(map(str, seeds))
    alone = f"or train them one by one: -m run.seed={listed} 'run.dir={cfg.run.dir}/seed${{run.seed}}'"
    if settings.get("gradient_clip_val") is not None:
        raise DataError(f"trainer.gradient_clip_val={settings['gradient_clip_val']} would go by the gradients of all"
                        f" seeds together; set it to null, {alone}")  # fmt: skip
    if world_size(settings) > 1 or settings.get("strategy", "auto") != "auto":
        raise DataError(f"run.seeds trains in one process; choose trainer=cpu or gpu, {alone}")
    if cfg.best or cfg.final == "best" or cfg.stop_after is not None:
        raise DataError(f"best, final=best and stop_after go by one run; leave them out with run.seeds, {alone}")
    if cfg.method.get("compile"):
        raise DataError(f"method.compile=true is for one seed; leave it out with run.seeds, {alone}")


def joined(tasks, parts, seeds):
    """(Task, data) of all seeds; DataError for methods of which a run trains one seed."""
    task, data = tasks[0], parts[0]
    if not (isinstance(task, Followed) and isinstance(data, GoalData)):
        kinds = f"{type(task).__name__} on {type(data).__name__}"
        raise DataError(f"run.seeds: {kinds} trains one seed at a time; methods on single steps of vectors (hilp, iql,"
                        " goal_bc) train several")  # fmt: skip
    return SeedTask(tasks, seeds), SeedData(parts)


class SeedTask(Followed, L.LightningModule):
    """Trains copies of a task; `task` is one whose parameters and buffers are those of all, [k ...]."""

    def __init__(self, tasks, seeds):
        super().__init__()
        self.task, self.names, self.ema = stacked(tasks), [name_of(seed) for seed in seeds], tasks[0].ema
        self.all_losses = torch.vmap(self.losses_of_one)

    @property
    def net(self):
        return self.task.net

    def losses_of_one(self, tensors, batch):
        return functional_call(self.task, tensors, (batch,))

    def tensors(self):
        return {**dict(self.task.named_parameters()), **dict(self.task.named_buffers())}

    def training_step(self, batch, _):
        losses, metrics = self.all_losses(self.tensors(), batch)
        self.log("train/loss", losses.mean(), prog_bar=True, batch_size=1)
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0 or step == self.trainer.max_steps:  # else nobody reads them
            for k, name in enumerate(self.names):
                self._log(f"{name}/train", {"loss": losses[k], **{n: value[k] for n, value in metrics.items()}})
        return losses.sum()

    def validation_step(self, batch, _, dataloader_idx=0):
        """A batch of one seed: the held-out data of each are its own."""
        tensors = {name: value[dataloader_idx] for name, value in self.tensors().items()}
        loss, metrics = self.losses_of_one(tensors, batch)
        self._log(f"{self.names[dataloader_idx]}/validation", {"loss": loss, **metrics})

    def _log(self, stage, metrics):
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value, batch_size=1, add_dataloader_idx=False)

    def follow(self):
        self.task.follow()

    def configure_optimizers(self):
        return self.task.configure_optimizers()

    def give(self, tasks):
        """Each of the tasks gets the weights of its seed."""
        state = self.task.state_dict()
        for k, task in enumerate(tasks):
            task.load_state_dict({name: value[k] for name, value in state.items()})


def stacked(tasks):
    """A task whose parameters and buffers are those of all the tasks, [k ...]."""
    together = copy.deepcopy(tasks[0])
    together.seeds = 1
    parameters, buffers = stack_module_state(tasks)
    for name, tensor in (*together.named_parameters(), *together.named_buffers()):
        tensor.data = (parameters if name in parameters else buffers)[name].data
    return together


class SeedData(L.LightningDataModule):
    """The batches of several data modules, a seed each, as one."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def setup(self, stage):
        for part in self.parts:
            part.trainer = self.trainer
            part.setup(stage)

    def train_dataloader(self):
        first = self.parts[0]
        return by_step(Together([part.dataset for part in self.parts]), self.trainer, first.steps, first.workers)

    def val_dataloader(self):
        return [part.val_dataloader() for part in self.parts] if self.parts[0].validation else []


class Together(Dataset):
    """Item t = batch t of every dataset, {name: [k b ...]}."""

    def __init__(self, datasets):
        self.datasets = datasets

    def __getitem__(self, step):
        batches = [dataset[step] for dataset in self.datasets]
        return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}


class SeedLogger(RunLogger):
    """`<folder>/seed<k>/metrics.csv` of every seed, and `<folder>/metrics.csv` of what belongs to none."""

    def __init__(self, seeds, folder, every, resumed_step):
        super().__init__(folder, every, resumed_step)
        self.parts = {}
        for name in map(name_of, seeds):
            (Path(folder) / name).mkdir(exist_ok=True)
            self.parts[f"{name}/"] = csv_logger(Path(folder) / name, every, resumed_step)

    def log_metrics(self, metrics, step=None):
        for prefix, logger in self.parts.items():
            own = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
            if own:
                logger.log_metrics(own, step)
        shared = {name: value for name, value in metrics.items() if not name.startswith(tuple(self.parts))}
        super().log_metrics(shared, step)

    def save(self):
        for logger in (*self.parts.values(), super()):
            logger.save()
