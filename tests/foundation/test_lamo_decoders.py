"""LaMo in decoders of transformers: tiny random ones, saved as their authors would and taken as the trunk."""

import logging
import shutil

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from foundation import hub
from foundation.actors import SequenceActor
from foundation.evaluate import play
from models.causal_lm import CausalLM
from pipelines.schema import DataError
from tests.foundation.test_lamo import CHAIN, run
from tests.foundation.vector_world import Push, write_pushes

SIZE = {"vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE, num_key_value_heads=2, max_position_embeddings=40)),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SIZE, max_position_embeddings=40)),
}
LAYERS = {"llama": {"q_proj", "k_proj", "v_proj"}, "neox": {"query_key_value"}}
FAST = ["method.optimizer.lr=0.1", "method.optimizer.warmup_steps=0", "method.net.trunk.biases=false", "steps=2"]
TINY = ["method.net.context=4", "data.batch_size=8", "data.validation=0.25", "validate_every=2"]


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    return write_pushes(tmp_path_factory.mktemp("pushes"), 20)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """{name: folder of a language model}"""
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    torch.manual_seed(0)
    for name, (kind, config) in KINDS.items():
        kind(config).save_pretrained(folders[name])
    return folders


@pytest.fixture
def train(pushes, decoders, tmp_path):
    """Function: name of a decoder, folder, overrides -> summary"""

    def start(name, folder, *overrides):
        init = f"method.language.init={decoders[name]}"
        return run("lamo", tmp_path / folder, *TINY, *FAST, f"data.train={pushes}", init, *overrides)

    return start


def words_apart(folder):
    """{name in a trunk: tensor} of a language model, without those of its words."""
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(folder).get_decoder().state_dict()
    return {f"model.{name}": value for name, value in state.items() if not name.startswith("embed_")}


@pytest.mark.parametrize("name", KINDS)
def test_two_steps_with_adapters(train, decoders, tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    summary = train(name, "lora")
    bundle = hub.load(tmp_path / "lora")
    trunk, source = bundle.net.trunk, words_apart(decoders[name])
    base = trunk.base_state()
    assert isinstance(trunk.trunk, CausalLM) and bundle.net.width == 32
    assert base.keys() == source.keys() and all(torch.equal(value, base[key]) for key, value in source.items())
    moved = {key.split(".lora_B")[0].rpartition(".")[2] for key, value in trunk.state_dict().items()
             if "lora_B" in key and value.abs().max() > 0}  # fmt: skip
    assert moved == LAYERS[name]
    assert summary["parameters/trunk_trainable"] == 0 < summary["parameters/adapters"]
    assert f"started from the language model `{decoders[name]}`" in (tmp_path / "lora/model/README.md").read_text()
    assert {f"heads/{i}_{j}" for i in (0, 1) for j in range(4)} <= summary.keys() and "Markov heads" in caplog.text
    played = play(SequenceActor(bundle, 5.0), [Push(), Push()], [0, 1, 2])
    again = play(SequenceActor(hub.load(tmp_path / "lora"), 5.0), [Push()], [0, 1, 2])
    assert sorted(e.returns for e in played) == pytest.approx(sorted(e.returns for e in again), abs=1e-4)


def test_frozen_and_full_with_linear_embeddings(train, decoders, tmp_path):
    source = words_apart(decoders["llama"])
    for kind in ("frozen", "full"):
        summary = train("llama", kind, f"method.language.train={kind}", "method.net.embed=linear")
        state = hub.load(tmp_path / kind).net.trunk.base_state()
        same = [torch.equal(value, state[key]) for key, value in source.items()]
        assert all(same) if kind == "frozen" else not any(same)
        assert summary["parameters/trunk_trainable"] == (0 if kind == "frozen" else summary["parameters/trunk"])


def test_a_run_goes_on_from_its_policy(train, pushes, tmp_path):
    train("llama", "first")
    before = hub.load(tmp_path / "first").net.state_dict()
    init = [f"init={tmp_path / 'first'}", "method.language.init=random", "method.optimizer.lr=0"]
    train("llama", "second", *init)
    after = hub.load(tmp_path / "second").net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_text_beside_actions_is_read_with_the_decoder(train, tmp_path):
    summary = train("llama", "text", *CHAIN, "method.language.text_weight=0.5")
    assert summary["train/loss"] == pytest.approx(summary["train/mse"] + 0.5 * summary["train/text"], rel=1e-5)
    assert 1.5 < summary["train/text"] < 4  # of 12 words: ln 12 = 2.5
    saved = hub.load(tmp_path / "text").net.state_dict()
    assert not [name for name in saved if "lm_head" in name or "embed_tokens" in name]
    with pytest.raises(DataError, match="has 12 kinds of tokens"):
        train("llama", "kinds", *CHAIN, "method.language.text.states=13", "method.language.text_weight=1")


@pytest.mark.parametrize("kind", ["lora", "frozen"])
def test_what_the_language_model_has_need_not_be_saved(train, decoders, tmp_path, kind):
    ours = tmp_path / "language"
    shutil.copytree(decoders["llama"], ours)
    place = [f"method.language.init={ours}", f"method.language.train={kind}"]
    train("llama", "whole", *place)
    train("llama", "part", *place, "method.language.save=adapters")
    whole, part = hub.load(tmp_path / "whole"), hub.load(tmp_path / "part")
    before, after = whole.net.state_dict(), part.net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    base = 4 * sum(value.numel() for value in words_apart(ours).values())
    sizes = [(tmp_path / name / "model/model.safetensors").stat().st_size for name in ("whole", "part")]
    assert sizes[0] - sizes[1] > 0.99 * base
    assert play(SequenceActor(part, 5.0), [Push()], [0])
    with pytest.raises(DataError, match="which is only here; train it with save=whole"):
        hub.push(tmp_path / "part", "ann/policy")
    weights = ours / "model.safetensors"
    weights.write_bytes((other_weights(tmp_path / "other")).read_bytes())
    with pytest.raises(DataError, match="no longer the language model"):
        hub.load(tmp_path / "part")
    weights.unlink()
    with pytest.raises(DataError, match=r"holds what was trained on the language model .* only"):
        hub.load(tmp_path / "part")


def other_weights(folder):
    kind, config = KINDS["llama"]
    kind(config).save_pretrained(folder)
    return folder / "model.safetensors"


def test_a_gpt_of_our_own_is_left_out_too(pushes, tmp_path):
    size = ["method.net.width=16", "method.net.layers=1", "method.net.heads=2"]
    chain = ["data=markov", "data.states=5", "data.validation=1", "method.net.context=4", "steps=1"]
    run("language", tmp_path / "language", *size, *chain)
    init = [f"method.language.init={tmp_path / 'language'}", "method.language.save=adapters"]
    run("lamo", tmp_path / "policy", *TINY, *FAST, *size, f"data.train={pushes}", *init)
    base = hub.load(tmp_path / "policy").net.trunk.base_state()
    source = hub.load(tmp_path / "language").net.trunk.state_dict()
    assert all(torch.equal(value, base[name]) for name, value in source.items())
    for odd, message in (("language.save=some", "whole or adapters"), ("language.train=full", "train=lora or frozen"),
                         ("language.init=random", "set that, and")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            run("lamo", tmp_path / "odd", *TINY, *FAST, *size, f"data.train={pushes}", *init, f"method.{odd}")


def test_what_does_not_fit(train, tmp_path):
    with pytest.raises(DataError, match=r"called \['c_attn'\]; there are \[.*'q_proj'"):
        train("llama", "targets", "method.net.trunk.targets=[q_proj,c_attn]")
    with pytest.raises(DataError, match="reads 40 tokens at once, 14 steps are 42"):
        train("neox", "long", "method.net.context=14")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no language model that can be read"):
        train("llama", "none", f"method.language.init={tmp_path / 'empty'}")
