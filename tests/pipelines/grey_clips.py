"""Clip shards without actions, of any lengths and gaps, whose frames tell their place in the video."""

import numpy as np

from pipelines.pixels import encode
from pipelines.schema import FIRST, PTS, SampleMeta
from pipelines.shards import ShardWriter

SIZE = 16


def write_clips(root, spans, first=(), heights=()):
    """Clips without actions, as {video: [(start, stop), ...]}; frame i of its video is grey, of brightness 4 i."""
    with ShardWriter(root, "clips") as writer:
        for video, parts in spans.items():
            height = dict(heights).get(video, SIZE)
            for start, stop in parts:
                key = f"{video}-{start:08d}"
                grey = 4 * np.arange(start, stop, dtype=np.uint8)
                frames = np.broadcast_to(grey[:, None, None, None], (stop - start, height, SIZE, 3))
                arrays = {PTS: np.arange(stop - start)}
                arrays |= {FIRST: np.isin(np.arange(start, stop), first)} if first else {}
                meta = SampleMeta(key=key, source=f"{video}.mp4", source_sha256=video * 8, frames=(start, stop),
                                  fps=10.0, height=height, width=SIZE)  # fmt: skip
                video_bytes = encode(np.ascontiguousarray(frames), 10.0)
                writer.write(key, {"mp4": video_bytes, "npz": arrays, "json": meta.to_dict()})
    return root
