import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from models.language import LanguageModel
from pipelines import gpt2_release, language_release
from pipelines.schema import DataError
from tests.models.nets import shaken

SIZES = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
TOKENS = torch.arange(24).view(2, 12)


def theirs(kind=GPT2LMHeadModel, **more):
    torch.manual_seed(0)
    net = kind(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0, **more)).eval()
    shaken(net)
    return net


def ours(folder):
    found = language_release.load(folder)
    net = LanguageModel(**found.settings)
    net.load_state_dict(found.weights)
    return net.eval()


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_logits_are_equal(tmp_path, activation):
    net = theirs(activation_function=activation)
    net.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(tmp_path)(TOKENS), net(TOKENS).logits, rtol=0, atol=1e-5)


def test_names_without_prefix_and_old_mask_buffers():
    """The layout of the first published files: no `transformer.`, causal masks beside the weights."""
    state = theirs(GPT2Model).state_dict()
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    net = LanguageModel(50, 16, 32, 2, 4)
    net.load_state_dict(gpt2_release.import_weights(state))
    whole = gpt2_release.import_weights(theirs(GPT2LMHeadModel).state_dict())
    assert whole.keys() == net.state_dict().keys()


def test_what_is_no_gpt2_is_refused():
    with pytest.raises(DataError, match="unlike GPT-2"):
        gpt2_release.settings({**GPT2Config(**SIZES, n_inner=7).to_dict()})
    with pytest.raises(DataError, match="no tensor"):
        gpt2_release.import_weights({"h.0.ln_1.weight": torch.ones(2)})
    with pytest.raises(DataError, match="no GPT-2 has"):
        gpt2_release.import_weights({**theirs().state_dict(), "extra": torch.ones(1)})
