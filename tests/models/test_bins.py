import pytest
import torch

from models.bins import from_bins, to_bins
from tests.models.test_decision_transformer import A, B, K, make, make_window, said


@pytest.mark.parametrize("n", [2, 9, 64])
def test_binning_is_unbiased_and_at_most_half_a_bin_off(n):
    action = torch.linspace(-1, 1, 50_001)
    error = from_bins(to_bins(action, n), n) - action
    assert error.abs().max() <= 1 / n + 1e-6
    assert error.mean().abs() < 1e-4
    bins = torch.arange(n)
    assert torch.equal(to_bins(from_bins(bins, n), n), bins)


def test_bins_by_hand():
    assert to_bins(torch.tensor([-3.0, -1.0, -0.51, -0.5, 0.0, 0.99, 1.0, 7.0]), 4).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert from_bins(torch.arange(4), 4).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert from_bins(torch.tensor(63), 64) == 1 - 1 / 64  # the release's largest is .96875


def step_through(net, window, starts, pick):
    """Acts in all rows, of which row i begins at call starts[i] -> {(row, t): bins}."""
    state, rows, done = net.initial_state(B), torch.arange(B), {}
    action = torch.zeros(B, A, dtype=torch.long)
    for call in range(int(starts.max()) + K):
        t = (call - starts).clamp(0, K - 1)
        now = {name: window[name][rows, t] for name in ("observation", "condition", "timestep")}
        now |= {"reward": window["reward"][rows, (t - 1).clamp(min=0)], "action": action}
        distribution, latent, state = net.step(now, (starts == call) | torch.full((B,), call == 0), state)
        action = pick(distribution)
        assert latent.shape == (B, 32) and action.shape == (B, A)
        live = (call >= starts) & (call - starts < K)
        done |= {(int(i), int(t[i])): action[i] for i in rows[live]}
    return torch.stack([torch.stack([done[i, t] for t in range(K)]) for i in range(B)])  # b t a


@pytest.mark.parametrize("options", [{}, {"time": "after", "embed": "mlp", "head": "mlp"}])
@pytest.mark.parametrize("starts", [torch.zeros(B, dtype=torch.long), torch.arange(B) % 3], ids=["together", "apart"])
def test_acting_equals_the_most_probable_bins_given_the_ones_chosen(options, starts):
    net = make(layout="tokenised", n_actions=9, **options)
    window = make_window(net)
    with torch.no_grad():
        chosen = step_through(net, window, starts, lambda distribution: distribution.mode())
        again = said(net({**window, "action": chosen})[0])  # b t a n
    assert torch.equal(again.argmax(-1), chosen)
    assert len(chosen.unique()) > 3


def test_sampling_follows_the_probabilities_of_each_dimension_given_the_last():
    torch.manual_seed(0)
    net = make(layout="tokenised", n_actions=4)
    window = {name: value[:1].expand(4000, *value.shape[1:]) for name, value in make_window(net).items()}
    now = {name: window[name][:, 0] for name in ("observation", "condition", "timestep")}
    with torch.no_grad():
        distribution, _, _ = net.step(now, torch.ones(4000, dtype=torch.bool), net.initial_state(4000))
        action = distribution.sample(torch.Generator().manual_seed(0))
        told = said(net({**{n: v[:, :1] for n, v in window.items()}, "action": action[:, None]})[0])[:, 0].exp()
    for dimension in range(A):  # how often a bin came against the mean of what it was given
        found = torch.bincount(action[:, dimension], minlength=4) / 4000
        torch.testing.assert_close(found, told[:, dimension].mean(0), atol=0.03, rtol=0)
    assert torch.equal(distribution.sample(temperature=0), distribution.mode())
