"""RL on frames from an image encoder of video: weights that are the same, shared with nobody; a policy that plays."""

import pytest
import torch

from foundation import evaluate, finetune, hub
from foundation.evaluate import load_policy
from foundation.pretraining.encoders import frame_encoder, start_from
from models.frame_encoders import FrameEncoder
from models.icvf import ENCODER, Icvf
from models.video_policy import VideoPolicy
from pipelines import checkpoint
from pipelines.schema import DataError
from tests.foundation.running import run

MAZE = ["task=maze_video", "task.env.rooms=2", "task.env.episode_frames=20", "episodes=2"]
TINY = ["policy.net.dim=16", "policy.net.layers=1", "policy.net.heads=2", "policy.net.context=8", "frames=32",
        "algo.stream.environments=2", "algo.stream.minibatches=2", "algo.stream.chunk=16"]  # fmt: skip
ACTIONS = {"n_buttons": 3, "n_camera": 2, "camera_on": [False, True, True], "camera_null": 0}


def write_icvf(folder, encoder="impala"):
    net = {"height": 16, "width": 16, "channels": [4, 4], "encoder": encoder, "dim": 8, "layers": 1}
    net |= {"state_dim": None} if encoder != "none" else {"state_dim": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Icvf(**net)
    extras = {} if encoder == "none" else {"size": (16, 16), "fps": 10.0}
    return checkpoint.save(folder, {"_target_": "models.icvf.Icvf", **net}, model, extras, "card")


@pytest.mark.parametrize("kind", ["impala", "resnet"])
def test_the_policy_begins_with_a_copy_of_the_encoder(kind, tmp_path):
    folder = write_icvf(tmp_path, kind)
    net = {"_target_": "models.video_policy.VideoPolicy", "height": 16, "width": 16, **ACTIONS, "dim": 16, "heads": 2}
    policies = [checkpoint.build({**net, "encoder": frame_encoder(folder)}) for _ in range(2)]
    assert all(str(folder) in start_from(policy, folder) for policy in policies)
    wanted = {k.removeprefix(ENCODER): v for k, v in hub.load(folder).net.state_dict().items() if k.startswith(ENCODER)}
    storage = set()
    for policy in policies:
        assert isinstance(policy.encoder, FrameEncoder) and policy.encoder.state_dict().keys() == wanted.keys()
        for name, value in policy.encoder.state_dict().items():
            assert torch.equal(value, wanted[name]), name
            storage.add(value.data_ptr())
    assert len(storage) == 2 * len(wanted)
    frames = torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8)
    policy = policies[0].eval()
    features = policy.encode(frames)
    torch.testing.assert_close(features[1, 3], policy.encoder(frames[1, 3:4])[0], atol=1e-5, rtol=1e-4)
    whole, _ = policy({"observation": frames})
    again, _ = policy({"features": features})
    assert torch.equal(whole.buttons_log_probs, again.buttons_log_probs)
    state, steps = policy.initial_state(2), []
    for t in range(5):
        joint, _, state = policy.step(frames[:, t], torch.tensor([t == 0] * 2), state)
        steps.append(joint.buttons_log_probs)
    torch.testing.assert_close(torch.stack(steps, 1), whole.buttons_log_probs, atol=1e-4, rtol=1e-4)


def test_without_an_encoder_it_is_the_policy_that_it_was():
    policy = VideoPolicy(16, 16, **ACTIONS, channels=[4, 4], dim=16, layers=1, heads=2).eval()
    assert policy.project is None and not any("project" in name for name in policy.state_dict())
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    latent, _ = policy.trunk(policy.encoder(frames), None, None)
    assert torch.equal(policy.latent({"observation": frames})[0], latent)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_command_trains_it_or_leaves_it(frozen, tmp_path):
    folder, out = write_icvf(tmp_path / "icvf"), tmp_path / "run"
    run(finetune, "finetune", *MAZE, *TINY, f"policy.init={folder}", f"run.dir={out}", "evaluate_before=false",
        f"algo.agent.train_encoder={not frozen}")  # fmt: skip
    before, bundle = hub.load(folder).net.encoder[0].state_dict(), load_policy(out)
    after = bundle.net.encoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before) == frozen
    assert bundle.size == (16, 16) and "image encoders" in (out / "model" / "README.md").read_text()
    if frozen:
        run(evaluate, "evaluate", *MAZE, f"policy={out}", f"run.dir={tmp_path / 'score'}", "baselines=[]")


def test_user_errors_say_what_to_do(tmp_path):
    vectors = write_icvf(tmp_path / "vectors", "none")
    with pytest.raises(DataError, match="no encoder of single frames"):
        run(finetune, "finetune", *MAZE, *TINY, f"policy.init={vectors}", f"run.dir={tmp_path / 'run'}")
    with pytest.raises(DataError, match=r"leave out policy.init"):
        run(finetune, "finetune", *MAZE, *TINY, f"policy.init={vectors}", "init=x", f"run.dir={tmp_path / 'run'}")
