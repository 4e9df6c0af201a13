import numpy as np
import pytest
import torch
from einops import reduce
from torch import nn

from pipelines import schema
from pipelines.actions import DOOM, ActionCodec
from pipelines.features import FeatureStore
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.stream import FrameStore, WindowDataset, handle_nulls, load_tracks

CODEC = ActionCodec(DOOM)


class Colours(nn.Module):
    """Features = mean colour of a frame; dropout, so that forgetting eval mode would show."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frames = 0

    def encode(self, frames):
        self.frames += frames.shape[1]
        return self.dropout(reduce(frames.float() / 255, "b t h w c -> b t c", "mean"))


@pytest.fixture
def shards(play_shards):
    return Shards(play_shards)


def stores(shards, nulls, **options):
    net = Colours().train()
    tracks = [handle_nulls(t, CODEC, nulls) for t in load_tracks(shards)]
    return net, tracks, FeatureStore(net, tracks, FrameStore(shards, 0), dtype=np.float32, **options)


@pytest.mark.parametrize("nulls", ["keep", "drop"])
def test_windows_hold_the_features_of_their_frames(shards, nulls):
    net, tracks, features = stores(shards, nulls, at_once=7)
    assert net.training and net.frames == sum(map(len, tracks))  # each frame once, those dropped never
    frames = WindowDataset(tracks, FrameStore(shards), CODEC, length=20)
    cached = WindowDataset(tracks, features, CODEC, length=20, input_key=schema.FEATURES)
    for index in range(len(frames)):
        one, other = frames[(index, 0, True)], cached[(index, 0, True)]
        expected = net.eval().encode(one.pop(schema.OBSERVATION)[None])[0]
        torch.testing.assert_close(other.pop(schema.FEATURES), expected)
        assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_large_caches_go_to_a_file_and_half_precision_is_close(shards, tmp_path):
    net, tracks, exact = stores(shards, "keep")
    path = tmp_path / "features.npy"
    spilled = FeatureStore(net, tracks, FrameStore(shards, 0), cache_gb=0, spill=path)
    assert np.load(path, mmap_mode="r").dtype == np.float16
    one, other = (store.get(tracks[0].clip[40:60], tracks[0].row[40:60]) for store in (exact, spilled))
    assert one.dtype == other.dtype == np.float32
    np.testing.assert_allclose(one, other, atol=1e-3)
    with pytest.raises(DataError, match="cache_gb"):
        FeatureStore(net, tracks, FrameStore(shards, 0), cache_gb=0)


def test_augmentation_of_cached_features_is_refused(shards):
    _, tracks, features = stores(shards, "keep")
    with pytest.raises(DataError, match="augment"):
        WindowDataset(tracks, features, CODEC, 20, augment=lambda f, g: f, input_key=schema.FEATURES)
