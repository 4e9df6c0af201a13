import pytest
import torch

from models.transformer import CausalTransformer, Encoder, rotary_angles, rotate
from models.video_policy import VideoPolicy


@pytest.fixture
def net():
    torch.manual_seed(0)
    return CausalTransformer(width=16, layers=2, heads=2, context=6).eval()


def starts(*rows, length=20):
    first = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, places in enumerate(rows):
        first[row, list(places)] = True
    return first


def test_rotation_depends_on_differences_only():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    cos, sin = rotary_angles(12, 8, "cpu")

    def score(i, j):
        return (rotate(q, cos[i : i + 1], sin[i : i + 1]) * rotate(k, cos[j : j + 1], sin[j : j + 1])).sum()

    torch.testing.assert_close(score(7, 4), score(11, 8))
    assert abs(score(7, 4) - score(7, 6)) > 1e-3


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 13], [3, 4, 13]])
def test_carried_chunks_equal_one_pass(net, cuts):
    x, first = torch.randn(2, 20, 16), starts([5, 11], [0])
    whole, state = net(x, first)
    parts, carried = [], None
    for part, mark in zip(x.split(cuts, 1), first.split(cuts, 1), strict=True):
        y, carried = net(part, mark, carried)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(carried, state, atol=1e-5, rtol=0)


def test_an_episode_start_equals_a_fresh_start(net):
    x = torch.randn(1, 20, 16)
    joined, _ = net(x, starts([8]))
    alone, _ = net(x[:, 8:])
    torch.testing.assert_close(joined[:, 8:], alone, atol=1e-5, rtol=0)


def test_the_future_does_not_change_the_past(net):
    x = torch.randn(1, 20, 16)
    changed = x.clone()
    changed[:, 12:] += 1
    torch.testing.assert_close(net(x)[0][:, :12], net(changed)[0][:, :12])


def test_the_oldest_visible_frame_is_context_minus_one_back_per_layer():
    torch.manual_seed(0)
    net = CausalTransformer(width=16, layers=1, heads=2, context=6).eval()
    x = torch.randn(1, 20, 16, requires_grad=True)
    net(x)[0][0, 15, 0].backward()  # not the sum: a LayerNorm keeps that at zero
    touched = x.grad[0].abs().sum(-1).nonzero()[:, 0].tolist()
    assert touched == [10, 11, 12, 13, 14, 15]


def test_padding_does_not_change_real_frames():
    torch.manual_seed(0)
    net = Encoder(width=16, layers=2, heads=2).eval()
    x = torch.randn(1, 10, 16)
    mask = torch.arange(10)[None] < 7
    torch.testing.assert_close(net(x, mask)[:, :7], net(x[:, :7]), atol=1e-5, rtol=0)


def test_policy_steps_equal_its_chunk():
    torch.manual_seed(0)
    policy = VideoPolicy(32, 40, 8, 9, [False, True] * 4, 4, context=5, channels=(4, 8, 8, 8), dim=16, heads=2).eval()
    frames = torch.randint(0, 256, (2, 9, 32, 40, 3), dtype=torch.uint8)
    first = starts([0, 4], [2], length=9)
    chunk, _ = policy({"observation": frames, "first": first})
    state = policy.initial_state(2)
    for t in range(9):
        step, latent, state = policy.step(frames[:, t], first[:, t], state)
        torch.testing.assert_close(step.buttons_log_probs, chunk.buttons_log_probs[:, t], atol=1e-5, rtol=0)
        assert latent.shape == (2, policy.width)
