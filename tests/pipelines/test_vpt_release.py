"""Reading files in the format of the VPT release, honest, damaged and hostile. All are made here."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from models.vpt import VptInverseDynamics, VptPolicy
from pipelines import checkpoint
from pipelines.actions import DOOM, MINECRAFT
from pipelines.schema import DataError
from pipelines.vpt_release import build, convert, load_model_file, load_weights

SHARED = {
    "hidsize": 16, "impala_width": 0.25, "timesteps": 4, "impala_chans": [16, 32, 32], "pointwise_ratio": 4,
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1}, "impala_kwargs": {"post_pool_groups": 1},
    "only_img_input": True, "recurrence_type": "transformer", "recurrence_is_residual": True,
    "use_pointwise_layer": True, "pointwise_use_activation": False, "use_pre_lstm_ln": False,
}  # fmt: skip
POLICY = {
    **SHARED, "attention_memory_size": 8, "attention_mask_style": "clipped_causal", "n_recurrence_layers": 2,
    "img_shape": [16, 16, 3], "diff_mlp_embedding": False, "attention_heads": 16,  # the file's weights have 4
}  # fmt: skip
IDM = {
    **SHARED, "attention_memory_size": 4, "attention_mask_style": "none", "n_recurrence_layers": 1,
    "img_shape": [16, 16, 8], "attention_heads": 2, "single_output": True,
    "conv3d_params": {"inchan": 3, "outchan": 8, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
}  # fmt: skip


def model_file(path, net, temperature="2.0", **more):
    settings = {"model": {"args": {"net": {"args": net}, "pi_head_opts": {"temperature": temperature}, **more}}}
    path.write_bytes(pickle.dumps(settings, protocol=4))
    return path


def write(folder, net_keywords, state, **more):
    torch.save(state, folder / "net.weights")
    return model_file(folder / "net.model", net_keywords, **more), folder / "net.weights"


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return VptPolicy(**{**POLICY, "attention_heads": 4}, temperature=2.0).eval()


@pytest.fixture(scope="module")
def idm():
    torch.manual_seed(0)
    return VptInverseDynamics(**IDM, temperature=2.0).eval()


def frames(t=5):
    return torch.randint(0, 256, (1, t, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# honest files


@torch.no_grad()
def test_policy_loads_by_name_and_acts_alike(tmp_path, policy):
    net, config, report = build(*write(tmp_path, POLICY, OrderedDict(policy.state_dict())))
    assert (report.missing, report.unexpected, report.notes) == ((), (), ())
    assert config["_target_"] == "models.vpt.VptPolicy"
    assert config["attention_heads"] == 4  # from the weights, not from the settings
    assert config["temperature"] == 2.0  # a string in the file
    assert not net.training
    ours, theirs = net({"observation": frames()})[0], policy({"observation": frames()})[0]
    assert torch.equal(ours.buttons_log_probs, theirs.buttons_log_probs)
    assert torch.equal(ours.camera_on, policy.camera_on)


@torch.no_grad()
def test_idm_is_told_by_its_temporal_convolution(tmp_path, idm):
    net, config, report = build(*write(tmp_path, IDM, idm.state_dict()))
    assert isinstance(net, VptInverseDynamics)
    assert (config["n_keys"], config["n_bins"]) == (20, 11)
    assert torch.equal(net(frames()).key_log_probs, idm(frames()).key_log_probs)
    assert "never trained" in report.notes[0]  # the gain of `lastlayer` still is all ones


def test_extra_and_missing_parameters_are_reported(tmp_path, policy):
    state = {k: v for k, v in policy.state_dict().items() if not k.startswith("value_head.")}
    state["aux_value_head.linear.weight"] = torch.zeros(1, 16)
    report = build(*write(tmp_path, POLICY, state)).report
    assert report.unexpected == ("aux_value_head.linear.weight",)
    assert len(report.missing) == 5
    assert all(name.startswith("value_head.") for name in report.missing)
    assert "aux_value_head" in str(report)


@torch.no_grad()
def test_conversion_gives_a_hub_folder_with_the_same_net(tmp_path, policy):
    report = convert(*write(tmp_path, POLICY, policy.state_dict()), tmp_path / "hub")
    assert report.missing == ()
    bundle = checkpoint.load(tmp_path / "hub")
    assert (bundle.spec, bundle.size, bundle.fps) == (MINECRAFT, (16, 16), 20.0)
    ours, theirs = bundle.net({"observation": frames()})[0], policy({"observation": frames()})[0]
    assert torch.equal(ours.camera_log_probs, theirs.camera_log_probs)
    assert (tmp_path / "hub" / "config.yaml").stat().st_size < 10_000
    assert "net.weights" in (tmp_path / "hub" / "README.md").read_text()


def test_half_precision_files_load_into_fp32(tmp_path, idm):
    state = {k: v.half() for k, v in idm.state_dict().items()}
    assert build(*write(tmp_path, IDM, state)).net.net.final_ln.weight.dtype == torch.float32


# files that do not fit


def test_wrong_sizes_are_listed(tmp_path, policy):
    with pytest.raises(DataError, match=r"linear\.layer\.weight: file has \[16, 256\], its \.model says \[32, 256\]"):
        build(*write(tmp_path, {**POLICY, "hidsize": 32}, policy.state_dict()))


def test_a_shallower_net_than_the_weights_is_refused(tmp_path, policy):
    with pytest.raises(DataError, match=r"lacks: net\.recurrent_layer\.blocks\.1"):
        build(*write(tmp_path, {**POLICY, "n_recurrence_layers": 1}, policy.state_dict()))


def test_missing_parameters_of_the_net_are_refused(tmp_path, policy):
    state = {k: v for k, v in policy.state_dict().items() if "final_ln" not in k}
    with pytest.raises(DataError, match=r"lacks.*final_ln\.weight"):
        build(*write(tmp_path, POLICY, state))
    with pytest.raises(DataError, match="not the weights of a VPT net"):
        build(*write(tmp_path, POLICY, {"fc.weight": torch.zeros(2, 2)}))


def test_other_action_spaces_need_their_spec(tmp_path, policy):
    with pytest.raises(DataError, match="doom"):
        build(*write(tmp_path, POLICY, policy.state_dict()), spec=DOOM)


def test_impossible_settings_are_explained(tmp_path, policy):
    with pytest.raises(DataError, match="use_pre_lstm_ln"):
        build(*write(tmp_path, {**POLICY, "use_pre_lstm_ln": True}, policy.state_dict()))
    with pytest.raises(DataError, match="cannot be built"):
        build(*write(tmp_path, {**POLICY, "n_recurrence_layers": 0}, policy.state_dict()))


# damaged and hostile files


class Payload:
    """Unpickled naively this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_model_file_does_not_run(tmp_path):
    bait = tmp_path / "created"
    path = tmp_path / "evil.model"
    path.write_bytes(pickle.dumps({"model": Payload(bait)}))
    with pytest.raises(DataError, match=r"mkdir; only plain containers"):
        load_model_file(path)
    assert not bait.exists()
    pickle.loads(path.read_bytes())  # the bait is live
    assert bait.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_weights_do_not_run(tmp_path, legacy):
    bait = tmp_path / "created"
    torch.save({"w": Payload(bait)}, tmp_path / "evil.weights", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match="refused or is damaged"):
        load_weights(tmp_path / "evil.weights")
    assert not bait.exists()


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), torch.zeros(1), print, DataError, range(3)])
def test_every_name_beyond_plain_values_is_refused(tmp_path, value):
    (tmp_path / "x.model").write_bytes(pickle.dumps({"model": value}))
    with pytest.raises(DataError, match="it asks for"):
        load_model_file(tmp_path / "x.model")


def test_plain_values_of_all_protocols_are_read(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        net = OrderedDict(hidsize=4, chans=(1, 2.5), name="ü", flag=True, none=None)
        settings = {"model": {"args": {"net": {"args": net}, "pi_head_opts": {"temperature": 4}}}}
        (tmp_path / "x.model").write_bytes(pickle.dumps(settings, protocol=protocol))
        assert load_model_file(tmp_path / "x.model") == {**net, "temperature": 4.0}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"\x80", b"hello", b"PK\x03\x04 not a zip", pickle.dumps([1])[:-2]])
def test_damaged_files_say_so(tmp_path, content):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"readable pickle|not a VPT"):
        load_model_file(path)
    with pytest.raises(DataError, match="damaged"):
        load_weights(path)


def test_files_of_another_kind(tmp_path):
    (tmp_path / "x.model").write_bytes(pickle.dumps({"agent": 1}))
    with pytest.raises(DataError, match="not a VPT"):
        load_model_file(tmp_path / "x.model")
    torch.save({"w": torch.zeros(1)}, tmp_path / "swapped.weights")
    with pytest.raises(DataError, match=r"is it the \.weights file"):
        load_model_file(tmp_path / "swapped.weights")
    torch.save([1, 2], tmp_path / "x.weights")
    with pytest.raises(DataError, match="holds a list"):
        load_weights(tmp_path / "x.weights")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "absent")
    (tmp_path / "big.model").write_bytes(bytes(17 << 20))
    with pytest.raises(DataError, match=r"larger than 16 MiB.*\.weights"):
        load_model_file(tmp_path / "big.model")
