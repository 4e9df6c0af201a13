"""What the tests of untrusted input share."""

import numpy as np

from pipelines.schema import SampleMeta
from pipelines.shards import ShardWriter


def meta(frames=8, size=(16, 16)):
    return SampleMeta("k", "v.mp4", "0" * 64, (0, frames), 10.0, *size).to_dict()


def write_shard(root, video, sample):
    with ShardWriter(root, "clips") as writer:
        writer.write("k", {"mp4": video, "npz": {"pts": np.arange(3)}, "json": sample})
