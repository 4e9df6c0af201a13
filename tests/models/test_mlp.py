import pytest
import torch
from torch.nn import functional as F

from models.mlp import EnsembleMLP
from tests.models.nets import shaken


@pytest.mark.parametrize(("activation", "norm"), [("gelu_tanh", True), ("gelu", False), ("relu", False)])
def test_together_is_a_loop_over_members(activation, norm):
    torch.manual_seed(0)
    net = shaken(EnsembleMLP(3, 5, 4, width=16, layers=2, activation=activation, norm=norm)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    together = net(x)
    assert together.shape == (3, 6, 4)
    act = {"gelu_tanh": lambda h: F.gelu(h, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}[activation]
    for e in range(3):
        h = x
        for i, linear in enumerate(net.linears):
            h = act(h @ linear.weight[e] + linear.bias[e])
            if norm:
                h = F.layer_norm(h, (16,), net.norms[i].weight[e, 0], net.norms[i].bias[e, 0], 1e-6)
        alone = h @ net.out.weight[e] + net.out.bias[e]
        torch.testing.assert_close(together[e], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(net(x, member=e)[0], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x.expand(3, 6, 5)), together)


def test_members_start_apart_and_as_the_release_does():
    torch.manual_seed(0)
    net = EnsembleMLP(2, 40, 8, width=64, layers=1, scale=1e-2).requires_grad_(False)
    assert (net.linears[0].weight[0] - net.linears[0].weight[1]).abs().min() > 0
    assert net.linears[0].weight.std() == pytest.approx((2 / (40 + 64)) ** 0.5, rel=0.05)
    assert net.out.weight.std() == pytest.approx(0.1 * (2 / (64 + 8)) ** 0.5, rel=0.05)
    assert not net.out.bias.any() and not net.linears[0].bias.any()


def test_the_last_layer_keeps_its_precision_under_autocast():
    net = EnsembleMLP(2, 5, 4, width=16, layers=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.hidden(torch.randn(6, 5)).shape == (2, 6, 16) and net(torch.randn(6, 5)).dtype == torch.float32


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='tanh'"):
        EnsembleMLP(1, 2, 2, activation="tanh")
