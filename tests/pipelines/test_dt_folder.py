"""Folders of transformers' Decision Transformers through the convert command, there and back."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from pipelines import checkpoint, remote
from pipelines.command import CONFIGS
from pipelines.convert import main
from pipelines.dt_release import HOPPER
from pipelines.schema import DataError
from pipelines.trajectories import Spaces
from tests.models.nets import shaken
from tests.pipelines.test_dt_release import window

S, A, K, LONGEST = 11, 3, 20, 100
STATISTICS = {"state_mean": [0.1 * i for i in range(S)], "state_std": [1.0 + i for i in range(S)], "returns_scale": 500}


def model(**settings):
    torch.manual_seed(0)
    sizes = {"state_dim": S, "act_dim": A, "hidden_size": 32, "n_head": 2, "max_ep_len": LONGEST}
    config = DecisionTransformerConfig(**sizes, bos_token_id=None, eos_token_id=None, **settings)
    net = DecisionTransformerModel(config).eval()
    shaken(net)
    return net


def write(folder, net, pickled=False):
    """A folder as the hub has them; pickled: as it had them early, with the causal masks."""
    net.save_pretrained(folder)
    if pickled:
        state = load_file(folder / "model.safetensors")
        for i in range(3):
            state[f"encoder.h.{i}.attn.bias"] = torch.ones(1, 1, 1024, 1024, dtype=torch.uint8).tril()
            state[f"encoder.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def rewrite(folder, **change):
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def convert(tmp_path, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return main.function(compose("convert", overrides=[f"run.dir={tmp_path}/run", *overrides]))


@torch.no_grad()
def theirs_says(net, w):
    out = net(states=w["observation"], actions=w["action"], returns_to_go=w["condition"], timesteps=w["timestep"],
              attention_mask=torch.ones(w["timestep"].shape, dtype=torch.long))  # fmt: skip
    return out.action_preds


@torch.no_grad()
def ours_says(net, w):
    return net(w)[0].mean


@pytest.mark.parametrize("pickled", [False, True])
def test_there_and_back(tmp_path, pickled):
    theirs = model(**STATISTICS, context_size=K)
    write(tmp_path / "dt", theirs, pickled)
    convert(tmp_path, f"dt={tmp_path}/dt", f"out={tmp_path}/ours")
    bundle = checkpoint.load(tmp_path / "ours")
    torch.testing.assert_close(ours_says(bundle.net, window()), theirs_says(theirs, window()), rtol=0, atol=1e-5)
    assert bundle.statistics == {**STATISTICS, "context_size": K}
    assert Spaces.from_dict(bundle.config["spaces"]) == Spaces(S, A, low=(-1.0,) * A, high=(1.0,) * A)
    assert (bundle.net.context, bundle.net.max_timestep, bundle.config["condition"]) == (K, LONGEST, "return")

    convert(tmp_path, f"policy={tmp_path}/ours", f"out={tmp_path}/back")
    back, report = DecisionTransformerModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(theirs_says(back.eval(), window()), theirs_says(theirs, window()), rtol=0, atol=1e-5)
    assert {name: getattr(back.config, name) for name in STATISTICS} == STATISTICS
    assert (back.config.context_size, back.config.max_ep_len, back.config.n_head) == (K, LONGEST, 2)
    convert(tmp_path, f"dt={tmp_path}/back", f"out={tmp_path}/again")
    again = checkpoint.load(tmp_path / "again")
    assert again.statistics == bundle.statistics
    assert all(torch.equal(value, again.net.state_dict()[name]) for name, value in bundle.net.state_dict().items())


def test_a_run_keeps_bounds_condition_and_returns(tmp_path):
    """What transformers has no place for goes along in config.json and is read again."""
    net = {
        "_target_": "models.decision_transformer.DecisionTransformer", "state_dim": S, "action_dim": A, "width": 32,
        "context": 400, "max_timestep": 2000, "head": "linear", "activation": "gelu_tanh", "dropout": 0.2,
    }  # fmt: skip
    returns = {"returns": {"0": 0.0, "1": 5.0}, "targets": {"Hopper-v5": 6.0}}
    extras = {
        "spaces": Spaces(S, A, low=(-2.0, -1.0, 0.0), high=(2.0, 1.0, 1.0)).to_dict(), "condition": "delayed",
        "statistics": {**STATISTICS, **returns, "context_size": 400},
    }  # fmt: skip
    ours = checkpoint.build(net)
    checkpoint.save(tmp_path / "run" / "model", net, ours, extras, "card")
    convert(tmp_path, f"policy={tmp_path}/run", f"out={tmp_path}/theirs")
    theirs = DecisionTransformerModel.from_pretrained(tmp_path / "theirs").eval()
    assert theirs.config.action_low == [-2.0, -1.0, 0.0] and theirs.config.resid_pdrop == 0.2
    assert theirs.config.n_positions == 1200 and not theirs.config.action_tanh
    torch.testing.assert_close(theirs_says(theirs, window()), ours_says(ours.eval(), window()), rtol=0, atol=1e-5)
    assert "`returns_scale` = 500" in (tmp_path / "theirs" / "README.md").read_text()
    convert(tmp_path, f"dt={tmp_path}/theirs", f"out={tmp_path}/again")
    again = checkpoint.load(tmp_path / "again")
    assert again.statistics == extras["statistics"]
    assert again.config["condition"] == "delayed" and again.config["spaces"] == checkpoint.plain(extras["spaces"], "")


def test_statistics_from_the_cards_of_early_checkpoints_and_from_options(tmp_path):
    folder = write(tmp_path / "decision-transformer-gym-hopper-medium-replay", model(), pickled=True)
    convert(tmp_path, f"dt={folder}", f"out={tmp_path}/table")
    found = checkpoint.load(tmp_path / "table").statistics
    mean, std = HOPPER["medium-replay"]
    assert found == {"state_mean": list(mean), "state_std": list(std), "returns_scale": 1000.0, "context_size": 20}
    given = ["state_mean=0.5", f"state_std=[{','.join(['2'] * S)}]", "returns_scale=10", "context=5", "low=-0.4"]
    convert(tmp_path, f"dt={folder}", f"out={tmp_path}/given", *given, "high=[0.4,0.5,0.6]")
    bundle = checkpoint.load(tmp_path / "given")
    assert bundle.statistics == {
        "state_mean": [0.5] * S, "state_std": [2.0] * S, "returns_scale": 10.0, "context_size": 5,
    }  # fmt: skip
    assert bundle.net.context == 5 and bundle.config["spaces"]["high"] == [0.4, 0.5, 0.6]
    assert bundle.config["spaces"]["low"] == [-0.4] * A


def test_from_the_hub(tmp_path, monkeypatch):
    snapshot = write(tmp_path / "0123abcd", model(**STATISTICS))
    asked = []
    monkeypatch.setattr(remote, "snapshot", lambda *question: (asked.append(question), snapshot)[1])
    convert(tmp_path, "dt=someone/walker@v1", f"out={tmp_path}/ours")
    assert asked == [("someone/walker", "v1", ("config.json", "model.safetensors", "pytorch_model.bin"))]
    assert "# someone/walker" in (tmp_path / "ours" / "README.md").read_text()


def test_missing_statistics_are_named(tmp_path):
    folder = write(tmp_path / "walker", model(state_mean=STATISTICS["state_mean"]))
    with pytest.raises(DataError, match=r"have state_std, returns_scale; give state_std=\.\.\. returns_scale="):
        convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")
    with pytest.raises(DataError, match="does not have returns_scale;"):
        convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours", "state_std=1")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "gpt2"}, "model_type='gpt2': expected decision_transformer"),
     ({"state_dim": 17}, r"embed_state\.weight: file has \[32, 11\]"),
     ({"state_mean": [0.0] * 17}, "state_mean: expected 11 finite numbers, or one for all, got 17"),
     ({"act_dim": 4}, r"do not fit their config\.json.*head\.weight: file has \[3, 32\]"),
     ({"max_ep_len": 4096}, r"embed_time\.weight: file has \[100, 32\]"),
     ({"activation_function": "swish"}, "swish"),
     ({"n_inner": 64}, "n_inner"),
     ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
     ({"hidden_size": "wide"}, "DecisionTransformer"),
     ({"n_layer": 500_000}, "far more than the weights"),
     ({"action_tanh": False}, "give low= and high="),
     ({"action_low": 2.0}, "expected low below high"),
     ({"state_std": [0.0] * S}, "std above 0"),
     ({"state_mean": "zero"}, "state_mean: expected 11 finite numbers"),
     ({"returns_scale": -1}, "returns_scale=-1"),
     ({"condition": "skill"}, "condition='skill'"),
     ({"context_size": 0}, "at least 1"),
     ({"returns": [1]}, r"returns in config\.json")],
)  # fmt: skip
def test_config_files_that_do_not_fit(tmp_path, change, message):
    folder = write(tmp_path / "dt", model(**STATISTICS))
    rewrite(folder, **change)
    with pytest.raises(DataError, match=message):
        convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")
    assert not (tmp_path / "ours" / "config.yaml").exists()


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_bad_weights(tmp_path):
    folder = write(tmp_path / "dt", model(**STATISTICS), pickled=True)
    for content, message in ({"evil": Evil()}, "refused"), ({"lm_head.weight": torch.zeros(1)}, r"encoder\.h"):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(DataError, match=message):
            convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"no encoder\.h"):
        convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")


def test_what_cannot_be_exported(tmp_path):
    net = {"_target_": "models.decision_transformer.DecisionTransformer", "state_dim": S, "action_dim": A, "width": 8,
           "layout": "merged", "embed": "mlp", "layers": 1}  # fmt: skip
    per_task = {"state_mean": np.zeros((1, S)), "state_std": np.ones((1, S)), "by": "task", "names": ["a"]}
    checkpoint.save(tmp_path / "merged", net, checkpoint.build(net), {"statistics": per_task}, "card")
    with pytest.raises(DataError, match=r"layout=merged, embed=mlp, data\.normalise per task"):
        convert(tmp_path, f"policy={tmp_path}/merged", f"out={tmp_path}/theirs")
    words = {"_target_": "models.language.LanguageModel", "vocabulary": 5, "context": 8, "width": 16, "layers": 1,
             "heads": 2}  # fmt: skip
    checkpoint.save(tmp_path / "words", words, checkpoint.build(words), {}, "card")
    with pytest.raises(DataError, match="LanguageModel"):
        convert(tmp_path, f"policy={tmp_path}/words", f"out={tmp_path}/theirs")


def test_options_and_folders_that_do_not_go_together(tmp_path):
    folder = write(tmp_path / "dt", model(**STATISTICS))
    for options, message in (
        ([f"dt={folder}"], "out is not set"), ([f"dt={folder}", "policy=x"], "expected one of"),
        (["policy=x", "low=0", "out=y"], "low go with dt="),
        ([f"dt={folder}", f"out={folder}"], "choose another folder"),
        ([f"dt={tmp_path}/none", "out=y"], r"no config\.json"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            convert(tmp_path, *options)
    convert(tmp_path, f"dt={folder}", f"out={tmp_path}/ours")
    with pytest.raises(DataError, match="choose another folder"):
        convert(tmp_path, f"policy={tmp_path}/ours", f"out={tmp_path}/ours")
    with pytest.raises(DataError, match="it is a hub folder already"):
        convert(tmp_path, f"dt={tmp_path}/ours", f"out={tmp_path}/other")
