"""method=cql and its kin: encoders of video that become those of actor and critics, the equations, the whole chain."""

import pytest
import torch

from foundation import evaluate, hub, pretrain
from foundation.pretraining.cql import CqlTask
from models.frame_encoders import FrameEncoder
from models.icvf import ENCODER
from models.visual_actor_critic import VisualActorCritic
from pipelines import schema
from pipelines.schema import DataError
from tests.foundation.maze_shards import write_mazes
from tests.foundation.running import run
from tests.models.test_visual_actor_critic import settings

SMALL = ("method.net.channels=[4,4]", "method.net.dim=8", "data.batch_size=4", "steps=3")
B = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_mazes(tmp_path_factory.mktemp("shards"), "task.env.maps=2")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run of method=icvf on video without actions."""
    folder = tmp_path_factory.mktemp("video")
    train(folder / "icvf", write_mazes(folder, actions=False), method="icvf")
    return folder / "icvf"


def train(folder, shards, *overrides, method="cql"):
    options = (f"method={method}", f"data.train={shards}", f"run.dir={folder}", *SMALL, *overrides)
    return run(pretrain, "pretrain", *options)


def made(value=False, **options):
    """A task in float64, its target moved away from the critic, or a swap of the two would not show."""
    torch.manual_seed(0)
    net = VisualActorCritic(**settings(value=value))
    values = {"gamma": 0.9, "alpha": 5.0, "floor": True, "temperature": 0.5, "tau": 0.1, **options}
    task = CqlTask(net, {}, **values)
    with torch.no_grad():
        for parameter in task.target_critic.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        net.critic.net.out.bias.copy_(torch.randn_like(net.critic.net.out.bias))
    return task


def batch():
    torch.manual_seed(1)
    s, after = torch.randint(0, 256, (2, B, 16, 16, 3), dtype=torch.uint8)
    return {
        schema.OBSERVATION: s, schema.NEXT_OBSERVATION: after, schema.ACTION: torch.randint(9, (B,)),
        schema.REWARD: torch.randn(B), schema.RETURN: torch.randn(B), schema.TERMINATED: torch.arange(B) % 3 == 0,
    }  # fmt: skip


@pytest.mark.parametrize("floor", [True, False])
def test_the_loss_is_built_from_the_right_values(floor):
    """Step by step, critic by critic and action by action, with plain loops over Q tables in float64."""
    task, data = made(floor=floor), batch()
    now, after = ({"observation": data[name]} for name in (schema.OBSERVATION, schema.NEXT_OBSERVATION))
    q, q_t = task.net.all_q(now).double(), task.target_critic(after).double()  # 2 b 9
    log_pi = task.net.act(now).log_probs.double()
    expected = 0.0
    for i in range(B):
        r, goes_on, mc = data[schema.REWARD][i], not data[schema.TERMINATED][i], data[schema.RETURN][i].double()
        best = max(min(q_t[k, i, a] for k in range(2)) for a in range(9))
        for k in range(2):
            taken = q[k, i, data[schema.ACTION][i]]
            policy = [max(q[k, i, a], mc) if floor else q[k, i, a] for a in range(9)]
            expected += (taken - (r + 0.9 * goes_on * best.detach())) ** 2 / B
            expected += 5 * (torch.stack(policy).exp().sum().log() - taken) / B
        least = q[:, i].amin(0).detach()
        expected += sum(log_pi[i, a].exp() * (0.5 * log_pi[i, a] - least[a]) for a in range(9)) / B
    loss, metrics = task.losses(data)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    below = (q < data[schema.RETURN][:, None]).double().mean()
    assert metrics["below_return"].item() == pytest.approx(below.item())
    for part in (task.net.critic, task.net.actor):
        ours = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
        theirs = torch.autograd.grad(expected, list(part.parameters()), retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert all(not p.requires_grad for p in task.target_critic.parameters())


def test_the_slow_critic_and_its_encoder_follow():
    task = made()
    before = {name: value.clone() for name, value in task.target_critic.state_dict().items()}
    task.follow()
    for name, value in task.target_critic.state_dict().items():
        torch.testing.assert_close(value, before[name].lerp(task.net.critic.state_dict()[name], 0.1))
    assert any(name.startswith("encoder.") for name in before)


def test_settings_that_make_no_sense_are_told():
    for wrong in ({"gamma": 1.0}, {"alpha": -1.0}, {"temperature": 0.0}, {"tau": 0.0}):
        with pytest.raises(DataError, match="method: "):
            made(**wrong)


@pytest.mark.parametrize("method", ["cql", "iql_frames"])
def test_actor_and_critics_begin_with_the_encoder_of_video_each_with_its_own_copy(method, encoder, shards, tmp_path):
    frozen = ("method.optimizer.lr=0", "method.optimizer.weight_decay=0", f"method.encoder={encoder}")
    train(tmp_path, shards, *frozen, method=method)
    wanted = {k.removeprefix(ENCODER): v for k, v in hub.load(encoder).net.state_dict().items() if ENCODER in k}
    net, storage = hub.load(tmp_path).net, set()
    for module in (net.actor.encoder, net.critic.encoder):
        assert isinstance(module, FrameEncoder)
        assert module.state_dict().keys() == wanted.keys()
        for name, value in module.state_dict().items():
            assert torch.equal(value, wanted[name]), name
            assert value.data_ptr() not in storage
            storage.add(value.data_ptr())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "image encoders" in card and str(encoder) in card
    slow = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(slow[f"target_critic.encoder.{name}"], value) for name, value in wanted.items())


def test_encoders_are_trained_and_grow_apart(encoder, shards, tmp_path):
    train(tmp_path, shards, f"method.encoder={encoder}", "method.optimizer.lr=1e-2")
    net = hub.load(tmp_path).net
    pairs = zip(net.actor.encoder.parameters(), net.critic.encoder.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["cql", "iql_frames"])
def test_frozen_encoders_stay_as_they_are_also_on_the_target(method, encoder, shards, tmp_path):
    frozen = "method.train_encoder=false"
    train(tmp_path / "before", shards, f"method.encoder={encoder}", frozen, method=method)
    train(tmp_path / "after", shards, f"init={tmp_path / 'before'}", frozen, method=method)
    theirs = hub.load(encoder).net.encoder[0].state_dict()
    one, other = (hub.load(tmp_path / name).net for name in ("before", "after"))
    for net in (one, other):
        for module in (net.actor.encoder, net.critic.encoder):
            assert all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())
    assert not torch.equal(one.actor.embed[0].weight, other.actor.embed[0].weight)


@pytest.mark.parametrize("method", ["cql", "iql_frames"])
def test_encoders_may_learn_at_a_rate_of_their_own(method, encoder, shards, tmp_path):
    one_step = (f"method.encoder={encoder}", "steps=1", "method.optimizer.lr=1e-2")
    train(tmp_path / "slow", shards, *one_step, "method.encoder_lr=1e-4", method=method)
    theirs, net = hub.load(encoder).net.encoder[0].state_dict(), hub.load(tmp_path / "slow").net
    for module in (net.actor.encoder, net.critic.encoder):
        moved = max((value - theirs[name]).abs().max() for name, value in module.state_dict().items())
        assert moved == pytest.approx(1e-4, rel=1e-2)  # Adam's first step is the rate, whatever the gradient
    assert net.critic.embed[0].bias.abs().max() > 5e-3
    for wrong in ("method.encoder_lr=0",), ("method.encoder_lr=1e-4", "method.train_encoder=false"):
        with pytest.raises(DataError, match="encoder_lr=0"):
            train(tmp_path / "still", shards, *one_step, *wrong, method=method)


def test_encoders_that_do_not_fit_are_told(encoder, shards, tmp_path):
    start = f"method.encoder={encoder}"
    with pytest.raises(DataError, match=r"set method.net.channels=\[4,4\]"):
        train(tmp_path / "a", shards, start, "method.net.channels=[4,8]")
    train(tmp_path / "b", shards)
    with pytest.raises(DataError, match="leave out"):
        train(tmp_path / "c", shards, start, f"init={tmp_path / 'b'}")
    with pytest.raises(DataError, match="value=true"):
        train(tmp_path / "d", shards, "method.net.value=false", method="iql_frames")
    with pytest.raises(DataError, match="no encoder of single frames"):
        train(tmp_path / "e", shards, f"method.encoder={tmp_path / 'b'}")


@pytest.mark.parametrize("arm", ["icvf", "idm_frames", None])
def test_the_whole_chain(arm, encoder, shards, tmp_path):
    """Video, other mazes with keys, a maze never seen with one demonstration in ten rows, play there."""
    if arm == "idm_frames":
        train(tmp_path / "encoder", shards, method=arm)
        encoder = tmp_path / "encoder"
    train(tmp_path / "before", shards, f"method.encoder={'null' if arm is None else encoder}", "data.validation=0.34")
    new = ("task.env.split=heldout", "task.env.maps=1")
    demonstrations = write_mazes(tmp_path / "demonstrations", *new, episodes=2)
    summary = train(tmp_path / "after", demonstrations, f"init={tmp_path / 'before'}", f"data.prior={shards}",
                    "data.prior_share=0.9")  # fmt: skip
    assert summary["steps"] == 3 and 0 <= summary["train/below_return"] <= 1
    played = run(
        evaluate, "evaluate", "task=maze_video", "task.env.rooms=2", "task.env.maps=1", "task.env.episode_frames=10",
        f"policy={tmp_path / 'after'}", "episodes=2", "environments=2", "baselines=[random]", f"run.dir={tmp_path}",
    )  # fmt: skip
    assert 0 <= played["evaluate/success"] <= 1 and "evaluate/random/success" in played
    card = (tmp_path / "after" / "model" / "README.md").read_text()
    assert "0.9, from step 0" in card and "prior shards" in card


def test_the_policy_of_a_task_is_saved_with_it(shards, tmp_path):
    new = ("task.env.split=heldout", "task.env.maps=1")
    target = write_mazes(tmp_path / "target", *new, episodes=2)
    train(tmp_path, target, f"data.prior={shards}", "data.tasks={split: [train, heldout]}")
    assert hub.load(tmp_path).net.told.tolist() == [0.0, 1.0]


def test_it_learns_whom_to_imitate(tmp_path):
    """Rewards tell apart two ways to go: those who went right were paid. CQL goes right; the data went both ways."""
    task = made(alpha=0.5, temperature=0.3, gamma=0.5, tau=0.05)
    optimizer = torch.optim.Adam(task.net.parameters(), 3e-3)
    data = batch()
    data[schema.TERMINATED] = torch.ones(B, dtype=torch.bool)
    data[schema.OBSERVATION] = data[schema.OBSERVATION][:1].repeat(B, 1, 1, 1)
    data[schema.ACTION] = torch.arange(B) % 2  # as often 0 as 1
    data[schema.REWARD] = data[schema.RETURN] = 3.0 * data[schema.ACTION]
    for _ in range(150):
        loss, _ = task.losses(data)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chances = task.net.act({"observation": data[schema.OBSERVATION][:1]}).log_probs.exp()[0]
    assert chances[1] > 0.8, chances
