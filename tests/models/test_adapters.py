import pytest
import torch

from models.adapters import Adapted, parameters_by_part
from models.decision_transformer import DecisionTransformer
from models.language import GPT
from pipelines import checkpoint
from pipelines.schema import DataError
from tests.models.nets import shaken


def trunk(width=16, layers=2, heads=2):
    torch.manual_seed(0)
    return GPT(width, layers, heads, dropout=0.0)


def learning(net):
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def test_fresh_adapters_change_nothing():
    plain, adapted = trunk(), Adapted(trunk(), "lora", rank=4, alpha=8)
    x = torch.randn(2, 5, 16)
    adapted.eval()
    assert torch.equal(adapted(x)[0], plain(x)[0])
    part, _ = adapted(x, torch.tensor([1, 4]))
    torch.testing.assert_close(part, plain(x)[0][:, [1, 4]])


def test_parameters_of_the_paper():
    """GPT-2 small with LaMo's layout: 912,384 numbers learn, biases of queries, keys and values included."""
    with torch.device("meta"):
        net = Adapted(GPT(768, 12, 12), "lora", rank=16, alpha=32)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 912_384
    assert sum(p.numel() for n, p in net.named_parameters() if "lora_" in n) == 912_384 - 12 * 3 * 768


def test_what_learns():
    assert learning(Adapted(trunk(), "frozen")) == set()
    assert learning(Adapted(trunk())) == {f"trunk.{name}" for name, _ in trunk().named_parameters()}
    names = learning(Adapted(trunk(), "lora", targets=["down"], biases=False))
    assert names == {f"trunk.blocks.{i}.down.lora_{m}.default.weight" for i in (0, 1) for m in "AB"}


def test_training_moves_the_adapters_only():
    net = Adapted(trunk(), "lora", rank=4, dropout=0.0, biases=False)
    before = {name: value.clone() for name, value in net.base_state().items()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 5, 16))[0].square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.base_state().items())
    assert before.keys() == trunk().state_dict().keys()
    assert net.adapter_state()["blocks.0.attention.query.lora_B.default.weight"].abs().max() > 0


def test_weights_are_taken_before_the_adapters():
    torch.manual_seed(1)
    source, net = GPT(16, 2, 2, dropout=0.0), Adapted(trunk(), "lora").eval()
    net.load_base(source.state_dict())
    x = torch.randn(1, 3, 16)
    assert torch.equal(net(x)[0], source(x)[0])
    with pytest.raises(ValueError, match="no counterpart"):
        net.load_base(GPT(16, 1, 2).state_dict())
    with pytest.raises(ValueError, match="no counterpart"):
        net.load_base(GPT(32, 2, 2).state_dict())


def config(**options):
    gpt = {"_target_": "models.language.GPT", "width": 16, "layers": 2, "heads": 2}
    lora = {"_target_": "models.adapters.Adapted", "train": "lora", "trunk": gpt, **options}
    net = {"_target_": "models.decision_transformer.DecisionTransformer", "state_dim": 3, "action_dim": 2}
    return {**net, "trunk": lora}


def test_a_hub_folder_brings_adapters_back(tmp_path):
    net = checkpoint.build(config())
    shaken(net)
    checkpoint.save(tmp_path, config(), net, {}, "card")
    again = checkpoint.load(tmp_path).net.state_dict()
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())


def test_nonsense_is_refused():
    assert learning(Adapted(trunk(), "lora", targets="down")) == learning(Adapted(trunk(), "lora", targets=["down"]))
    for options, message in (({"targets": ["c_attn"]}, "no linear layer of the trunk is called"),
                             ({"targets": []}, "no linear layer"), ({"train": "half"}, "expected one of")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Adapted(trunk(), **{"train": "lora", **options})
    with pytest.raises(DataError, match="c_attn"):
        checkpoint.build(config(targets=["c_attn"]))


def test_parameters_by_part():
    net = DecisionTransformer(3, 2, max_timestep=10, trunk=Adapted(trunk(), "lora", rank=4, biases=False))
    parts = parameters_by_part(net)
    assert parts["trunk"] == (0, sum(p.numel() for p in trunk().parameters()))
    assert parts["adapters"] == (2 * 3 * 2 * 4 * 16,) * 2
    assert parts["embeddings"] == (16 * (3 + 2 + 1) + 3 * 16 + 10 * 16 + 2 * 16,) * 2
    assert parts["heads"] == (16 * 2 + 2 + 2,) * 2  # the last two: log_std
