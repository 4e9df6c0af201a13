"""TD3+ODT on windows: numbers by hand, who receives gradients, masks, proportions, and that it learns."""

import numpy as np
import pytest
import torch

from foundation.finetuning.episodes import Collector, Explorer, Targets, floors, stack_episodes
from foundation.finetuning.replay import SOURCE, UPDATE, OfflineToOnline, Replay, Source
from foundation.finetuning.td3_aux import TD3Aux
from foundation.losses.td import smoothed, td_loss, td_target
from models.decision_transformer import DecisionTransformer
from models.heads import Gaussian
from pipelines.checkpoint import Bundle
from pipelines.schema import ACTION, CONDITION, MASK, NEXT_OBSERVATION, OBSERVATION, TIMESTEP, DataError
from pipelines.trajectories import Trajectories
from tests.foundation.vector_world import LENGTH, SPACES, Push, write_pushes

CONTEXT = 4
OPTIONS = {"length": CONTEXT}


def policy(**options):
    torch.manual_seed(0)
    return DecisionTransformer(3, 2, layout="merged", context=CONTEXT, max_timestep=LENGTH, width=16, layers=1,
                               dropout=0.0, **options)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Trajectories.load(write_pushes(tmp_path_factory.mktemp("pushes"), 20))


def batch_of(data, n=8, update=0, t=0):
    return {**Source(data, OPTIONS, {"returns_scale": 8.0}, n, 0).batch(t, n), UPDATE: update}


def test_targets_by_hand():
    reward, q = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[4.0, 4.0, 4.0], [6.0, 2.0, 6.0]])
    target = td_target(reward, torch.tensor([False, False, True]), q, 0.5)
    assert target.tolist() == [3.0, 2.0, 1.0]  # min over members; a terminated step has no future, a cut one has
    loss = td_loss(torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([1.0, 9.0]), torch.tensor([True, False]))
    assert loss.item() == 2**2 + 4**2
    assert smoothed(torch.tensor([0.9, -0.9]), torch.tensor([7.0, -0.05]), 0.5).tolist() == pytest.approx([1.0, -0.95])


def test_truncation_bootstraps_and_termination_does_not(data):
    """Windows of the end of an episode: with gamma 0.5 and a critic that says 8 everywhere."""
    agent = TD3Aux(policy(), gamma=0.5)
    for critic in (agent.critic, agent.slow_critic):
        torch.nn.init.zeros_(critic.out.weight)
        torch.nn.init.constant_(critic.out.bias, 8.0)
    batch = batch_of(data)
    expected = (batch["reward"] + 4.0)[batch[MASK]].mean()  # every episode here is cut
    assert agent.critic_loss(batch)[1]["critic/target"].item() == pytest.approx(expected.item(), abs=1e-5)
    batch["terminated"] = batch[MASK].clone()
    expected = batch["reward"][batch[MASK]].mean()
    assert agent.critic_loss(batch)[1]["critic/target"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_window_one_step_later_is_the_next_window(data):
    agent = TD3Aux(policy())
    source = Source(data, OPTIONS, {"returns_scale": 8.0}, 2, 0).windows
    now, later = (source.__getitems__([start, 2 * LENGTH + start]) for start in (1, 2))
    moved = agent.following(now)
    for name in (OBSERVATION, CONDITION, TIMESTEP):
        torch.testing.assert_close(moved[name], later[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[ACTION][:, :-1], later[ACTION][:, :-1])


def gradients(module):
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()]


def test_actor_terms_leave_the_critic_without_gradient_and_the_reverse(data):
    agent = TD3Aux(policy(), imitation=0.0)
    batch = batch_of(data)
    agent.actor_terms(batch)[0]["q"].backward()
    assert not any(gradients(agent.critic)) and any(gradients(agent.policy))
    agent.zero_grad()
    agent.critic_loss(batch)[0].backward()
    assert all(gradients(agent.critic)) and not any(gradients(agent.policy))
    assert not any(gradients(agent.slow_critic)) and not any(gradients(agent.slow_policy))
    assert all(p.requires_grad for p in agent.critic.parameters())


def test_the_loss_is_the_sum_of_what_is_logged(data):
    agent = TD3Aux(policy(), temperature=0.1, loss="nll")
    loss, metrics = agent.losses(batch_of(data))
    parts = {name for name in metrics if name.startswith("loss/")} - {"loss/total"}
    assert parts == {"loss/critic", "loss/imitation", "loss/entropy", "loss/temperature", "loss/q"}
    assert loss.item() == pytest.approx(sum(metrics[name].item() for name in parts), rel=1e-6)
    for name in parts:  # each one moves something
        agent.zero_grad()
        agent.losses(batch_of(data))[1][name].backward()
        assert any(gradients(agent)), name


def test_a_step_without_the_actor_leaves_weights_and_moments_bitwise(data):
    agent = TD3Aux(policy(), actor_every=2, weight_decay=0.1)
    optimizer = agent.configure_optimizers()
    for update in range(3):
        before = [p.clone() for p in agent.policy.parameters()]
        moments = [m.clone() for p in agent.policy.parameters() for m in optimizer.state[p].values()]
        optimizer.zero_grad(set_to_none=True)
        agent.losses(batch_of(data, update=update, t=update))[0].backward()
        optimizer.step()
        same = all(torch.equal(p, old) for p, old in zip(agent.policy.parameters(), before, strict=True))
        assert same == (update == 1)
    agent = TD3Aux(policy(), critic_updates=3, actor_every=2)
    assert [agent.actor_is_due(update) for update in range(7)] == [False] * 3 + [True, False, True, False]
    assert moments


def test_padding_changes_neither_critic_nor_actor(data):
    agent = TD3Aux(policy(), smoothing=0.0)
    source = Source(data, OPTIONS, {"returns_scale": 8.0}, 2, 0).windows
    batch = {**source.__getitems__([0, LENGTH - 2]), UPDATE: 0}
    assert batch[MASK].sum(1).tolist() == [4, 2]
    loss = agent.losses(batch)[0]
    for name in (OBSERVATION, NEXT_OBSERVATION, ACTION, CONDITION, "reward", "scaled_reward"):
        batch[name][~batch[MASK]] = 7.0
    assert agent.losses(batch)[0].item() == pytest.approx(loss.item(), rel=1e-5)


def test_alpha_0_has_no_critic_and_choices_have_none():
    assert TD3Aux(policy(), alpha=0.0).critic is None
    levers = DecisionTransformer(3, 1, n_actions=3, layout="merged", width=16, layers=1)
    with pytest.raises(DataError, match="algo=odt, bc"):
        TD3Aux(levers)
    assert TD3Aux(levers, alpha=0.0).loss == "nll"
    with pytest.raises(DataError, match="positions"):
        TD3Aux(policy(), positions="first")


# what it trains on


def bundle_of(net, **statistics):
    config = {"spaces": SPACES.to_dict(), "condition": "return", "fps": 10.0}
    return Bundle(net, None, None, 10.0, config, {"returns_scale": 8.0, **statistics}, "")


def stream_of(agent, data, share=0.5, frames=200, seed=0, batch_size=10, target=None, **options):
    worlds = {"push": [Push() for _ in range(5)]}
    bundle = bundle_of(agent.policy)
    targets = Targets(target, floors(worlds, bundle, data), 1.1, 20, bundle.statistics)
    collector = Collector(worlds, bundle, targets, 0.1, seed)
    return OfflineToOnline(
        agent, collector, (data, data.lengths / data.lengths.sum()), OPTIONS, bundle.statistics, SPACES, 10.0, seed,
        frames, batch_size, offline_share=share, **options,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 1.0])
def test_every_batch_has_the_exact_share(data, share):
    stream = stream_of(TD3Aux(policy()), data, share, offline_updates=3, updates_per_frame=0.2)
    given = [int((batch[SOURCE] == 0).sum()) for batch in stream]
    assert len(given) == len(stream) == 3 + 40 and given[:3] == [10] * 3
    online = np.cumsum(given[3:])
    assert (np.abs(online - 10 * share * np.arange(1, 41)) < 1 + 1e-6).all()
    if 10 * share % 1 == 0:
        assert set(given[3:]) == {int(10 * share)}


def test_rounds_follow_the_frames_and_warm_up_learns_nothing(data):
    agent = TD3Aux(policy())
    before = [p.clone() for p in agent.parameters()]
    stream = stream_of(agent, data, warmup=100, updates_per_frame=0.5)
    batch = next(iter(stream))
    assert stream.frames == 120 and stream.per_iteration == 10 and len(stream) == 50  # rounds of 5 x 8 steps
    assert all(torch.equal(p, old) for p, old in zip(agent.parameters(), before, strict=True))
    assert batch[OBSERVATION].shape == (10, CONTEXT, 3)
    with pytest.raises(DataError, match="warmup=200"):
        stream_of(agent, data, warmup=200)


def test_replay_drops_whole_episodes_and_comes_back(data):
    replay = Replay(SPACES, 10.0, capacity=3 * LENGTH)
    worlds = {"push": [Push() for _ in range(2)]}
    bundle = bundle_of(policy())
    collector = Collector(worlds, bundle, Targets(5.0, {"push": 0.0}, 1.1, 4, bundle.statistics), 0.1, 0)
    for number in range(4):
        played = collector.play(number)
        replay.add(played.arrays, played.tags)
    assert replay.steps == 3 * LENGTH and len(replay.arrays) == 3
    copy = Replay(SPACES, 10.0, capacity=3 * LENGTH)
    copy.load_state_dict(replay.state_dict())
    one, other = replay.trajectories(), copy.trajectories()
    for name in ("observation", "action", "reward", "terminated", "truncated", "final_observation", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.truncated.sum() == 3 and not one.terminated.any()
    newest = played.episodes[-1]
    assert one.returns[-1] == pytest.approx(newest.returns, abs=1e-5)  # hindsight: what really came
    side, push = one.observation[-LENGTH:, 0], one.action[-LENGTH:, 0]
    np.testing.assert_allclose(one.reward[-LENGTH:], side * push, atol=1e-6)  # actions are kept in [-1, 1]


def test_exploration_scatters_around_the_mode(data):
    net = policy(log_std=-2.0)
    distribution = net(batch_of(data, 64))[0]
    now = Gaussian(distribution.mean[:, 0].detach(), net.log_std.detach())
    spread = {}
    for noise in (0.0, 0.1, None):
        actor = Explorer(bundle_of(net), 1.0, 0, noise)
        actor.generator = torch.Generator().manual_seed(0)
        spread[noise] = float((actor.choose(now) - now.mean).std())
    assert spread[0.0] == 0 and spread[0.1] == pytest.approx(0.1, rel=0.3)
    assert spread[None] == pytest.approx(np.exp(-2.0), rel=0.3)


def test_what_is_asked_for(data):
    targets = Targets(None, {"a": 10.0, "b": -10.0}, 1.1, 2, {})
    assert targets("a") == pytest.approx(11.0) and targets("b") == pytest.approx(-9.0)
    targets.add("b", [-4.0, -3.0, -5.0])  # of which the last two are recent
    assert targets("b") == pytest.approx(-2.7) and targets("a") == pytest.approx(11.0)
    assert Targets("q0.5", {"a": 0.0}, 1.1, 2, {"returns": {"0": 0.0, "1": 4.0}})("a") == 2.0
    tagged = floors(["push", "elsewhere"], None, data)
    own = data.returns[[t["task"] == "push" for t in data.tags]]
    assert tagged["push"] == np.quantile(own, 0.9) and tagged["elsewhere"] == np.quantile(data.returns, 0.9)


def test_episodes_stack_as_they_were_played(data):
    arrays = [{"observation": np.zeros((n, 3), np.float32), "action": np.zeros((n, 2), np.float32),
               "reward": np.ones(n, np.float32), "terminated": np.zeros(n, bool), "truncated": np.zeros(n, bool),
               "final_observation": np.zeros(3, np.float32)} for n in (2, 5)]  # fmt: skip
    stacked = stack_episodes(arrays, [{}, {}], SPACES, 10.0)
    assert stacked.offsets.tolist() == [0, 2, 7] and stacked.returns.tolist() == [2.0, 5.0]
