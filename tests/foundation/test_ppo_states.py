"""PPO of a sequence policy on vectors: windows that cover every step, the commanded return, a ratio of exactly 1."""

import numpy as np
import pytest
import torch

from foundation.finetuning.episodes import Collector, Targets
from foundation.finetuning.ppo_states import SequencePPO, WindowsOnPolicy, commanded, cover
from models.decision_transformer import DecisionTransformer
from pipelines.checkpoint import Bundle
from pipelines.schema import ACTION, CONDITION, MASK
from tests.foundation.vector_world import LENGTH, SPACES, Push

CONTEXT = 4


def stream_of(agent, iterations=1, epochs=1, minibatches=2, target=6.0):
    config = {"spaces": SPACES.to_dict(), "condition": "return"}
    bundle = Bundle(agent.policy, None, None, 10.0, config, {"returns_scale": 8.0}, "")
    targets = Targets(target, {"push": 0.0}, 1.0, 0, {})
    collector = Collector({"push": [Push() for _ in range(6)]}, bundle, targets, None, 0, clip=False)
    return WindowsOnPolicy(
        agent, collector, {"length": CONTEXT}, bundle.statistics, SPACES, 10.0, 0, iterations, 6 * LENGTH, epochs,
        minibatches, LENGTH + 1,
    )  # fmt: skip


def agent_of(pretrained=False, dropout=0.0, **options):
    torch.manual_seed(0)
    policy = DecisionTransformer(3, 2, layout="merged", context=CONTEXT, max_timestep=LENGTH + 1, width=16, layers=1,
                                 dropout=dropout)  # fmt: skip
    return SequencePPO(policy, policy if pretrained else None, **options)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_every_step_counts_once_with_half_a_context_before_it(length):
    offsets = np.array([0, 1, 5, 9, 20])
    starts, counts = cover(offsets, length)
    seen = np.zeros(20, int)
    for start, count in zip(starts, counts, strict=True):
        end = offsets[np.searchsorted(offsets, start, side="right")]
        seen[start + count : min(start + length, end)] += 1
        assert count == 0 or count >= length // 2
    assert (seen == 1).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_ratio_is_exactly_one_in_the_first_pass(dropout):
    agent = agent_of(dropout=dropout).train()
    seen = 0
    for batch in stream_of(agent):
        log_prob = agent.distribution(batch)[1].log_prob(batch[ACTION])
        assert torch.equal(log_prob[batch[MASK]], batch["old_log_prob"][batch[MASK]])
        seen += int(batch[MASK].sum())
    assert seen == 6 * LENGTH  # the final observations are not trained on


def test_the_condition_is_what_was_asked_when_acting():
    stream = stream_of(agent_of())
    batch = next(iter(stream))
    arrays, tags, target = stream.played[0]
    first = arrays[0]["reward"]
    asked = (6.0 - np.concatenate([[0.0], np.cumsum(first)])) / 8.0
    np.testing.assert_allclose(stream.windows.condition[: LENGTH + 1, 0], asked, atol=1e-5)
    assert batch[CONDITION].shape[-1] == 1 and len(tags) == 6 and target == 6.0
    same = commanded(stream.data, [4.0] * 6, [8.0] * 6, "delayed")
    assert (same == 0.5).all()


def test_the_anchor_starts_at_zero_and_holds():
    agent = agent_of(pretrained=True, kl=0.3)
    batches = list(stream_of(agent, iterations=2))
    loss, metrics = agent.losses(batches[0])
    assert metrics["policy/kl"].abs() < 1e-6 and loss.isfinite()
    rho = [agent.losses(batch)[1]["policy/rho"].item() for batch in batches[::2]]
    assert rho == pytest.approx([0.3, 0.3 * 0.9995])


def test_it_learns_to_push():
    agent = agent_of(lr=3e-3, value_lr=1e-2, weight_decay=0.0, gamma=0.9, entropy=0.0)
    optimizer, returns = agent.configure_optimizers(), []
    stream = stream_of(agent, iterations=25, epochs=4, minibatches=1)
    for batch in stream:
        optimizer.zero_grad()
        agent.losses(batch)[0].backward()
        optimizer.step()
        returns.append(np.mean([episode.returns for episode in stream.episodes]))
    assert np.mean(returns[-20:]) > np.mean(returns[:20]) + 2
