"""Hilbert representations and the policy of skills: sizes of the paper, what each metric promises, acting."""

import copy

import pytest
import torch

from models.hilbert import METRICS, Hilbert, HilbertPolicy
from models.vision import PictureEncoder
from tests.models.nets import shaken

SMALL = {"latent_dim": 6, "width": 16, "layers": 2}


def small(metric="l2", **options):
    torch.manual_seed(0)
    return shaken(Hilbert(5, metric=metric, **SMALL, **options))


def linear(layer, x, k):
    return x @ layer.weight[k] + layer.bias[k, 0]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_s_size():
    net = HilbertPolicy(29, 8)
    assert count(net) + count(net.representation) + count(net.critic) == 5_621_397  # with target copies of both


def test_the_paper_s_metric_is_one():
    net, states = small(), torch.randn(12, 5)
    phi = net.phi(states)
    assert phi.shape == (2, 12, 6)
    v = net.value(phi[:, :, None], phi[:, None])  # e b b
    torch.testing.assert_close(v, v.mT)
    torch.testing.assert_close(v.diagonal(dim1=1, dim2=2), torch.full((2, 12), -1e-3))
    assert all((v[:, :, [c]] + v[:, [c], :] <= v + 2e-3).all() for c in range(12))
    torch.testing.assert_close(net.latent(states), phi[0])
    torch.testing.assert_close(net(states, states.flip(0)), net.value(phi, phi.flip(1)))


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_by_hand(metric):
    net = small(metric)
    x, y = torch.randn(2, 7, 6), torch.randn(2, 7, 6)
    for k in range(2):
        for i in range(7):
            a, b = x[k, i], y[k, i]
            if metric == "l2":
                expected = -(a - b).norm()
            elif metric == "asymmetric_l2":
                expected = -(a - linear(net.goal, b, k)).norm()
            elif metric == "inner":
                expected = a @ linear(net.goal, b, k)
            elif metric == "icvf":
                t = linear(net.intent.t, b, k).relu()
                expected = linear(net.intent.a, t * a, k) @ linear(net.intent.b, t * b, k)
            else:
                expected = -(a[:3] - b[:3]).norm() - (a[3:] - b[3:]).relu().max()
            torch.testing.assert_close(net.value(x, y)[k, i], expected)
    symmetric = torch.allclose(net.value(x, y), net.value(y, x))
    assert symmetric == (metric == "l2")


def test_a_quasimetric_knows_no_shortcut():
    net, states = small("quasimetric"), torch.randn(12, 5)
    phi = net.phi(states)
    v = net.value(phi[:, :, None], phi[:, None])
    torch.testing.assert_close(v.diagonal(dim1=1, dim2=2), torch.full((2, 12), -1e-3))
    assert all((v[:, :, [c]] + v[:, [c], :] <= v + 2e-3).all() for c in range(12))


def test_no_gradient_at_the_goal():
    net, state = small(), torch.randn(4, 5)
    net(state, state).sum().backward()
    assert all(not p.grad.any() for p in net.parameters())


def test_features():
    before, after = torch.randn(2, 64, 6)
    assert torch.equal(small(features="difference").feature(before, after), after - before)
    assert torch.equal(small(features="state").feature(before, after), after)
    centred = small(features="centred")
    for _ in range(1500):
        centred.observe(after + 3)
    assert centred.feature(before, after + 3).mean(0).abs().max() < 5e-3
    assert "mean" in centred.state_dict() and "mean" not in small().state_dict()


def test_an_encoder_comes_first():
    encoder = PictureEncoder(8, 8, features=4, extra=1)
    net = Hilbert(8 * 8 * 3 + 1, encoder=encoder, **SMALL)
    pictures = torch.rand(3, 2, 8 * 8 * 3 + 1)
    assert net.phi(pictures).shape == (2, 3, 2, 6)
    torch.testing.assert_close(net.phi(pictures)[:, 1, 1], net.phi(pictures[1])[:, 1])


@pytest.mark.parametrize("n_actions", [None, 4])
def test_a_policy_acts_by_its_skill(n_actions):
    torch.manual_seed(0)
    net = shaken(HilbertPolicy(5, 2, n_actions, **SMALL))
    window = {"observation": torch.randn(3, 4, 5), "condition": torch.randn(3, 4, 6)}
    distribution, nothing = net(window)
    assert nothing is None and distribution.mode().shape == ((3, 4, 2) if n_actions is None else (3, 4))
    now = {name: value[:, 2] for name, value in window.items()}
    one, latent, state = net.step(now, torch.zeros(3, dtype=torch.bool), net.initial_state(3))
    torch.testing.assert_close(one.log_prob(one.mode()), distribution.log_prob(distribution.mode())[:, 2])
    torch.testing.assert_close(latent, net.latent(window)[0][:, 2])
    other, *_ = net.step({**now, "condition": -now["condition"]}, None, state)
    assert not torch.equal(other.log_prob(one.mode()), one.log_prob(one.mode()))
    action = one.mode()
    assert net.q(now, action).shape == (2, 3)
    target = shaken(copy.deepcopy(net.critic))
    assert not torch.equal(net.q(now, action, target), net.q(now, action))
    assert net.v(now).shape == (3,)


def test_the_deviation_is_bounded():
    net = HilbertPolicy(5, 2, **SMALL)
    with torch.no_grad():
        net.log_std.copy_(torch.tensor([-9.0, 9.0]))
    window = {"observation": torch.zeros(1, 5), "condition": torch.zeros(1, 6)}
    assert net(window)[0].log_std.tolist() == [-5.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"metric": "l1"}, "metric='l1'"), ({"features": "raw"}, "features='raw'"),
     ({"metric": "quasimetric", "latent_dim": 5}, "latent_dim=5 is odd")],
)  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Hilbert(3, **options)
