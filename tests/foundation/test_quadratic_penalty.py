import torch

from foundation.losses.quadratic_penalty import merge, quadratic_penalty


def test_penalty_by_hand():
    weights = {"w": torch.tensor([1.0, 3.0], requires_grad=True), "free": torch.ones(1, requires_grad=True)}
    penalty = quadratic_penalty(weights, {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([2.0, 0.5])})
    assert penalty == 0.5 * (2 * 1 + 0.5 * 4)
    penalty.backward()
    assert weights["w"].grad.tolist() == [2.0, 1.0] and weights["free"].grad is None
    assert quadratic_penalty(weights, {}, {}) == 0


def test_merged_penalties_are_their_sum_up_to_a_constant():
    generator = torch.Generator().manual_seed(0)
    tasks = [({"w": torch.randn(5, generator=generator)}, {"w": torch.rand(5, generator=generator)}) for _ in range(3)]
    anchor, importance = {}, {}
    for weights, new in tasks:
        anchor, importance = merge(anchor, importance, weights, new)
    gaps = []
    for _ in range(4):
        at = {"w": torch.randn(5, generator=generator)}
        gaps.append(sum(quadratic_penalty(at, *task) for task in tasks) - quadratic_penalty(at, anchor, importance))
    torch.testing.assert_close(torch.stack(gaps), gaps[0].expand(4))


def test_what_mattered_to_no_task_stays_where_it_is():
    zero = {"w": torch.zeros(1)}
    anchor, importance = merge({"w": torch.ones(1)}, zero, {"w": torch.full((1,), 7.0)}, zero)
    assert anchor["w"] == 7 and importance["w"] == 0
