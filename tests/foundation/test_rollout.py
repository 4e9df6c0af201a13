"""Acting in environments: boundaries, chunk form against stepping, lengths, staleness, resuming."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from foundation.envs.dark_room import DarkRoom
from foundation.envs.world_env import WorldEnv
from foundation.rollout import (
    SEEDS,
    Environments,
    OnPolicy,
    Rollout,
    evaluation_seed,
    take,
    to_environment,
    training_seed,
)
from pipelines.schema import ACTION, FIRST, MASK, OBSERVATION, REWARD, TERMINATED, TRUNCATED, DataError
from tests.foundation.toy_world import CODEC, Bar, TinyPolicy


def rollout(b=4, threads=1, seed=0, **world):
    environments = Environments([Bar(**world) for _ in range(b)], lambda i, e: training_seed(seed, i, e), threads)
    return Rollout(environments, CODEC, seed)


def test_boundaries_keep_the_final_observation_as_a_masked_frame():
    chunk, episodes = rollout(b=2, length=3).collect(TinyPolicy(), 9)
    # three frames of an episode, then its final observation: t = 3 and 7
    expected = torch.tensor([[True, True, True, False] * 2 + [True]] * 2)
    assert torch.equal(chunk[MASK], expected)
    assert chunk[FIRST][0].nonzero().flatten().tolist() == [0, 4, 8]
    assert chunk[TRUNCATED][0].nonzero().flatten().tolist() == [2, 6]
    assert not chunk[TERMINATED].any()
    assert (chunk[REWARD][~chunk[MASK]] == 0).all()
    assert len(episodes) == 4
    assert all(e.frames == 3 for e in episodes)
    assert chunk["last"][OBSERVATION].shape == (2, 1, 8, 8, 3)


def test_returns_are_those_of_the_rewards():
    chunk, episodes = rollout(b=1, length=5, ends="terminated").collect(TinyPolicy(), 6)
    assert chunk[TERMINATED][0].nonzero().flatten().tolist() == [4]
    assert episodes[0].returns == pytest.approx(chunk[REWARD].sum().item(), abs=1e-6)


def test_chunk_form_equals_stepping_across_boundaries():
    policy, acting = TinyPolicy().eval(), rollout(b=3, length=5)
    for _ in range(2):  # the second chunk starts inside an episode
        chunk, _ = acting.collect(policy, 13)
        joint, state = policy(chunk, chunk["state"])
        assert torch.allclose(joint.log_prob(chunk[ACTION]), chunk["log_prob"], atol=1e-5)
        assert torch.allclose(state["h"], acting.state["h"], atol=1e-5)


def test_threads_do_not_change_the_numbers():
    policy = TinyPolicy()
    one, many = rollout(b=4).collect(policy, 20)[0], rollout(b=4, threads=4).collect(policy, 20)[0]
    assert all(torch.equal(one[name], many[name]) for name in (OBSERVATION, ACTION, REWARD))


def test_seeds_of_training_and_evaluation_never_meet():
    training = {training_seed(3, slot, episode) for slot in range(8) for episode in range(50)}
    evaluation = {evaluation_seed(3, i) for i in range(400)}
    assert len(training) == len(evaluation) == 400
    assert max(training) < SEEDS <= min(evaluation)


def test_actions_reach_the_environment_in_degrees():
    keys = np.array([[1, 0, 0, 0, 1, 0]], np.uint8)
    joint = CODEC.to_joint(keys, CODEC.to_bins(np.array([[0.0, CODEC.spec.camera_max]], np.float32)))
    (action,) = to_environment(CODEC, joint)
    assert action["keys"].tolist() == [1, 0, 0, 0, 1, 0]
    assert action["mouse"] == pytest.approx([0.0, CODEC.spec.camera_max])


class Agent:
    """Stands where the algorithm does: counts how often it is asked."""

    device = "cpu"

    def __init__(self):
        self.policy, self.versions, self.version = TinyPolicy(), [], 0
        self.precision = nullcontext

    def annotate(self, chunk, groups):
        self.versions.append(self.version)
        return {name: chunk[name] for name in (ACTION, MASK, "state")}


def test_stream_has_a_length_and_rolls_out_when_asked():
    agent = Agent()
    stream = OnPolicy(agent, rollout(b=4), iterations=3, chunk=6, epochs=2, minibatches=2, seed=0)
    assert len(stream) == 12
    count = 0
    for batch in stream:
        assert batch[ACTION].shape == (2, 6, 2)
        assert batch["iteration"] == count // 4
        count += 1
        agent.version = count  # the weights after this batch
    assert count == 12
    assert agent.versions == [0, 4, 8]
    assert stream.frames <= 3 * 4 * 6


def test_stream_sees_every_environment_once_per_epoch():
    stream = OnPolicy(Agent(), rollout(b=6), iterations=1, chunk=4, epochs=2, minibatches=3, seed=0)
    batches = [batch[ACTION] for batch in stream]
    for epoch in (batches[:3], batches[3:]):
        assert len({tuple(x.flatten().tolist()) for part in epoch for x in part}) == 6


def test_minibatches_must_divide_environments():
    with pytest.raises(DataError, match="do not divide"):
        OnPolicy(Agent(), rollout(b=4), iterations=1, chunk=4, epochs=1, minibatches=3, seed=0)


def test_state_dict_resumes_the_very_frames():
    policy = TinyPolicy()
    straight = rollout(b=3, length=5)
    straight.collect(policy, 8)
    saved = straight.state_dict()
    resumed = rollout(b=3, length=5)
    resumed.load_state_dict(saved)
    a, b = straight.collect(policy, 12)[0], resumed.collect(policy, 12)[0]
    assert all(torch.equal(a[name], b[name]) for name in (OBSERVATION, ACTION, REWARD, FIRST, MASK))


def test_resuming_knows_what_the_last_action_led_to():
    rooms = [[WorldEnv(DarkRoom(size=3, horizon=2), episodes=3) for _ in range(2)] for _ in range(2)]
    straight, resumed = (Environments(envs, lambda i, e: training_seed(0, i, e)) for envs in rooms)
    assert straight.reset().following is None
    for action in (0, 0):
        _, frame = straight.step([action] * 2)
    again = resumed.load_state_dict(straight.state_dict())
    assert (frame.observation == 0).all() and frame.following.tolist() == [[2, 0]] * 2  # an inner episode's end
    for name, value in vars(frame).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_take_reads_nested_rows():
    data = {"x": torch.arange(3), "state": {"k": torch.arange(6).reshape(3, 2)}}
    taken = take(data, torch.tensor([2, 0]))
    assert taken["x"].tolist() == [2, 0]
    assert taken["state"]["k"].tolist() == [[4, 5], [0, 1]]
