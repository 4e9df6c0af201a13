"""Intention-conditioned values: sizes, the equation with numpy, members apart, encoders."""

import numpy as np
import pytest
import torch

from models.frame_encoders import FrameEncoder, ResNetV2, StandardConv
from models.icvf import ENCODER, Icvf
from tests.models.nets import shaken

B, H, W = 5, 16, 20
KINDS = ("impala", "resnet")


def pixels(kind, **options):
    torch.manual_seed(0)
    return shaken(Icvf(height=H, width=W, dim=8, encoder=kind, channels=[4, 8], **options))


def frames(seed=0, n=B):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, H, W, 3), np.uint8))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_published_size():
    assert count(Icvf(state_dim=29, dim=256)) == 2 * 410_112


def mlp(net, member, x):
    for layer in (*net.linears, net.out):
        x = np.maximum(x @ layer.weight[member].detach().numpy() + layer.bias[member, 0].detach().numpy(), 0)
    return x


def affine(layer, member, x):
    return x @ layer.weight[member].detach().numpy() + layer.bias[member, 0].detach().numpy()


def test_the_value_is_that_of_the_paper():
    torch.manual_seed(0)
    net = shaken(Icvf(state_dim=3, dim=6).double())
    s, goal, z = torch.randn(3, B, 3, dtype=torch.float64)
    found, phi = net(s, goal, z), net.phi(s)
    assert found.shape == (2, B) and phi.shape == (2, B, 6)
    head = net.head
    for k in range(2):
        t = mlp(head.transform, k, mlp(head.psi, k, z.numpy()))
        left = affine(head.matrix_a, k, t * mlp(head.phi, k, s.numpy()))
        right = affine(head.matrix_b, k, t * mlp(head.psi, k, goal.numpy()))
        np.testing.assert_allclose(found[k].detach().numpy(), (left * right).sum(-1), rtol=1e-10)
        np.testing.assert_allclose(phi[k].detach().numpy(), mlp(head.phi, k, s.numpy()), rtol=1e-12)


@pytest.mark.parametrize("head", ["multilinear", "monolithic", "hilbert"])
def test_values_of_all_pairs_are_those_of_each(head):
    torch.manual_seed(0)
    net = Icvf(state_dim=3, dim=6, head=head)
    s, later, goal, z = torch.randn(4, B, 3)
    pairs = net.values([s, later], [goal, z])
    assert pairs.shape == (2, 2, 2, B)
    for n, state in enumerate((s, later)):
        for m, outcome in enumerate((goal, z)):
            torch.testing.assert_close(pairs[:, n, m], net(state, outcome, z))


@pytest.mark.parametrize("head", ["multilinear", "monolithic", "hilbert"])
def test_members_share_nothing(head):
    torch.manual_seed(0)
    net = Icvf(state_dim=3, dim=6, head=head)
    one, two = net(*torch.randn(3, B, 3))
    assert not torch.allclose(one, two)
    one.sum().backward()
    assert all((p.grad[1] == 0).all() for p in net.parameters())


def test_a_hilbert_head_is_a_distance_of_latents():
    torch.manual_seed(0)
    net = shaken(Icvf(state_dim=3, dim=6, head="hilbert").double())
    s, goal, z = torch.randn(3, B, 3, dtype=torch.float64)
    np.testing.assert_allclose(net(s, goal, z).detach(), -(net.phi(s) - net.phi(goal)).norm(dim=-1).detach(), rtol=1e-9)
    torch.testing.assert_close(net(s, goal, z), net(goal, s, s))
    assert (net(s, s, z) == -1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoders", ["shared", "members"])
def test_frames(kind, encoders):
    net = pixels(kind, encoders=encoders)
    value, phi = net(frames(), frames(1), frames(2)), net.phi(frames())
    assert value.shape == (2, B) and phi.shape == (2, B, 8)
    torch.testing.assert_close(net.phi(frames()[:2]), phi[:, :2])  # a picture's code depends on no other
    assert torch.equal(net.encode(frames())[0], net.encode(frames())[1]) == (encoders == "shared")


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_alone_has_its_keys_under_one_prefix(kind):
    net = pixels(kind, encoders="members")
    weights = {name.removeprefix(ENCODER): v for name, v in net.state_dict().items() if name.startswith(ENCODER)}
    alone = FrameEncoder(kind, H, W, [4, 8])
    alone.load_state_dict(weights)
    assert torch.equal(alone(frames()), net.encode(frames())[0])


def test_standard_convolutions_forget_scale_and_offset():
    torch.manual_seed(0)
    conv, x = StandardConv(3, 4, 3), torch.randn(2, 3, 8, 8)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(7).add_(2)
    torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-3)
    net = ResNetV2([6, 12, 16])
    y = net(torch.randn(64, 3, 16, 16))
    assert y.shape == (64, 16) and 0.01 < y.std() < 10
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="frames need encoder"):
        Icvf(state_dim=3)(frames(), frames(), frames())
    with pytest.raises(ValueError, match="takes uint8 frames"):
        pixels("impala")(*torch.randn(3, B, 3))
    with pytest.raises(ValueError, match="takes uint8 frames"):
        pixels("impala").phi(frames()[:, :-1])
    with pytest.raises(ValueError, match="no phi"):
        Icvf(state_dim=3, head="monolithic").phi(torch.randn(B, 3))
    for wrong in ({"head": "linear"}, {"encoders": "both"}, {"encoder": "vgg", "height": 8, "width": 8}):
        with pytest.raises(ValueError, match="expected one of"):
            Icvf(**{"state_dim": 3, **wrong})
