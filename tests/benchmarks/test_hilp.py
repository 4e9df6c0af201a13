"""Both arms of the benchmark do the same work: equal losses, before updates and after."""

from argparse import Namespace

import pytest
import torch

from benchmarks import hilp as benchmark
from models.hilbert import HilbertPolicy
from tests.models.nets import shaken


def test_plain_and_ours_learn_the_same():
    torch.manual_seed(0)
    batch = benchmark.batches(Namespace(batch=32, state=5, action=2))
    policy = shaken(HilbertPolicy(5, 2, width=16))
    arms = benchmark.plain(policy, batch), benchmark.ours(policy, batch, bf16=False, compiled=False)
    losses = []
    for _ in range(4):
        losses.append([loss() for _, loss in arms])
        for update, _ in arms:
            update()
    for plain, ours in losses:
        assert ours == pytest.approx(plain, rel=1e-4)
    assert losses[3][1] < losses[0][1]
