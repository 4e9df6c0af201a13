import torch

from models.inverse_dynamics import InverseDynamics
from models.vision import ConvEncoder, Correlation, MotionEncoder, out_size, shift


def test_correlation_equals_the_sum_over_channels_at_every_displacement():
    torch.manual_seed(0)
    now, then = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    volume = Correlation(dy=1, dx=2)(now, then)
    assert volume.shape == (2, 3 * 5, 4, 5)
    for dy in (-1, 0, 1):
        for dx in (-2, -1, 0, 1, 2):
            k = (dy + 1) * 5 + dx + 2
            y, x = 2, 2
            expected = (now[:, :, y, x] * then[:, :, y + dy, x + dx]).sum(1)
            torch.testing.assert_close(volume[:, k, y, x], expected)
    assert volume[:, 0, 0, 0].abs().max() == 0  # beyond the border


def test_correlation_finds_a_shifted_picture():
    torch.manual_seed(0)
    picture = torch.nn.functional.normalize(torch.randn(1, 16, 8, 20), dim=1)
    moved = picture.roll(3, dims=3)
    volume = Correlation(dy=2, dx=5)(picture, moved)
    place = volume[0, :, 4, 8].argmax().item()
    assert divmod(place, 11) == (2, 5 + 3)


def test_shift_moves_along_time_inside_windows():
    maps = torch.arange(6.0).reshape(6, 1, 1, 1)
    assert shift(maps, 3, 1).flatten().tolist() == [0, 0, 1, 0, 3, 4]
    assert shift(maps, 3, -1).flatten().tolist() == [1, 2, 0, 4, 5, 0]


def test_motion_features_depend_on_direct_neighbours_only():
    torch.manual_seed(0)
    net = MotionEncoder(32, 40, (4, 8, 8, 8, 8), 16).eval()
    frames = torch.randint(0, 256, (1, 9, 32, 40, 3), dtype=torch.uint8)
    changed = frames.clone()
    changed[:, 4] = 255 - changed[:, 4]
    difference = (net(frames) - net(changed)).abs().amax(-1)[0]
    assert (difference > 1e-6).nonzero()[:, 0].tolist() == [3, 4, 5]


def test_encoders_take_odd_sizes():
    for height, width in ((33, 41), (64, 80), (120, 160)):
        frames = torch.zeros(1, 2, height, width, 3, dtype=torch.uint8)
        assert ConvEncoder(height, width, (4, 4, 4, 4), 8)(frames).shape == (1, 2, 8)
        assert MotionEncoder(height, width, (4, 4, 4, 4, 4), 8)(frames).shape == (1, 2, 8)
    assert out_size(33, 4) == 3


def test_inverse_dynamics_distribution_is_normalised_and_trains_every_parameter():
    torch.manual_seed(0)
    idm = InverseDynamics(32, 40, n_keys=3, n_bins=5, window=8, channels=(4, 8, 8, 8, 8), dim=16, heads=2)
    out = idm(torch.randint(0, 256, (2, 8, 32, 40, 3), dtype=torch.uint8))
    torch.testing.assert_close(out.camera_probabilities.sum(-1), torch.ones(2, 8, 2))
    out.log_prob(torch.ones(2, 8, 3), torch.ones(2, 8, 2)).sum().backward()
    assert all(p.grad is not None for p in idm.parameters())
