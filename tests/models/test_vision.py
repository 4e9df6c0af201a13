import numpy as np
import torch

from models.flow import flow_to_next
from models.inverse_dynamics import InverseDynamics
from models.vision import ConvEncoder, FlowEncoder, out_size


def textured(shape, seed=0):
    """uint8 [h w 3] with detail at several scales."""
    rng, picture = np.random.default_rng(seed), np.zeros(shape)
    for cell in (2, 4, 8, 16):
        coarse = rng.normal(size=(shape[0] // cell + 1, shape[1] // cell + 1))
        picture += np.kron(coarse, np.ones((cell, cell)))[: shape[0], : shape[1]] * cell
    grey = np.clip(128 + 4 * picture, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def shifted(picture, count, right, down):
    """uint8 [1 count h w 3]: a picture that moves by so many pixels a frame, seen through a smaller window."""
    views = [picture[40 - i * down : 104 - i * down, 60 - i * right : 140 - i * right] for i in range(count)]
    return torch.from_numpy(np.stack(views)[None])


def test_flow_is_the_shift_of_the_picture():
    for right, down in ((3, 0), (-5, 0), (0, 2), (1, -1)):
        flow = flow_to_next(shifted(textured((144, 200)), 4, right, down)).float()
        assert flow.shape == (1, 4, 32, 40, 2)
        inner = flow[0, :-1, 6:-6, 8:-8]
        middle = inner.flatten(0, 2).median(0).values
        torch.testing.assert_close(middle, torch.tensor([float(right), float(down)]), atol=0.15, rtol=0)
        assert flow[0, -1].abs().max() == 0  # nothing is known beyond the window


def test_flow_does_not_depend_on_threads_or_neighbours():
    frames = torch.cat([shifted(textured((144, 200), s), 6, 2, 1) for s in (0, 1)])
    flow = flow_to_next(frames)
    assert torch.equal(flow[1:], flow_to_next(frames[1:]))
    assert torch.equal(flow[:, 2:4], flow_to_next(frames[:, 2:5])[:, :2])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(flow, flow_to_next(frames))
    finally:
        torch.set_num_threads(threads)


def test_motion_features_depend_on_direct_neighbours_only():
    torch.manual_seed(0)
    net = FlowEncoder(64, 80, (8, 8, 8), 16).eval()
    frames = shifted(textured((144, 200)), 9, 2, 0)
    changed = frames.clone()
    changed[:, 4] = 255 - changed[:, 4]
    difference = (net(frames) - net(changed)).abs().amax(-1)[0]
    assert (difference > 1e-6).nonzero()[:, 0].tolist() == [3, 4, 5]


def test_a_window_cut_from_a_longer_stem_sees_nothing_beyond_its_end():
    torch.manual_seed(0)
    net = FlowEncoder(64, 80, (8, 8, 8), 16).eval()
    frames = shifted(textured((144, 200)), 9, 2, 0)
    torch.testing.assert_close(net.fuse(net.stem(frames)[:, 2:7]), net(frames[:, 2:7]))


def test_encoders_take_odd_sizes():
    for height, width in ((33, 41), (64, 80), (120, 160)):
        frames = torch.zeros(1, 2, height, width, 3, dtype=torch.uint8)
        assert ConvEncoder(height, width, (4, 4, 4, 4), 8)(frames).shape == (1, 2, 8)
        assert FlowEncoder(height, width, (4, 4, 4), 8)(frames).shape == (1, 2, 8)
    assert out_size(33, 4) == 3


def test_inverse_dynamics_distribution_is_normalised_and_trains_every_parameter():
    torch.manual_seed(0)
    idm = InverseDynamics(32, 40, n_keys=3, n_bins=5, window=8, channels=(4, 8, 8), dim=16, heads=2)
    out = idm(torch.randint(0, 256, (2, 8, 32, 40, 3), dtype=torch.uint8))
    torch.testing.assert_close(out.camera_probabilities.sum(-1), torch.ones(2, 8, 2))
    out.log_prob(torch.ones(2, 8, 3), torch.ones(2, 8, 2)).sum().backward()
    assert all(p.grad is not None for p in idm.parameters())
