"""What a language model is read from: our runs, and folders of transformers, whose code is never run."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from models.causal_lm import CausalLM, Reader
from pipelines import checkpoint
from pipelines.language_release import architecture, load
from pipelines.schema import DataError
from tests.models.nets import shaken

SIZE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZE, intermediate_size=48, num_key_value_heads=2, rope_parameters={"rope_theta": 5_000_000})
MODELS = {
    "llama": (LlamaForCausalLM, LLAMA),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**SIZE, intermediate_size=48)),
    "opt": (OPTForCausalLM, OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=20)),
}
TOKENS = torch.arange(24).view(2, 12)


def save(name, folder):
    torch.manual_seed(0)
    kind, config = MODELS[name]
    net = kind(config).eval()
    shaken(net)
    net.save_pretrained(folder)
    return net


def test_our_own_runs_load(tmp_path):
    config = {"_target_": "models.language.LanguageModel", "vocabulary": 5, "context": 8, "width": 16, "layers": 1,
              "heads": 2, "activation": "relu", "dropout": 0.0}  # fmt: skip
    net = checkpoint.build(config)
    checkpoint.save(tmp_path / "model", config, net, {}, "card")
    found = load(tmp_path)
    assert found.settings["width"] == 16 and torch.equal(found.weights["tokens.weight"], net.tokens.weight)
    assert architecture(tmp_path) is None and found.model is None


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_decoder_comes_with_its_weights_and_reads_as_before(tmp_path, name):
    net = save(name, tmp_path)
    trunk = CausalLM(checkpoint.plain(architecture(tmp_path), "architecture")).eval()
    found = load(tmp_path)
    weights = {key.removeprefix("trunk."): value for key, value in found.weights.items()}
    trunk.load_state_dict(weights)  # all of them, no more
    words = net.get_input_embeddings()
    expected = net.get_decoder()(inputs_embeds=words(TOKENS)).last_hidden_state
    torch.testing.assert_close(trunk(words(TOKENS))[0], expected, rtol=0, atol=1e-6)
    assert found.settings["vocabulary"] == 50 and found.settings["width"] == trunk.width
    logits = net(TOKENS).logits
    torch.testing.assert_close(Reader(found.model, trunk)(TOKENS), logits, rtol=0, atol=1e-5)
    for parameter in trunk.parameters():
        parameter.mul_(1.5)  # it is the trunk that reads
    assert not torch.allclose(Reader(load(tmp_path).model, trunk)(TOKENS), logits, atol=1e-3)


def test_a_large_base_of_rotary_positions_is_stored(tmp_path):
    save("llama", tmp_path / "llama")
    found = architecture(tmp_path / "llama")
    config = {"_target_": "models.causal_lm.CausalLM", "architecture": found}
    net = checkpoint.build(config)
    checkpoint.save(tmp_path / "model", config, net, {}, "card")
    assert checkpoint.load(tmp_path / "model").net.model.config.rope_parameters["rope_theta"] == 5e6


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "gpt2"}')
    save("llama", tmp_path / "pickle")
    weights = tmp_path / "pickle" / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    save("llama", tmp_path / "code")
    path = tmp_path / "code" / "config.json"
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    (tmp_path / "code" / "code.py").write_text("raise SystemExit('run')")
    for name in ("empty", "pickle", "code", "nowhere"):
        with pytest.raises(DataError, match=r"no language model that can be read|not a hub folder|no folder"):
            load(tmp_path / name)
    with pytest.raises(DataError, match="no language model that can be read"):
        architecture(tmp_path / "code")


def test_what_would_run_other_code_is_refused(tmp_path):
    save("llama", tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    for odd in ({"attn_implementation": "someone/kernel"}, {"quantization_config": {"quant_method": "gptq"}},
                {"text_config": {"attn_implementation": "someone/kernel"}}):  # fmt: skip
        path.write_text(json.dumps(written | odd))
        for read in (load, architecture):
            with pytest.raises(DataError, match="the library's own attention"):
                read(tmp_path)


def test_an_encoder_is_no_trunk(tmp_path):
    BertLMHeadModel(BertConfig(**SIZE, intermediate_size=48)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="looks at tokens to come"):
        load(tmp_path)
