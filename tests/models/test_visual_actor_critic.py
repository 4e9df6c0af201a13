"""Actor and critics on frames: shapes, the mouse at rest, encoders apart, and acting as the other policies do."""

import pytest
import torch

from foundation.envs.maze_video import MAZE
from models.frame_encoders import FrameEncoder
from models.visual_actor_critic import VisualActorCritic
from pipelines import checkpoint
from pipelines.actions import DOOM, ActionCodec


def settings(spec=MAZE, **options):
    codec = ActionCodec(spec)
    return {
        "height": 16, "width": 16, "n_buttons": codec.n_buttons, "n_camera": codec.n_camera,
        "camera_on": codec.camera_on, "camera_null": codec.camera_null, "channels": [4, 4], "dim": 8, **options,
    }  # fmt: skip


def frames(*shape):
    return torch.randint(0, 256, (*shape, 16, 16, 3), dtype=torch.uint8)


def made(**options):
    torch.manual_seed(0)
    return VisualActorCritic(**settings(**options))


@pytest.mark.parametrize("tasks", [0, 3])
def test_values_and_actions(tasks):
    net, now = made(value=True, tasks=tasks), {"observation": frames(5)}
    if tasks:
        now["condition"] = torch.eye(3)[[0, 1, 2, 0, 1]]
    every, action = net.all_q(now), torch.arange(5)
    assert net.n_actions == 9 and every.shape == (2, 5, 9) and net.v(now).shape == (5,)
    assert torch.equal(net.q(now, action), every[:, torch.arange(5), action])
    assert net.act(now).log_prob(action).shape == (5,)
    other = made(value=True, tasks=tasks)
    with torch.no_grad():
        other.critic.net.out.bias += 1
    torch.testing.assert_close(net.all_q(now, other.critic), every + 1)
    if tasks:
        assert not torch.equal(net.all_q({**now, "condition": torch.eye(3)[[1] * 5]})[:, 0], every[:, 0])


def test_actor_and_critics_see_with_their_own_encoders():
    net = made()
    assert sum(isinstance(module, FrameEncoder) for module in net.modules()) == 2 and net.value is None
    net.act({"observation": frames(2)}).log_probs[:, 0].sum().backward()
    assert all(p.grad is None for p in net.critic.parameters())
    assert all(p.grad is not None for p in net.actor.parameters())


@pytest.mark.parametrize("spec", [MAZE, DOOM])
def test_it_never_moves_the_mouse(spec):
    codec, net = ActionCodec(spec), made(spec=spec)
    joint, latent, state = net.step(frames(50), torch.ones(50, dtype=torch.bool), net.initial_state(50))
    assert latent.shape == (50, 8) and state == {}
    for action in (joint.sample(torch.Generator().manual_seed(0)), joint.mode()):
        _, bins = codec.from_joint(action)
        assert (bins == codec.null_bin).all() and (action[:, 1] == codec.camera_null).all()
    assert joint.entropy().isfinite().all() and torch.allclose(joint.kl(joint), torch.zeros(50))
    logs = joint.buttons_log_probs[:, net.still]
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(50))
    assert net.n_actions == len(net.still) == codec.n_product // 2 + len(spec.exclusive)


def test_a_window_is_its_frames():
    net, window = made(), frames(2, 3)
    whole, _ = net({"observation": window})
    for t in range(3):
        one, _, _ = net.step(window[:, t], None, {})
        torch.testing.assert_close(whole.buttons_log_probs[:, t], one.buttons_log_probs)
        assert whole.sample().shape == (2, 3, 2)


def test_it_acts_for_the_task_it_was_told_and_keeps_it(tmp_path):
    net, seen = made(tasks=2), frames(4)
    net.told.copy_(torch.tensor([0.0, 1.0]))
    acted = net.step(seen, None, {})[0].buttons_log_probs[:, net.still]
    torch.testing.assert_close(acted, net.act({"observation": seen, "condition": torch.eye(2)[[1] * 4]}).log_probs)
    config = {"_target_": "models.visual_actor_critic.VisualActorCritic", **settings(tasks=2)}
    again = checkpoint.load(checkpoint.save(tmp_path, config, net, {"actions": MAZE, "size": (16, 16)}, "card")).net
    assert torch.equal(again.step(seen, None, {})[0].buttons_log_probs[:, net.still], acted)
