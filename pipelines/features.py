"""What a network computes from frames without learning, once per frame instead of once per frame and epoch.

    tracks + frames --encoder--> FeatureStore --WindowDataset(input_key="features")--> batches without pictures

Either the outputs of a frozen encoder (`encode`) or the part of a trained one that has no parameters (`stem`).
"""

import math

import numpy as np
import torch
from tqdm import tqdm

from pipelines.schema import DataError
from pipelines.stream import pieces


class FeatureStore:
    """Takes the place of a FrameStore: `get` returns float32 [t ...] instead of frames.

    net: has `encode` or `stem`, named by `method`, uint8 [b t h w c] -> [b t ...]. ahead: how many of the following
    frames one feature depends on. tracks: the frames to encode, those of `tracks` alone. frames: the store they come
    from; they are asked for in order, so it need not cache. Features are held as `dtype` in memory, or in the file
    `spill` when they exceed `cache_gb`.
    """

    def __init__(self, net, tracks, frames, method="encode", ahead=0, device="cpu", dtype=np.float16, cache_gb=8.0,
                 spill=None, at_once=256):  # fmt: skip
        self.rows, self.base, total = {}, {}, 0
        for clip, rows in (piece for track in tracks for piece in pieces(track.clip, track.row)):
            self.rows[clip], self.base[clip] = rows, total
            total += len(rows)
        self.features = None
        filled = 0
        with tqdm(total=total, desc=f"{method} of frames", unit="frame", unit_scale=True, disable=None) as bar:
            for part in encoded(net, method, ahead, frames, tracks, device, at_once):
                if self.features is None:
                    self.features = allocate((total, *part.shape[1:]), np.dtype(dtype), cache_gb, spill)
                self.features[filled : filled + len(part)] = part
                filled += len(part)
                bar.update(len(part))

    def get(self, clips, rows):
        """Features of a window that may span clips: str [t], int [t] -> float32 [t ...]."""
        places = [self.base[clip] + np.searchsorted(self.rows[clip], part) for clip, part in pieces(clips, rows)]
        return self.features[np.concatenate(places)].astype(np.float32)


@torch.inference_mode()
def encoded(net, method, ahead, frames, tracks, device, at_once):
    """Yields float32 [m ...] of successive frames, m <= at_once, in eval mode; leaves the net's mode as it was."""
    training = net.training
    net.eval()
    for track in tracks:
        for start in range(0, len(track), at_once):
            seen = slice(start, start + at_once + ahead)
            pictures = torch.from_numpy(frames.get(track.clip[seen], track.row[seen]))  # t h w c
            yield getattr(net, method)(pictures[None].to(device))[0, :at_once].float().cpu().numpy()
    net.train(training)


def allocate(shape, dtype, cache_gb, spill):
    """An array in memory, or in the file `spill` if it is larger than `cache_gb`."""
    gigabytes = math.prod(shape) * dtype.itemsize / 2**30
    if gigabytes <= cache_gb:
        return np.empty(shape, dtype)
    if spill is None:
        raise DataError(f"features take {gigabytes:.1f} GB, more than data.cache_gb={cache_gb}; raise it")
    return np.lib.format.open_memmap(spill, "w+", dtype, shape)
