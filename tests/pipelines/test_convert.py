"""The convert command on small files of the release's format."""

import pickle

import pytest
import torch
from hydra import compose, initialize_config_dir

from models.vpt import VptInverseDynamics
from pipelines import checkpoint
from pipelines.command import CONFIGS
from pipelines.convert import main
from pipelines.schema import DataError


def config(*overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("convert", overrides=list(overrides))


def test_converts_an_idm(tmp_path):
    net = {
        "hidsize": 16, "impala_width": 0.25, "timesteps": 4, "attention_memory_size": 4, "n_recurrence_layers": 1,
        "img_shape": [16, 16, 8], "attention_heads": 2, "conv3d_params": {"outchan": 8},
    }  # fmt: skip
    idm = VptInverseDynamics(**net)
    settings = {"model": {"args": {"net": {"args": net}, "pi_head_opts": {"temperature": "4"}}}}
    (tmp_path / "x.model").write_bytes(pickle.dumps(settings))
    torch.save(idm.state_dict(), tmp_path / "x.weights")
    paths = f"model={tmp_path}/x.model", f"weights={tmp_path}/x.weights", f"out={tmp_path}/x"
    assert main.function(config(*paths)) == {"out": str(tmp_path / "x"), "missing": 0, "unexpected": 0}
    loaded = checkpoint.load(tmp_path / "x").net
    assert torch.equal(loaded.net.final_ln.weight, idm.net.final_ln.weight)
    assert (loaded.window, loaded.n_keys) == (4, 20)


def test_a_forgotten_path_is_named():
    with pytest.raises(DataError, match="weights is not set"):
        main.function(config("model=x.model"))
