import pytest
import torch

from models.adapters import Adapted
from models.causal_lm import CausalLM
from models.decision_transformer import DecisionTransformer
from pipelines import checkpoint
from pipelines.schema import DataError
from tests.models.nets import shaken
from tests.models.test_decision_transformer import A, K, S, make_window, said

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {
    "llama": {**SIZE, "num_key_value_heads": 2}, "gpt_neox": SIZE,
    "qwen3": {**SIZE, "num_key_value_heads": 2, "head_dim": 8},
    "opt": {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 1}, "falcon": SIZE,
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", SMALL)


def trunk(kind):
    torch.manual_seed(0)
    net = CausalLM({"model_type": kind, **SMALL[kind]})
    shaken(net)
    return net.eval()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@KINDS
@torch.no_grad()
def test_what_comes_later_changes_nothing_before(kind):
    net, x = trunk(kind), torch.randn(2, 7, 16 if kind == "opt" else 32)
    assert net.width == x.shape[-1]
    other = torch.cat([x[:, :4], torch.randn_like(x[:, 4:])], 1)
    before, after = net(x)[0], net(other)[0]
    close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3
    close(net(x, torch.tensor([1, 6]))[0], before[:, [1, 6]])


@KINDS
@torch.no_grad()
def test_the_memory_is_what_was_before_and_stays_as_it_was(kind):
    net = trunk(kind)
    x = torch.randn(2, 7, net.width)
    whole, _ = net(x)
    part, memory = net(x[:, :4])
    close(part, whole[:, :4])
    one, more = net(x[:, 4:5], memory=memory)
    again, _ = net(x[:, 4:5], memory=memory)
    rest, _ = net(x[:, 5:], memory=more)
    close(torch.cat([one, rest], 1), whole[:, 4:])
    assert torch.equal(one, again)


@KINDS
@torch.no_grad()
def test_what_is_not_visible_might_as_well_not_be_there(kind):
    net, lengths = trunk(kind), torch.tensor([4, 2, 5])
    x, new = torch.randn(3, 5, net.width), torch.randn(3, 1, net.width)
    visible = torch.cat([torch.arange(5) < lengths[:, None], torch.ones(3, 1, dtype=torch.bool)], 1)
    found, _ = net(new, memory=net(x)[1], visible=visible)
    for row, length in enumerate(lengths):
        alone = torch.cat([x[row, :length], new[row]])[None]
        close(found[row], net(alone)[0][0, -1:])


def test_no_memory_is_kept_where_gradients_are():
    net, x = trunk("llama"), torch.randn(1, 3, 32, requires_grad=True)
    y, memory = net(x)
    y.sum().backward()
    assert memory is None and x.grad.abs().min() > 0


@KINDS
def test_a_policy_on_it_acts_as_it_sees_windows(kind):
    policy = DecisionTransformer(S, A, context=K, max_timestep=50, trunk=trunk(kind)).eval()
    window = make_window(policy)
    with torch.no_grad():
        whole, state = said(policy(window)[0]), policy.initial_state(len(window["timestep"]))
        for t in range(K):
            now = {name: window[name][:, t] for name in ("observation", "condition", "timestep")}
            now["action"] = window["action"][:, max(t - 1, 0)]
            first = torch.full((len(whole),), t == 0)
            distribution, _, state = policy.step(now, first, state)
            close(said(distribution), whole[:, t])


@KINDS
@torch.no_grad()
def test_bins_are_decoded_through_the_memory(kind):
    policy = DecisionTransformer(
        S, A, layout="tokenised", n_actions=9, context=K, max_timestep=50, trunk=trunk(kind)
    ).eval()  # fmt: skip
    window, length = make_window(policy), torch.tensor([6, 2, 4, 1, 5])
    chosen = policy.decoder(window, length).mode()
    for row, n in enumerate(length):
        alone = {name: value[row : row + 1, :n].clone() for name, value in window.items()}
        alone["action"][0, -1] = chosen[row]
        assert torch.equal(said(policy(alone)[0])[0, -1].argmax(-1), chosen[row])


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("llama", {f"{x}_proj" for x in "qkv"}), ("gpt_neox", {"query_key_value"}), ("opt", {f"{x}_proj" for x in "qkv"})],
)
def test_adapters_find_queries_keys_and_values(kind, layers):
    net = Adapted(trunk(kind), "lora", rank=2, biases=False)
    learn = {name.split(".lora_")[0].rpartition(".")[2] for name, p in net.named_parameters() if p.requires_grad}
    assert learn == layers
    x = torch.randn(1, 4, net.width)
    close(net.eval()(x)[0], trunk(kind)(x)[0])
    with pytest.raises(ValueError, match=r"called \['query'\]; there are \[.*\]"):
        Adapted(trunk(kind), "lora", targets=["query"])


def config(**changes):
    trunk = {"_target_": "models.causal_lm.CausalLM", "architecture": {"model_type": "llama", **SIZE, **changes}}
    lora = {"_target_": "models.adapters.Adapted", "train": "lora", "rank": 2, "trunk": trunk}
    net = {"_target_": "models.decision_transformer.DecisionTransformer", "state_dim": S, "action_dim": A}
    return {**net, "max_timestep": 50, "trunk": lora}


def test_a_hub_folder_brings_it_back(tmp_path):
    net = checkpoint.build(config())
    assert not [name for name in net.state_dict() if "embed_tokens" in name or "lm_head" in name]
    checkpoint.save(tmp_path, config(), net, {}, "card")
    again = checkpoint.load(tmp_path).net
    window = make_window(again)
    assert torch.equal(said(again(window)[0]), said(net.eval()(window)[0]))


def test_what_is_no_trunk_is_refused():
    for kind, message in (("t5", "no causal language"), (None, "no causal"), ("mamba", "takes no past_key_values")):
        with pytest.raises(DataError, match=message):
            checkpoint.build(config(model_type=kind))
    with pytest.raises(DataError, match="cannot be built"):
        checkpoint.build(config(hidden_size="wide"))


def test_a_config_cannot_name_code_to_run():
    """What a hub folder says of attention kernels, quantisation and remote classes is left out."""
    odd = {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel"}
    odd |= {"auto_map": {"AutoModelForCausalLM": "someone--code.Model"}, "quantization_config": {"quant_method": "hqq"}}
    net = CausalLM({"model_type": "llama", **SIZE, **odd, "rope_parameters": {"rope_type": "default", **odd}})
    assert net.model.config._attn_implementation in ("sdpa", "eager")
    assert type(net.model).__module__ == "transformers.models.llama.modeling_llama"
