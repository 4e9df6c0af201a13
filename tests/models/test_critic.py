import pytest
import torch
from torch.nn import functional as F

from models.critic import EnsembleCritic


@pytest.mark.parametrize("norm", [True, False])
def test_the_batched_ensemble_is_a_loop_over_its_members(norm):
    torch.manual_seed(0)
    critic = EnsembleCritic(5, 2, members=3, width=16, layers=2, norm=norm)
    state, action = torch.randn(4, 6, 5), torch.randn(4, 6, 2)
    together = critic(state, action)
    assert together.shape == (3, 4, 6)
    for e in range(3):
        x = torch.cat([state, action], -1)
        for layer in critic.hidden:
            x = F.linear(x, layer.weight[e].T, layer.bias[e, 0])
            x = F.relu(F.layer_norm(x, (16,)) if norm else x)
        alone = F.linear(x, critic.out.weight[e].T, critic.out.bias[e, 0])[..., 0]
        torch.testing.assert_close(together[e], alone, rtol=0, atol=1e-6)


def test_members_differ_and_layer_norm_bounds_the_unseen():
    torch.manual_seed(0)
    critic = EnsembleCritic(3, 1, members=2)
    state, action = torch.randn(7, 3), torch.randn(7, 1)
    one, two = critic(state, action)
    assert (one - two).abs().min() > 0
    assert critic(1e6 * state, action).abs().max() < 20
