"""The losses of discrete CQL against numbers worked by hand, and where their gradients go."""

import math

import pytest
import torch

from foundation.losses.cql import chosen, cql_penalty, soft_policy_loss


def table(*rows, **options):
    return torch.tensor(rows, dtype=torch.float64, **options)


def test_penalty_by_hand():
    q = table([[math.log(1), math.log(3)], [math.log(2), math.log(2)]], [[0, 0], [math.log(5), math.log(1)]])
    action = torch.tensor([1, 0])
    # first critic log 4 - log 3, log 4 - log 2; second log 2 - 0, log 6 - log 5
    expected = (math.log(4 / 3) + math.log(2) + math.log(2) + math.log(6 / 5)) / 2
    assert cql_penalty(q, action).item() == pytest.approx(expected)


def test_without_a_floor_it_is_the_cross_entropy_of_softmax_q():
    q, action = torch.randn(2, 50, 9, dtype=torch.float64), torch.randint(9, (50,))
    expected = sum(torch.nn.functional.cross_entropy(member, action) for member in q)
    assert cql_penalty(q, action).item() == pytest.approx(expected.item())


def test_the_floor_is_for_the_q_of_the_policy_only():
    """R = 1: of the policy's Q's the one at 0 counts as 1; the data's own 0 stays 0 and gets all of its gradient."""
    q = table([[0.0, 2.0, -3.0]]).reshape(1, 1, 3).requires_grad_()
    loss = cql_penalty(q, torch.tensor([0]), torch.tensor([1.0], dtype=torch.float64))
    total = 2 * math.e + math.exp(2)
    assert loss.item() == pytest.approx(math.log(total) - 0.0)
    loss.backward()
    assert q.grad.flatten().tolist() == pytest.approx([-1.0, math.exp(2) / total, 0.0])


def test_a_floor_below_all_changes_nothing():
    q, action = torch.randn(2, 50, 9), torch.randint(9, (50,))
    assert torch.equal(cql_penalty(q, action, torch.full((50,), -1e3)), cql_penalty(q, action))
    assert cql_penalty(q, action, torch.full((50,), 3.0)) > cql_penalty(q, action)


def test_policy_loss_by_hand_and_its_minimum():
    q = table([[1.0, 0.0]], [[2.0, -1.0]])  # the least of the two: 1, -1
    uniform = table([0.5, 0.5]).log()
    assert soft_policy_loss(uniform, q, 0.5).item() == pytest.approx(0.5 * math.log(0.5))
    best = (table([1.0, -1.0]) / 0.5).log_softmax(-1)
    least = soft_policy_loss(best, q, 0.5).item()
    assert least == pytest.approx(-0.5 * math.log(math.exp(2) + math.exp(-2)))
    for other in torch.randn(20, 1, 2, dtype=torch.float64):
        assert soft_policy_loss(other.log_softmax(-1), q, 0.5).item() > least


def test_the_policy_leaves_the_critics_alone():
    q, logits = torch.randn(2, 4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    soft_policy_loss(logits.log_softmax(-1), q, 1.0).backward()
    assert q.grad is None and logits.grad.abs().sum() > 0


def test_chosen():
    q = torch.arange(12.0).reshape(2, 2, 3)
    assert chosen(q, torch.tensor([2, 0])).tolist() == [[2.0, 3.0], [8.0, 9.0]]
