import logging

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import GPT2Config, GPT2LMHeadModel

from foundation import hub, pretrain
from foundation.actors import SequenceActor
from foundation.evaluate import play
from foundation.pretraining.token_data import Sequences
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from tests.foundation.vector_world import Push, write_pushes

SIZE = ["method.net.width=32", "method.net.layers=2", "method.net.heads=2", "method.net.dropout=0"]
TINY = [*SIZE, "method.net.context=4", "data.batch_size=8", "data.validation=0.25", "steps=3", "validate_every=3"]


def run(method, folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("pretrain", [f"method={method}", f"run.dir={folder}", *overrides])
    return execute(pretrain.main.function, cfg)


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"), 20)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A run of method=language on a chain of 10 states."""
    folder = tmp_path_factory.mktemp("language")
    chain = ["data=markov", "data.states=10", "data.validation=1"]
    run("language", folder, *SIZE, "method.net.context=8", *chain, "steps=2")
    return folder


@pytest.fixture
def train(pushes, tmp_path):
    def start(name, *overrides):
        return run("lamo", tmp_path / name, *TINY, f"data.train={pushes}", *overrides)

    return start


def test_the_language_model_stays_as_it_was_under_its_adapters(train, language, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fast = ["method.optimizer.lr=0.1", "method.optimizer.warmup_steps=0", "method.net.trunk.biases=false"]
    summary = train("lora", f"method.language.init={language}", *fast)
    source = hub.load(language).net.trunk.state_dict()
    bundle = hub.load(tmp_path / "lora")
    base = bundle.net.trunk.base_state()
    assert base.keys() == source.keys() and all(torch.equal(value, base[name]) for name, value in source.items())
    moved = bundle.net.trunk.trunk.blocks[0].attention.value.lora_B.default.weight
    assert moved.abs().max() > 0
    played = play(SequenceActor(bundle, 5.0), [Push()], [0])
    assert len(played) == 1
    assert summary["parameters/trunk_trainable"] == 0
    assert summary["parameters/adapters"] == summary["parameters/adapters_trainable"] == 2 * 3 * 2 * 16 * 32
    parts = ("trunk", "adapters", "embeddings", "heads")
    assert summary["parameters"] == sum(summary[f"parameters/{part}"] for part in parts)
    assert {f"heads/{i}_{j}" for i in (0, 1) for j in (0, 1)} <= summary.keys()
    assert 0 <= summary["heads/0_0"] <= 1 and "Markov heads" in caplog.text


def test_frozen_and_full(train, language, tmp_path):
    source = hub.load(language).net.trunk.state_dict()
    for name in ("frozen", "full"):
        summary = train(name, f"method.language.init={language}", f"method.language.train={name}")
        state = hub.load(tmp_path / name).net.trunk.base_state()
        same = [torch.equal(value, state[key]) for key, value in source.items()]
        assert all(same) if name == "frozen" else not any(same)
        assert summary["parameters/trunk_trainable"] == (0 if name == "frozen" else summary["parameters/trunk"])


def test_random_weights_have_no_heads_to_judge(train):
    summary = train("random", "method.net.embed=linear")
    assert not [name for name in summary if name.startswith("heads/")]


def test_a_gpt2_of_hugging_face(train, tmp_path):
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    theirs.save_pretrained(tmp_path / "gpt2")
    train("policy", f"method.language.init={tmp_path / 'gpt2'}")
    query = theirs.state_dict()["transformer.h.1.attn.c_attn.weight"][:, :32].T
    assert torch.equal(hub.load(tmp_path / "policy").net.trunk.base_state()["blocks.1.attention.query.weight"], query)


CHAIN = ["data@method.language.text=markov", "method.language.text.states=10", "method.language.text.length=8"]


def test_text_is_read_only_where_it_counts(train, language, monkeypatch):
    asked, original = [], Sequences.__getitem__
    monkeypatch.setattr(Sequences, "__getitem__", lambda self, step: (asked.append(step), original(self, step))[1])
    train("without", f"method.language.init={language}", *CHAIN)
    assert not asked
    summary = train("with", f"method.language.init={language}", *CHAIN, "method.language.text_weight=0.5")
    assert asked == [0, 1, 2] and summary["train/text"] > 0
    expected = summary["train/mse"] + 0.5 * summary["train/text"]
    assert summary["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["validation/loss"] == pytest.approx(summary["validation/mse"])


def test_what_does_not_fit(train, language, pushes, tmp_path):
    init = f"method.language.init={language}"
    with pytest.raises(DataError, match=r"set method\.net\.width=32"):
        train("narrow", init, "method.net.width=16")
    with pytest.raises(DataError, match=r"method\.net\.activation=gelu_tanh"):
        train("relu", init, "method.net.activation=relu")
    with pytest.raises(DataError, match="10 kinds of tokens"):
        train("kinds", init, *CHAIN, "method.language.text.states=11", "method.language.text_weight=1")
    with pytest.raises(DataError, match=r"no text to learn from"):
        train("unset", "method.language.text_weight=1")
    with pytest.raises(DataError, match="no linear layer of the trunk"):
        train("targets", "method.net.trunk.targets=[c_attn]")
    train("policy")
    with pytest.raises(DataError, match="no language model; give a run of method=language"):
        train("again", f"method.language.init={tmp_path / 'policy'}")
    with pytest.raises(DataError, match="already has a trunk"):
        train("both", f"init={tmp_path / 'policy'}", init)
