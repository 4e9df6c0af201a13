import pytest
import torch

from foundation.pretraining.idm import exchange, mirrored
from models.vision import FlowEncoder
from pipelines import schema
from pipelines.actions import DOOM, ActionCodec
from pipelines.schema import DataError


def test_mirroring_exchanges_keys_turns_the_mouse_and_flips_the_picture():
    codec, images = ActionCodec(DOOM), exchange(DOOM.keys, {"left": "right"})
    left, right = DOOM.keys.index("left"), DOOM.keys.index("right")
    keys = torch.zeros(2, 1, len(DOOM.keys), dtype=torch.int64)
    keys[..., left], keys[..., 0] = 1, 1
    bins = codec.to_bins(torch.tensor([[[2.0, 5.0]], [[2.0, 5.0]]]))
    frames = torch.arange(2 * 2 * 3 * 3, dtype=torch.uint8).reshape(2, 1, 2, 3, 3)
    batch = {schema.KEYS: keys, schema.BINS: bins, schema.OBSERVATION: frames}
    flipped = mirrored(batch, torch.tensor([False, True]), images, codec.n_bins, None)
    for name, value in batch.items():
        assert torch.equal(flipped[name][0], value[0])  # the first window stays
    assert flipped[schema.KEYS][1, 0, left] == 0 and flipped[schema.KEYS][1, 0, right] == 1
    assert flipped[schema.KEYS][1, 0, 0] == 1
    before, after = codec.from_bins(bins)[1, 0], codec.from_bins(flipped[schema.BINS])[1, 0]
    torch.testing.assert_close(after, before * torch.tensor([1, -1]))
    assert torch.equal(flipped[schema.OBSERVATION][1, :, :, 0], frames[1, :, :, 2])
    assert batch[schema.KEYS][1, 0, left] == 1  # the original is untouched


def test_the_mirrored_stem_is_the_stem_of_the_mirrored_picture():
    torch.manual_seed(0)
    encoder = FlowEncoder(64, 80, (4, 4, 4), 8)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 40), scale_factor=6, mode="bilinear")
    picture = (smooth * 255).byte()[0].permute(1, 2, 0)
    frames = torch.stack([picture[20 + i : 84 + i, 60 + 3 * i : 140 + 3 * i] for i in range(4)])[None]
    one, other = encoder.stem(frames.flip(-2)).float(), encoder.mirror_stem(encoder.stem(frames)).float()
    torch.testing.assert_close(one[..., 2:], other[..., 2:])  # colours exactly, flow as its search allows
    assert (one[:, :-1, ..., 0].median() - 3).abs() < 0.1 and (other[:, :-1, ..., 0].median() - 3).abs() < 0.1


def test_unknown_keys_to_mirror_are_named():
    with pytest.raises(DataError, match="jump"):
        exchange(DOOM.keys, {"left": "jump"})
