import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from models.decision_transformer import DecisionTransformer
from pipelines import checkpoint
from pipelines.dt_release import HOPPER, export_weights, import_weights, net_config
from pipelines.gpt2_release import blocks
from pipelines.schema import DataError
from tests.models.nets import shaken

S, A, K, B = 11, 3, 20, 4


@pytest.fixture(scope="module", params=["relu", "gelu_new"])
def theirs(request):
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=S, act_dim=A, hidden_size=64, n_head=2, max_ep_len=100, activation_function=request.param,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net = DecisionTransformerModel(config).eval()
    shaken(net)
    return net


def window(t=K, b=B):
    generator = torch.Generator().manual_seed(1)
    return {
        "observation": torch.randn(b, t, S, generator=generator),
        "condition": torch.randn(b, t, 1, generator=generator),
        "action": torch.rand(b, t, A, generator=generator) * 2 - 1, "timestep": torch.arange(t).expand(b, t) + 7,
    }  # fmt: skip


def theirs_says(net, window, real=K, side="left"):
    """Their actions for windows of which the last (or first) `real` steps are real and the others padding."""
    part = {name: value[:, :real] for name, value in window.items()}
    pad = (0, 0, K - real, 0) if side == "left" else (0, 0, 0, K - real)
    padded = {n: torch.nn.functional.pad(v, pad if v.ndim == 3 else pad[2:]) for n, v in part.items()}
    mask = torch.nn.functional.pad(torch.ones(B, real, dtype=torch.long), pad[2:])
    with torch.no_grad():
        out = net(states=padded["observation"], actions=padded["action"], returns_to_go=padded["condition"],
                  timesteps=padded["timestep"], rewards=None, attention_mask=mask)  # fmt: skip
    return out.action_preds[:, K - real :] if side == "left" else out.action_preds[:, :real]


def imported(theirs):
    net = checkpoint.build(net_config(theirs.config.to_dict()))
    net.load_state_dict(import_weights(theirs.state_dict()))
    return net.eval()


def test_actions_are_equal_with_and_without_padding(theirs):
    net = imported(theirs)
    with torch.no_grad():
        ours = net(window())[0].mean
        short = net({name: value[:, :7] for name, value in window().items()})[0].mean
    torch.testing.assert_close(ours, theirs_says(theirs, window()), rtol=0, atol=1e-5)
    for side in ("left", "right"):
        torch.testing.assert_close(short, theirs_says(theirs, window(), 7, side), rtol=0, atol=1e-5)


def test_export_computes_the_same_and_comes_back_bit_for_bit(theirs):
    net = imported(theirs)
    exported = export_weights(net)
    assert exported.keys() == theirs.state_dict().keys()
    theirs_again = DecisionTransformerModel(theirs.config).eval()
    theirs_again.load_state_dict(exported)
    with torch.no_grad():
        torch.testing.assert_close(theirs_says(theirs_again, window()), net(window())[0].mean, rtol=0, atol=1e-5)
    again = import_weights(exported)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.items())


def test_size_of_the_published_checkpoints():
    config = {"state_dim": S, "act_dim": A, "max_ep_len": 1000}
    net = checkpoint.build(net_config(config))
    dead = 129 + S * 128 + S + 1024 * 128 + 128  # return and state heads, wpe and wte of theirs
    assert sum(p.numel() for p in net.parameters()) == 858_767 - dead + A  # ours has a spread


def test_mask_buffers_of_old_files_are_passed_over(theirs):
    state = theirs.state_dict()
    for i in range(blocks(state, "encoder.")):
        state[f"encoder.h.{i}.attn.bias"] = torch.ones(1, 1, 1024, 1024, dtype=torch.uint8)
        state[f"encoder.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert import_weights(state).keys() == import_weights(theirs.state_dict()).keys()


def test_statistics_have_the_size_of_the_state():
    assert {len(values) for pair in HOPPER.values() for values in pair} == {S}


def test_bad_files(theirs):
    state = theirs.state_dict()
    with pytest.raises(DataError, match=r"no tensor embed_ln\.weight"):
        import_weights({name: value for name, value in state.items() if name != "embed_ln.weight"})
    with pytest.raises(DataError, match="extra"):
        import_weights({**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"encoder\.h"):
        import_weights({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(DataError, match="swish"):
        net_config({"activation_function": "swish"})
    with pytest.raises(ValueError, match="layout"):
        DecisionTransformer(S, A, layout="hf")
