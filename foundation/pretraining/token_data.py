"""Tokens of a Markov chain or of text -> batches for language models, as a LightningDataModule.

The members are those of TrajectoryData. A batch is a pure function of (seed, step).
"""

from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.schema import TOKENS, DataError
from pipelines.stream import StepIndexed
from pipelines.tokens import MarkovChain, Text, split_files, text_files

TRAIN, HELD_OUT = 0, 1  # parts whose random streams differ


class Sequences(Dataset):
    """Item t = batch t: {TOKENS: int64 [b n+1]}, n to read and n to predict; `rank`'s rows of the global batch."""

    def __init__(self, source, batch_size, length, key, rank=0, world_size=1):
        self.source, self.batch_size, self.length, self.key = source, batch_size, length, key
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step):
        generator = np.random.default_rng((*self.key, step))
        tokens = self.source.sequences(self.batch_size * self.world_size, self.length + 1, generator)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return {TOKENS: torch.from_numpy(tokens[mine])}


class HeldOut(Sequences):
    """A fixed number of batches that training never sees; `references` are losses to compare with."""

    def __init__(self, source, batch_size, length, batches, references):
        super().__init__(source, batch_size, length, (0, HELD_OUT))
        self.batches, self.references = batches, references

    def __len__(self):
        return self.batches


class Steps(StepIndexed):
    """Step numbers as they are."""

    def __init__(self, total_steps, start_step):
        self.total_steps, self.start_step = total_steps, start_step

    def batch(self, step):
        return step


def by_step(dataset, trainer, steps, workers):
    """Loader of a dataset whose item t is its `rank`'s share of batch t, from where the trainer stands to the end of so
    many updates."""
    dataset.rank, dataset.world_size = trainer.global_rank, trainer.world_size
    parts = trainer.accumulate_grad_batches
    sampler = Steps(steps * parts, trainer.global_step * parts)
    return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers)


class TokenData(L.LightningDataModule):
    """Subclasses set `source` and `validation` (HeldOut or None), and say what the source is."""

    fps = None

    def __init__(self, batch_size, workers, length, steps, seed):
        super().__init__()
        self.batch_size, self.workers, self.length, self.steps, self.seed = batch_size, workers, length, steps, seed
        self.set_aside = Counter()
        self.frames = steps * batch_size * length  # tokens read in all

    def derive(self, net):
        """The network's config with what follows from the data filled in."""
        return {name: self.source.vocabulary if name == "vocabulary" and v is None else v for name, v in net.items()}

    def statistics(self):
        return {}

    def sequences(self, rank=0, world_size=1):
        """Training batches by step number; steps beyond `steps` exist too."""
        return Sequences(self.source, self.batch_size, self.length, (self.seed, TRAIN), rank, world_size)

    def train_dataloader(self):
        return by_step(self.sequences(), self.trainer, self.steps, self.workers)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None) if self.validation else []


class MarkovData(TokenData):
    """A made-up chain; options as in configs/data/markov.yaml."""

    def __init__(self, states, tau, order, chain_seed, validation, batch_size, workers, length, steps, seed):
        super().__init__(batch_size, workers, length, steps, seed)
        self.source = MarkovChain(states, tau, order, chain_seed)
        self.words_ = f"{order} tokens of {states} kinds" + (f", tau {tau:g}" if order == "markov" else "")
        self.validation = HeldOut(self.source, batch_size, length, validation, self.source.references())
        self.chain_seed = chain_seed

    def contract(self):
        return {"tokens": "chain"}

    def words(self):
        return self.words_

    def provenance(self):
        values = {f"{name}, nats per token": value for name, value in self.source.references().items()}
        return {"source": f"{self.words_}, seed {self.chain_seed}", **values}


class TextData(TokenData):
    """Text files of a folder, as bytes or tokens; options as in configs/data/text.yaml."""

    def __init__(self, train, validation, limit_mb, tokenizer, batch_size, workers, length, steps, seed):
        super().__init__(batch_size, workers, length, steps, seed)
        if not train:
            raise DataError(
                "no text to learn from: set data.train to a folder of text files, or data=markov, a chain needing none"
                " (beside a policy: method.language.text.train, or data@method.language.text=markov)"
            )
        files, held = text_files(train), []
        if isinstance(validation, float):
            files, held = split_files(files, validation, seed)
        elif validation:
            held = text_files(validation)
        self.named, self.tokenizer = {"train": train, "validation": validation}, tokenizer
        self.source = Text(files, limit_mb, tokenizer)
        self.source.sequences(1, length + 1, np.random.default_rng(0))  # says so where the text is too short
        self.validation = None
        if held:
            other = Text(held, limit_mb, tokenizer)
            batches = max(1, min(64, len(other) // (batch_size * length)))
            self.validation = HeldOut(other, batch_size, length, batches, self.source.references(other))

    def contract(self):
        return {"tokens": self.tokenizer or "bytes"}

    def words(self):
        return f"{'tokens' if self.tokenizer else 'bytes'} of text from {Path(self.named['train']).name}"

    def provenance(self):
        return {
            "text": f"{self.named['train']}, fingerprint {self.source.fingerprint()}",
            "files": len(self.source.files), "tokens": len(self.source),
            "held out": str(self.named["validation"]),
        }  # fmt: skip
