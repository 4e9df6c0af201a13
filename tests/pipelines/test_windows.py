import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.heads import FactoredHead
from models.inverse_dynamics import InverseDynamics
from models.vpt import VptInverseDynamics
from pipelines.schema import DataError
from pipelines.windows import Window, hat, label_run, label_run_plain, plan, prepare

LENGTHS = (1, 64, 127, 128, 129, 191, 192, 1000)


class SmallIDM(nn.Module):
    """The labeller contract in a few lines: features reach two frames away, decoding mixes the whole window."""

    def __init__(self, window=128, reach=2):
        super().__init__()
        self.window, self.reach = window, reach
        self.near = nn.Conv1d(3, 16, 2 * reach + 1, padding=reach)
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = FactoredHead(16, 3, 5)
        self.encoded = 0  # frames that went through the encoder

    def encode(self, frames):
        self.encoded += frames.shape[0] * frames.shape[1]
        colour = frames.float().mean((2, 3)) / 255  # b t c
        return rearrange(F.relu(self.near(rearrange(colour, "b t c -> b c t"))), "b d t -> b t d")

    def decode(self, features, mask=None):
        return self.head(features + self.mix(features, features, features, need_weights=False)[0])

    def forward(self, frames, mask=None):
        return self.decode(self.encode(frames), mask)


class TrimmingIDM(SmallIDM):
    """As above, but able to compute the features of some frames only."""

    def encode(self, frames, keep=None):
        start, stop = keep or (0, frames.shape[1])
        features = super().encode(frames)[:, start:stop]
        self.encoded -= frames.shape[0] * (frames.shape[1] - (stop - start))
        return features


def build(kind, window=128, reach=2):
    torch.manual_seed(0)
    if kind == "modern":
        net = InverseDynamics(16, 16, 6, 11, window=window, dim=16, heads=2)
    elif kind == "vpt":
        net = VptInverseDynamics(6, 11, height=16, width=16, hidsize=16, attention_heads=2, timesteps=window,
                                 attention_memory_size=window, impala_width=0.25, img_shape=(16, 16, 8))  # fmt: skip
    else:
        net = {"small": SmallIDM, "trimming": TrimmingIDM}[kind](window, reach)
    for parameter in net.parameters():  # no zero-initialised branch may hide an error
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return prepare(net)


def noise(n, h=2, w=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def assert_equal_labels(a, b, tolerance=1e-4):
    assert np.abs(a.key_probabilities - b.key_probabilities).max() < tolerance
    assert np.abs(a.camera_probabilities - b.camera_probabilities).max() < tolerance
    assert np.array_equal(a.coverage, b.coverage)


@pytest.mark.parametrize("n", LENGTHS)
def test_kept_ranges_tile_the_run(n):
    windows = plan(n, 128)
    covered = [i for w in windows for i in range(w.keep_start, w.keep_stop)]
    assert covered == list(range(n))
    assert all(0 <= w.start <= w.keep_start < w.keep_stop <= w.stop <= n for w in windows)
    assert {w.stop - w.start for w in windows} == {min(n, 128)}


def test_plan_by_hand():
    assert plan(0, 128) == []
    assert plan(127, 128) == [Window(0, 127, 0, 127)]
    assert plan(129, 128) == [Window(0, 128, 0, 96), Window(1, 129, 96, 129)]
    assert plan(192, 128) == [Window(0, 128, 0, 96), Window(64, 192, 96, 192)]
    three = plan(256, 128)
    assert three == [Window(0, 128, 0, 96), Window(64, 192, 96, 160), Window(128, 256, 160, 256)]
    assert three[1].keep_start - three[1].start == 32  # frames 32..95 of an inner window
    assert len(plan(1000, 128)) == 15


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("kind", ["small", "trimming"])
def test_sharing_features_changes_nothing(kind, n):
    net, frames = build(kind), noise(n)
    plain = label_run_plain(net, frames)
    for frames_per_call in (1, 192, 100_000):
        assert_equal_labels(label_run(net, frames, frames_per_call=frames_per_call), plain)
    assert_equal_labels(label_run(net, frames, average=True), label_run_plain(net, frames, average=True))


@pytest.mark.parametrize("n", [1, 5, 32, 33, 90, 200])
@pytest.mark.parametrize("kind", ["modern", "vpt"])
def test_sharing_is_exact_for_the_real_models(kind, n):
    net, frames = build(kind, window=32), noise(n, 16, 16)
    assert_equal_labels(label_run(net, frames, frames_per_call=64), label_run_plain(net, frames))


class Blind(nn.Module):
    """Claims that features do not depend on neighbours, so that window edges see theirs."""

    reach = 0

    def __init__(self, net):
        super().__init__()
        self.net, self.window, self.decode = net, net.window, net.decode

    def encode(self, frames):
        return self.net.encode(frames)


@pytest.mark.parametrize("kind", ["small", "modern", "vpt"])
def test_the_equality_is_not_vacuous(kind):
    net, frames = build(kind, window=32), noise(90, 16, 16)
    wrong, right = label_run(Blind(net), frames), label_run_plain(net, frames)
    assert np.abs(wrong.camera_probabilities - right.camera_probabilities).max() > 1e-4


@pytest.mark.parametrize(("window", "reach"), [(4, 2), (5, 1), (6, 0), (7, 3), (2, 1), (16, 5)])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 7, 8, 20, 33])
def test_odd_windows_and_reaches(window, reach, n):
    net, frames = build("small", window, reach), noise(n)
    assert_equal_labels(label_run(net, frames, frames_per_call=8), label_run_plain(net, frames))


def test_work_is_nearly_halved():
    n, frames = 6464, noise(6464)  # 100 windows
    plain, shared, trimming = build("small"), build("small"), build("trimming")
    label_run_plain(plain, frames)
    label_run(shared, frames, frames_per_call=6464)
    label_run(trimming, frames)
    assert plain.encoded == 100 * 128
    assert shared.encoded == n + 100 * 8  # 2 x 2 edge frames, each beside `reach` frames that are thrown away
    assert trimming.encoded == n + 100 * 4
    assert plain.encoded / trimming.encoded > 1.86


def test_labels_are_probabilities_and_deterministic():
    net, frames = build("small"), noise(300)
    labels, again = label_run(net, frames), label_run(net, frames)
    assert labels.coverage.all()
    assert labels.key_probabilities.shape == (300, 3)
    np.testing.assert_allclose(labels.camera_probabilities.sum(-1), 1, atol=1e-5)
    assert np.array_equal(labels.key_probabilities, again.key_probabilities)


def test_a_short_run_is_one_short_window():
    net, frames = build("small"), noise(50)
    direct = net(torch.from_numpy(frames[None])).key_probabilities[0].detach().numpy()
    np.testing.assert_allclose(label_run(net, frames).key_probabilities, direct, atol=1e-5)


def test_average_is_the_hat_weighted_mean_of_windows():
    assert hat(5).tolist() == [1, 2, 3, 2, 1]
    net, frames = build("small", window=4), noise(6)
    first, last = (net(torch.from_numpy(frames[None, s : s + 4])).key_probabilities[0].detach().numpy() for s in (0, 2))
    labels = label_run(net, frames, average=True)
    np.testing.assert_allclose(labels.key_probabilities[2], (2 * first[2] + 1 * last[0]) / 3, atol=1e-5)
    np.testing.assert_allclose(labels.key_probabilities[0], first[0], atol=1e-5)


def test_bf16_is_close_and_still_normalised():
    net, frames = build("modern", window=32), noise(80, 16, 16)
    exact, cast = label_run(net, frames), label_run(net, frames, precision="bf16")
    np.testing.assert_allclose(cast.camera_probabilities.sum(-1), 1, atol=1e-3)
    assert np.abs(exact.key_probabilities - cast.key_probabilities).mean() < 0.02


def test_frames_may_come_piece_by_piece():
    class Disk:
        def __init__(self, frames):
            self.frames, self.longest = frames, 0

        def __len__(self):
            return len(self.frames)

        def __getitem__(self, part):
            self.longest = max(self.longest, part.stop - part.start)
            return self.frames[part]

    net, frames = build("small"), noise(1000)
    disk = Disk(frames)
    assert_equal_labels(label_run(net, disk, frames_per_call=128), label_run(net, frames))
    assert disk.longest <= 128 + 64 + 4


def test_progress_counts_every_frame_once():
    done = []
    label_run(build("small"), noise(777), progress=done.append)
    assert sum(done) == 777


def test_bad_requests_are_told():
    with pytest.raises(DataError, match="precision is 'fp8'"):
        label_run(build("small"), noise(4), precision="fp8")
    with pytest.raises(DataError, match="shorter than twice its reach"):
        label_run(build("small", window=4, reach=3), noise(9))
    with pytest.raises(DataError, match="without frames"):
        label_run(build("small"), noise(0))
