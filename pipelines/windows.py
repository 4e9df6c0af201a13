"""Labels for one run of frames: overlapping windows of which the centre counts, with encoder features shared.

The procedure of VPT (arXiv:2206.11795, appendix D): windows of `window` frames at a stride of half of it; the central
half of each is kept, the first window also keeps its head and the last one everything to the end. Nearly all the work
is in the frame encoder and every frame lies in two windows, so here each frame is encoded once.

That is exact. A feature depends on frames at most `idm.reach` away, so only the first and last `reach` features of a
window differ from those of the run (the window sees nothing beyond its ends), and these few are encoded again.
"""

import inspect
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.schema import DataError

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Window:
    """Frames [start, stop) of the run go through the net; the labels of [keep_start, keep_stop) are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass
class Labels:
    """What the labeller says about n frames: probabilities, and where it said anything."""

    key_probabilities: np.ndarray  # float32 [n k]
    camera_probabilities: np.ndarray  # float32 [n 2 bins]
    coverage: np.ndarray  # bool [n]


def plan(n, window):
    """Windows for a run of n frames; kept ranges tile [0, n). The last window is moved back to end at n.

    A run shorter than the window is one short window.
    """
    if window < 2:
        raise DataError(f"the labelling window is {window} frames; expected at least 2")
    if n <= window:
        return [Window(0, n, 0, n)] if n else []
    stride = window // 2
    margin = (window - stride) // 2
    starts = [*range(0, n - window, stride), n - window]
    cuts = [0, *(start + margin + stride for start in starts[:-1]), n]
    return [Window(s, s + window, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


def label_run(idm, frames, precision="fp32", average=False, frames_per_call=256, progress=None):
    """Labels of a run, each frame encoded once; equal to `label_run_plain` up to rounding.

    frames: uint8 [n h w c], or anything with a length whose slices are such arrays (a run read from disk piece by
    piece). average: mean over all windows that cover a frame, weighted towards their centres, instead of the centre
    crop. frames_per_call bounds memory. progress: called with the number of frames finished.
    """
    windows = plan(len(frames), idm.window)
    collect = Collector(len(frames), average)
    features = SharedFeatures(idm, frames)
    with inference(idm, precision):
        for group in batches(windows, max(1, 2 * frames_per_call // idm.window)):
            collect.add(group, idm.decode(features.of(group)), progress)
    return collect.labels()


def label_run_plain(idm, frames, precision="fp32", average=False, frames_per_call=256, progress=None):
    """The reference procedure: every window through the whole net."""
    windows = plan(len(frames), idm.window)
    collect = Collector(len(frames), average)
    with inference(idm, precision):
        for group in batches(windows, max(1, frames_per_call // idm.window)):
            batch = np.stack([frames[w.start : w.stop] for w in group])
            collect.add(group, idm(to_device(idm, batch)), progress)
    return collect.labels()


class SharedFeatures:
    """Encoder features of consecutive groups of windows, read once from `frames` and encoded once per frame."""

    def __init__(self, idm, frames):
        if idm.window < 2 * idm.reach:
            raise DataError(f"the model's window of {idm.window} frames is shorter than twice its reach {idm.reach}")
        self.idm, self.frames = idm, frames
        self.skips_margins = "keep" in inspect.signature(idm.encode).parameters
        self.cached, self.base = None, 0  # features of run frames [base, base + len(cached))

    def of(self, group):
        """Features [b t d] of the windows of a group, as if each were encoded alone."""
        start, stop, reach = group[0].start, group[-1].stop, self.idm.reach
        low = max(0, start - reach)
        block = self.frames[low : min(len(self.frames), stop + reach)]  # one read per group
        self._extend(block, low, start, stop)
        features = torch.stack([self.cached[w.start - self.base : w.stop - self.base] for w in group])
        alone = len(self.frames) <= self.idm.window  # one window, whose ends are those of the run
        return features if alone or not reach else self._with_edges(features, group, block, low)

    def _extend(self, block, low, start, stop):
        """Makes the cache hold the run's features of [start, stop)."""
        done = self.base + (0 if self.cached is None else len(self.cached))
        left = max(0, done - self.idm.reach)  # first frame that new features depend on; done >= start: windows overlap
        new = self._encode(block[None, left - low :], done - left, stop - left)[0]
        old = () if self.cached is None else (self.cached[start - self.base :],)
        self.cached, self.base = torch.cat([*old, new]), start

    def _with_edges(self, features, group, block, low):
        """Replaces the first and last `reach` features of each window by those that see nothing beyond its ends."""
        reach = self.idm.reach
        heads = np.stack([block[w.start - low : w.start - low + 2 * reach] for w in group])
        tails = np.stack([block[w.stop - low - 2 * reach : w.stop - low] for w in group])
        features[:, :reach] = self._encode(heads, 0, reach)
        features[:, -reach:] = self._encode(tails, reach, 2 * reach)
        return features

    def _encode(self, frames, start, stop):
        """Features of frames[:, start:stop]; a model whose `encode` takes `keep` skips work on the others."""
        frames = to_device(self.idm, frames)
        if self.skips_margins:
            return self.idm.encode(frames, keep=(start, stop))
        return self.idm.encode(frames)[:, start:stop]


class Collector:
    """Gathers what windows say into labels of the run, by centre crop or by weighted mean."""

    def __init__(self, n, average):
        self.n, self.average = n, average
        self.keys = self.camera = None
        self.weight = np.zeros(n, np.float32)

    def add(self, group, said, progress=None):
        """said: Factored with leading axes [b t], b = len(group)."""
        keys = said.key_probabilities.float().cpu().numpy()
        camera = said.camera_probabilities.float().cpu().numpy()
        if self.keys is None:
            self.keys = np.zeros((self.n, *keys.shape[2:]), np.float32)
            self.camera = np.zeros((self.n, *camera.shape[2:]), np.float32)
        for i, window in enumerate(group):
            if self.average:
                place, inside, weight = slice(window.start, window.stop), slice(None), hat(window.stop - window.start)
            else:
                place = slice(window.keep_start, window.keep_stop)
                inside = slice(window.keep_start - window.start, window.keep_stop - window.start)
                weight = np.ones(window.keep_stop - window.keep_start, np.float32)
            self.keys[place] += weight[:, None] * keys[i, inside]
            self.camera[place] += weight[:, None, None] * camera[i, inside]
            self.weight[place] += weight
            if progress is not None:
                progress(window.keep_stop - window.keep_start)

    def labels(self):
        if self.keys is None:
            raise DataError("a run without frames cannot be labelled")
        scale = np.maximum(self.weight, 1e-9)
        return Labels(
            key_probabilities=self.keys / scale[:, None],
            camera_probabilities=self.camera / scale[:, None, None],
            coverage=self.weight > 0,
        )


def hat(length):
    """float32 [length]: 1 at the ends of a window, growing linearly to its centre."""
    position = np.arange(length)
    return np.minimum(position + 1, length - position).astype(np.float32)


def prepare(idm, device="cpu", channels_last=True):
    """Eval mode on `device`; channels-last convolutions are faster with bf16 and no slower without."""
    idm = idm.eval().to(device)
    return idm.to(memory_format=torch.channels_last) if channels_last else idm


@contextmanager
def inference(idm, precision):
    """Context of forward passes: no gradients, and bf16 autocast if asked."""
    if precision not in PRECISIONS:
        raise DataError(f"precision is {precision!r}; expected one of {PRECISIONS}")
    cast = torch.autocast(device_of(idm).type, torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.inference_mode(), cast:
        yield


def to_device(idm, frames):
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device_of(idm), non_blocking=True)


def device_of(idm):
    return next(idm.parameters()).device


def batches(items, size):
    return (items[i : i + size] for i in range(0, len(items), size))
