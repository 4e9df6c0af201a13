"""Token sequences for language models: a Markov chain that is made up, or the bytes of text files.

A source has `vocabulary` and `sequences(rows, length, generator) -> int64 [b n]`, a function of the generator alone.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from pipelines.folders import files_below
from pipelines.schema import DataError

ORDERS = ("markov", "iid")
MAX_STATES = 10_000  # a transition matrix of 0.8 GB
SUFFIXES = (".txt", ".rst", ".md")  # each also as .gz
SEPARATOR = b"\0"  # between files


class MarkovChain:
    """First-order chain of the synthetic pretraining of arXiv:2310.00771: row = softmax(U[0, 1]^M / tau).

    order=iid: uniform tokens, the control without any structure. Sequences begin in the stationary distribution, so
    every token's expected -log p given the one before it is `entropy`, which no model can go below.
    """

    def __init__(self, states=100, tau=1.0, order="markov", seed=0):
        if order not in ORDERS:
            raise DataError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
        if not 2 <= states <= MAX_STATES or not tau > 0:
            raise DataError(f"a chain of {states} states, tau={tau}: expected 2 to {MAX_STATES} states and tau above 0")
        self.vocabulary = states
        logits = np.random.default_rng(seed).random((states, states)) / tau
        rows = np.exp(logits - logits.max(1, keepdims=True))
        rows = rows / rows.sum(1, keepdims=True) if order == "markov" else np.full_like(rows, 1 / states)
        self.transitions, self.stationary = rows, stationary(rows)
        self._places = (np.cumsum(rows, 1).clip(max=1) + np.arange(states)[:, None]).ravel()  # ascending

    @property
    def entropy(self):
        """Nats per token, given the token before."""
        logs = np.log(self.transitions, where=self.transitions > 0, out=np.zeros_like(self.transitions))
        return float(-self.stationary @ (self.transitions * logs).sum(1))

    def sequences(self, rows, length, generator):
        m, draws = self.vocabulary, generator.random((length, rows))
        tokens = np.empty((rows, length), np.int64)
        tokens[:, 0] = np.minimum(np.searchsorted(np.cumsum(self.stationary), draws[0], side="right"), m - 1)
        for t in range(1, length):
            before = tokens[:, t - 1]
            found = np.searchsorted(self._places, before + draws[t], side="right") - before * m
            tokens[:, t] = found.clip(0, m - 1)
        return tokens

    def references(self):
        """Losses to compare with, in nats per token."""
        return {"entropy_floor": self.entropy, "uniform": math.log(self.vocabulary)}


def stationary(transitions, rounds=1000, tolerance=1e-14):
    """The distribution that a transition matrix keeps, float64 [M], by repeated multiplication."""
    now = np.full(len(transitions), 1 / len(transitions))
    for _ in range(rounds):
        before, now = now, now @ transitions
        if np.abs(now - before).sum() < tolerance:
            break
    return now / now.sum()


class Text:
    """Tokens of text files (.txt, .rst, .md, each also .gz), laid end to end.

    They are bytes, with a zero byte after each file, or what a tokenizer of Hugging Face makes of the text.
    """

    def __init__(self, files, limit_mb=256, tokenizer=None):
        """files: paths, read in this order until `limit_mb` is full. tokenizer: folder or hub name; None = bytes."""
        self.files, parts, left = files, [], int(limit_mb * 2**20)
        for path in files:
            parts.append(read_text(path, left) + SEPARATOR)
            left -= len(parts[-1])
            if left <= 0:
                break
        if tokenizer is None:
            self.vocabulary, self.tokens = 256, np.frombuffer(b"".join(parts), np.uint8)
        else:
            self.vocabulary, self.tokens = encode([part.removesuffix(SEPARATOR) for part in parts], tokenizer)

    def __len__(self):
        return len(self.tokens)

    def fingerprint(self):
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()[:16]

    def sequences(self, rows, length, generator):
        if len(self.tokens) < length:
            raise DataError(f"the text has {len(self.tokens)} tokens, a sequence needs {length}; give more text")
        starts = generator.integers(len(self.tokens) - length + 1, size=rows)
        return self.tokens[starts[:, None] + np.arange(length)].astype(np.int64)

    def frequencies(self):
        """Of each token, float64 [v], after one count of every one."""
        counts = np.bincount(self.tokens, minlength=self.vocabulary) + 1
        return counts / counts.sum()

    def references(self, other=None):
        """Nats per token of whoever knows only how frequent each is, on the text `other`."""
        counts = np.bincount((other or self).tokens, minlength=self.vocabulary)
        return {"frequencies_only": float(-(counts @ np.log(self.frequencies())) / counts.sum())}


def encode(parts, tokenizer):
    """(vocabulary size, int32 [n]): texts as bytes through a tokenizer of Hugging Face, each with its end of text."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"tokenizer={tokenizer} cannot be read ({reason}); null = bytes") from error
    end = [] if made.eos_token_id is None else [made.eos_token_id]
    texts = [part.decode(errors="replace") for part in parts]
    rows = [made(text, add_special_tokens=False, verbose=False)["input_ids"] + end for text in texts]
    return len(made), np.concatenate([np.array(row, np.int32) for row in rows])


def text_files(folder):
    """Text files under a folder, sorted; DataError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with text files ({', '.join(SUFFIXES)}, also as .gz)")
    found = files_below(folder, lambda name: Path(name.removesuffix(".gz")).suffix in SUFFIXES)
    if not found:
        raise DataError(f"{folder} holds no text files; expected {', '.join(SUFFIXES)}, each also as .gz")
    return found


def read_text(path, limit):
    """At most `limit` bytes of a text file, unpacked if it is a .gz."""
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            return file.read(limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again or take it away") from error


def split_files(files, share, seed=0):
    """(train, held out) lists of whole files; `share` of them, at least one, is held out."""
    order = np.random.default_rng(seed).permutation(len(files))
    held = set(order[: max(1, round(share * len(files)))].tolist())
    if not 0 < share < 1 or len(held) == len(files):
        raise DataError(f"a held-out share of {share} of {len(files)} files leaves one part empty")
    return [f for i, f in enumerate(files) if i not in held], [f for i, f in enumerate(files) if i in held]
