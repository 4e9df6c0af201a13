"""PPO on a sequence policy: the anchor, the ratio, staleness, gradients, learning."""

import lightning
import pytest
import torch

from foundation.actors import PolicyActor, RandomActor
from foundation.callbacks import Experience, csv_logger
from foundation.checkpoints import Checkpoint
from foundation.evaluate import play
from foundation.finetuning.ppo import PPO
from foundation.rollout import Environments, OnPolicy, Rollout, training_seed
from foundation.training import quiet
from pipelines.schema import ACTION, MASK, OBSERVATION, DataError
from tests.foundation.toy_world import CODEC, Bar, TinyPolicy


def stream_of(agent, b=4, iterations=2, chunk=10, epochs=2, minibatches=2, seed=0, **world):
    environments = Environments([Bar(**world) for _ in range(b)], lambda i, e: training_seed(seed, i, e), threads=1)
    rollout = Rollout(environments, CODEC, seed, features=not agent.hparams.train_encoder)
    return OnPolicy(agent, rollout, iterations, chunk, epochs, minibatches, seed)


@quiet()
def fit(agent, stream, folder=None):
    experience = Experience(stream)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, enable_progress_bar=False, enable_checkpointing=False, barebones=False,
        enable_model_summary=False, gradient_clip_val=5.0, log_every_n_steps=1,
        logger=csv_logger(folder) if folder else False,
        callbacks=[experience, Checkpoint(folder, {})] if folder else [],
    )  # fmt: skip
    trainer.fit(agent, stream)
    return trainer


def anchored(kl=0.2, **options):
    policy = TinyPolicy()
    return PPO(policy, pretrained=TinyPolicy(), kl=kl, **options)


def first_batch(agent, **options):
    return next(iter(stream_of(agent, **options)))


def test_kl_and_its_gradient_vanish_at_the_pretrained_policy():
    agent = anchored()
    batch = first_batch(agent)
    batch["advantage"] = torch.zeros_like(batch["advantage"])  # leaves the anchor alone
    loss, metrics = agent.losses(batch)
    assert metrics["policy/kl"].abs() < 1e-6
    (metrics["policy/kl"]).backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in agent.policy.parameters())
    assert loss.isfinite()


def test_no_gradient_reaches_the_prior_and_its_memory_follows_the_episodes():
    agent = anchored()
    source = stream_of(agent, iterations=3, epochs=1, minibatches=1)
    stream = iter(source)
    for _ in range(3):
        loss, _ = agent.losses(next(stream))
        loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in agent.prior.parameters())
    # acting and prior are the same net here, so their memories agree
    assert torch.allclose(agent.prior_state["h"], source.rollout.state["h"], atol=1e-5)


def test_anchor_decays_per_iteration_and_replaces_the_entropy_bonus():
    agent = anchored(kl=0.2, kl_decay=0.9995, entropy=0.01)
    assert agent.entropy == 0.0
    batches = list(stream_of(agent, iterations=3))
    rho = [agent.losses(batch)[1]["policy/rho"].item() for batch in batches[:: len(batches) // 3]]
    assert rho == pytest.approx([0.2 * 0.9995**k for k in range(3)])


def test_without_pretraining_or_with_kl_0_there_is_entropy_and_no_prior():
    for agent in (PPO(TinyPolicy()), anchored(kl=0.0)):
        assert agent.prior is None
        assert agent.entropy == 0.01
        assert "policy/kl" not in agent.losses(first_batch(agent))[1]


def test_loss_is_the_sum_of_what_is_logged():
    agent = anchored(kl=0.3)
    for p in agent.policy.parameters():
        p.data += 0.05
    loss, m = agent.losses(first_batch(agent))
    expected = m["loss/actor"] + 0.5 * m["loss/value"] + m["policy/rho"] * m["policy/kl"]
    assert m["policy/kl"] > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_ratio_is_exactly_one_before_the_first_update(dropout):
    agent = PPO(TinyPolicy(dropout=dropout)).train()
    for batch in list(stream_of(agent, iterations=1, epochs=1)):
        latent, _ = agent.policy.latent(batch, batch["state"])
        log_prob = agent.policy.head(latent).log_prob(batch[ACTION])
        assert torch.equal(log_prob[batch[MASK]], batch["old_log_prob"][batch[MASK]])


def test_acting_and_training_probabilities_agree():
    agent = PPO(TinyPolicy())
    list(stream_of(agent, iterations=2, length=4))
    assert agent.rollout_metrics["policy/step_mismatch"] < 1e-4


@quiet()
def test_rollouts_use_the_weights_of_the_moment(tmp_path):
    agent = PPO(TinyPolicy(), lr=1e-2)
    stream = stream_of(agent, iterations=4)
    used, after = [], []
    collect = stream.rollout.collect
    weights = lambda: sum(p.double().sum().item() for p in agent.policy.parameters())  # noqa: E731

    def watched(*args):
        used.append(weights())
        return collect(*args)

    class After(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            after.append(weights())

    stream.rollout.collect = watched
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[After()],
    )  # fmt: skip
    trainer.fit(agent, stream)
    assert trainer.global_step == len(stream) == 16
    assert used[1:] == after[3:-1:4]
    assert len(set(used)) == 4


def test_value_gradient_can_be_kept_out_of_the_trunk():
    agent = PPO(TinyPolicy(), value_gradient=False)
    torch.nn.init.ones_(agent.value.linear.weight)
    batch = first_batch(agent)
    agent.losses(batch)[1]["loss/value"].backward()
    assert all(p.grad is None for p in agent.policy.parameters())
    assert agent.value.linear.weight.grad is not None


def test_frozen_encoder_trains_on_features_and_gives_the_same_loss():
    whole, frozen = anchored(), anchored(train_encoder=False)
    batches = [first_batch(agent) for agent in (whole, frozen)]
    assert OBSERVATION not in batches[1]
    losses = [agent.losses(batch)[0] for agent, batch in zip((whole, frozen), batches, strict=True)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    losses[1].backward()
    assert all(p.grad is None for p in frozen.policy.encoder.parameters())
    assert frozen.policy.cell.weight_hh.grad is not None


def test_a_rollout_without_reward_has_small_advantages():
    agent = PPO(TinyPolicy())
    batch = first_batch(agent, length=10_000, chunk=20)  # rewards of 1e-4
    assert batch["advantage"].abs().max() < 0.05
    with pytest.raises(DataError, match="advantage_scale"):
        first_batch(PPO(TinyPolicy(), advantage_scale="batch"))


@pytest.mark.parametrize(("ends", "bootstrap"), [("truncated", 4.5), ("terminated", 0.0)])
def test_advantages_bootstrap_a_cut_episode_from_its_final_observation(ends, bootstrap):
    agent = PPO(TinyPolicy(), gamma=0.5, lambda_=0.0, advantage_scale="none")
    torch.nn.init.constant_(agent.value.linear.bias, 8.0)
    agent.value.update(torch.tensor([0.0, 2.0]))  # mean 1, deviation 1: V = 8 * 1 + 1 = 9 everywhere
    batch = first_batch(agent, b=1, iterations=1, chunk=4, epochs=1, minibatches=1, length=3, ends=ends)
    reward = batch["target"][0] - torch.tensor([4.5, 4.5, bootstrap, 4.5])
    assert all(min(abs(r - known) for known in (-1 / 3, 0, 1 / 3)) < 1e-5 for r in reward[:3].tolist())
    assert reward[3].abs() < 1e-5  # the final observation brings nothing


def test_two_runs_with_one_seed_are_equal(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(0)
        fit(agent := anchored(lr=1e-3), stream_of(agent, iterations=3), tmp_path / name)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("a", "b")]
    speed = rows[0][0].split(",").index("frames_per_second")
    drop = lambda lines: [line.split(",")[:speed] + line.split(",")[speed + 1 :] for line in lines]  # noqa: E731
    assert drop(rows[0]) == drop(rows[1])
    assert len(rows[0]) == 4
    for column in ("frames", "return", "success", "policy/kl", "policy/rho", "policy/entropy", "loss/value",
                   "policy/clip_fraction", "value/explained_variance"):  # fmt: skip
        assert column in rows[0][0].split(",")
    assert (tmp_path / "a" / "last.ckpt").exists()


def test_ppo_learns_to_turn_and_remember():
    torch.manual_seed(0)
    agent = PPO(TinyPolicy(), lr=1e-2, value_lr=5e-3, weight_decay=0.0, gamma=0.9, entropy=0.003)
    stream = stream_of(agent, b=16, iterations=25, chunk=16, epochs=3, minibatches=2, length=6, visible=2)
    fit(agent, stream)
    worlds = [Bar(length=6, visible=2) for _ in range(20)]
    returns = {
        who: torch.tensor([e.returns for e in play(actor, worlds, range(1000, 1100))]).mean().item()
        for who, actor in {"ppo": PolicyActor(agent.policy, CODEC), "random": RandomActor(CODEC)}.items()
    }
    assert abs(returns["random"]) < 0.15
    assert returns["ppo"] > 0.6
