"""Files of the published Decision-Pretrained Transformer, made here in its layout: logits, sizes, bad files."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model

from pipelines import checkpoint
from pipelines.command import CONFIGS
from pipelines.convert import main
from pipelines.schema import DataError
from tests.models.nets import shaken

H = 6  # transitions of its contexts
WORLDS = {"bandit": (1, 5), "dark room": (2, 5), "many arms": (1, 10)}


class Published(nn.Module):
    """What the paper's code trains, by the names of its state dict."""

    def __init__(self, state_dim, n_actions, width=32, layers=4):
        super().__init__()
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(n_positions=4 * (1 + H), n_embd=width, n_layer=layers, n_head=1, use_cache=False, **none)
        self.transformer = GPT2Model(config)  # with all of GPT-2's words
        self.embed_transition = nn.Linear(2 * state_dim + n_actions + 1, width)
        self.pred_actions = nn.Linear(width, n_actions)

    def forward(self, context, query):
        tokens = torch.cat([context["observation"], F.one_hot(context["action"], self.pred_actions.out_features),
                            context["next_observation"], context["reward"][..., None]], -1)  # fmt: skip
        first = F.pad(query, (0, tokens.shape[-1] - query.shape[-1]))
        x = self.embed_transition(torch.cat([first, tokens], 1))
        return self.pred_actions(self.transformer(inputs_embeds=x).last_hidden_state)


def published(state_dim, n_actions):
    torch.manual_seed(0)
    return shaken(Published(state_dim, n_actions)).eval()


def written(net, path, old=False):
    """old: with the buffers that early versions of transformers keep."""
    state = net.state_dict()
    if old:
        for i in range(4):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 28, 28, dtype=torch.bool).tril()
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, path)
    return path


def convert(*overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return main.function(compose("convert", list(overrides)))


def context_of(state_dim, n_actions, n=H, b=3):
    generator = torch.Generator().manual_seed(1)
    normal = lambda *size: torch.randn(b, *size, generator=generator)  # noqa: E731
    context = {"observation": normal(n, state_dim), "next_observation": normal(n, state_dim), "reward": normal(n)}
    return {**context, "action": torch.randint(n_actions, (b, n), generator=generator)}, normal(1, state_dim)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_logits_are_equal(world, old, tmp_path):
    state_dim, n_actions = world
    theirs = published(*world)
    path = written(theirs, tmp_path / "x.pt", old)
    sizes = f"state_dim={state_dim}", f"n_actions={n_actions}"
    assert convert(f"dpt={path}", *sizes, f"out={tmp_path / 'hub'}") == {"out": str(tmp_path / "hub")}
    bundle = checkpoint.load(tmp_path / "hub")
    assert (bundle.net.context, bundle.net.heads, bundle.net.query) == (4 * (1 + H) - 1, 1, "first")
    assert bundle.config["spaces"]["n_actions"] == n_actions and "wte" not in str(bundle.net.state_dict().keys())
    context, query = context_of(*world)
    with torch.no_grad():
        expected = theirs(context, query)
        latent, _ = bundle.net.latent({**context, "query": query, "place": torch.arange(H + 1)})
        torch.testing.assert_close(bundle.net.head(latent), expected, rtol=0, atol=1e-5)
        memory = bundle.net.begin(query[:, 0])[1]  # and as it acts
        latent, _ = bundle.net.read(memory, context)
    torch.testing.assert_close(bundle.net.head(latent), expected[:, 1:], rtol=0, atol=1e-5)


def test_positions_that_were_not_trained_can_be_left_out(tmp_path):
    path = written(published(1, 5), tmp_path / "x.pt")
    convert(f"dpt={path}", "state_dim=1", "n_actions=5", f"context={H}", f"out={tmp_path / 'hub'}")
    net = checkpoint.load(tmp_path / "hub").net
    assert net.positions.weight.shape == (H + 1, 32)
    context, query = context_of(1, 5, n=H + 1)
    with pytest.raises(ValueError, match=f"built for {H}"):
        net({**context, "query": query, "place": torch.tensor([H + 1])})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["state_dim=1", "n_actions=4"], "the file has 5 outputs and tokens of 10"),
        (["state_dim=1", "n_actions=5"], "tokens of 8 numbers; the file has 5 outputs and tokens of 10"),
        (["state_dim=2"], "n_actions is not set"),
        (["state_dim=2", "n_actions=5", "context=28"], "contexts of 1 to 27"),
        (["state_dim=2", "n_actions=5", "context=0"], "contexts of 1 to 27"),
        (["state_dim=2", "n_actions=5", "low=0"], "low go with dt="),
    ],
)
def test_wrong_options(overrides, message, tmp_path):
    path = written(published(2, 5), tmp_path / "x.pt")
    with pytest.raises(DataError, match=message):
        convert(f"dpt={path}", *overrides, f"out={tmp_path / 'hub'}")
    assert not (tmp_path / "hub").exists()


def damaged(name, value):
    """The state dict with one entry exchanged, added, or (None) left out."""
    state = published(2, 5).state_dict()
    state |= {} if value is None else {name: value}
    return {key: tensor for key, tensor in state.items() if key != name or value is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transformer.wpe.weight", None, "no tensor transformer.wpe.weight"),
        ("pred_actions.bias", None, "no tensor pred_actions.bias"),
        ("transformer.h.2.mlp.c_fc.bias", None, "no tensor transformer.h.2.mlp.c_fc.bias"),
        ("more.weight", torch.zeros(1), "more.weight"),
        ("image_encoder.0.weight", torch.zeros(1), "only networks on vectors"),
        ("embed_transition.weight", torch.zeros(()), "holds no Decision-Pretrained Transformer"),
        ("transformer.wpe.weight", torch.zeros(()), "holds no Decision-Pretrained Transformer"),
        ("transformer.h.0.attn.c_attn.weight", torch.zeros(()), "holds no Decision-Pretrained Transformer"),
        ("transformer.h.0.mlp.c_fc.weight", torch.zeros(32, 64), r"\[64, 32\]"),
        ("transformer.ln_f.weight", torch.zeros(16), r"\[16\]"),
    ],
)
def test_damaged_files(name, value, message, tmp_path):
    torch.save(damaged(name, value), tmp_path / "x.pt")
    with pytest.raises(DataError, match=message):
        convert(f"dpt={tmp_path / 'x.pt'}", "state_dim=2", "n_actions=5", f"out={tmp_path / 'hub'}")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save(published(1, 5), tmp_path / "x.pt")  # the whole module
    with pytest.raises(DataError, match="refused or is damaged"):
        convert(f"dpt={tmp_path / 'x.pt'}", "state_dim=1", "n_actions=5", f"out={tmp_path / 'hub'}")
