import pytest
import torch

from models.language import GPT
from models.markov_heads import attention_maps, markov_head_score, uniform_score


def test_scores_of_attention_made_by_hand():
    n = 4
    here, before, start = torch.eye(n), torch.diag(torch.ones(n - 1), -1), torch.zeros(n, n)
    before[0, 0] = start[:, 0] = 1
    mixed = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.5, 0], [0.6, 0.2, 0.1, 0.1]])
    attention = torch.stack([here, before, start, mixed])[None]  # b h n n
    expected = [1, 1, 0, (0.75 + 0.2) / 2]  # of the third and fourth query: the first two have no choice
    assert markov_head_score(attention).tolist() == pytest.approx(expected)
    mask = torch.tensor([[True, True, True, False]])
    assert markov_head_score(attention, mask).tolist() == pytest.approx([1, 1, 0, 0.75])


def test_an_even_gaze():
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert uniform_score(mask) == pytest.approx((2 / 3 + 2 / 4 + 2 / 5) / 3)


def test_maps_are_what_the_trunk_computes():
    torch.manual_seed(0)
    net = GPT(16, 2, 2, dropout=0.0).eval()
    x, seen = torch.randn(3, 6, 16), {}
    first = net.blocks[0].attention
    first.register_forward_hook(lambda layer, inputs, output: seen.update(x=inputs[0], y=output[0]))
    maps = attention_maps(net, lambda: net(x, torch.tensor([5])))  # the last block reads one position only
    assert [tuple(m.shape) for m in maps] == [(3, 2, 6, 6)] * 2
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(3, 2, 6))
    assert maps[0].triu(1).abs().max() == 0
    values = first._split(first.value(seen["x"]))
    together = (maps[0] @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(first.out(together), seen["y"])
