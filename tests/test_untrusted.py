"""Models, tasks and text from elsewhere: nothing in them is executed, allocates or loops without bound."""

import importlib.util
import io
import json
import os
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from foundation import run_files
from foundation.envs import registry
from models.heads import FactoredHead
from pipelines import checkpoint, untrusted, vpt_release
from pipelines.actions import DOOM
from pipelines.embedding import Clip
from pipelines.labeller import Labeller, Settings
from pipelines.schema import DataError

pytestmark = pytest.mark.usefixtures("bounded")

NET = {"_target_": "models.heads.FactoredHead", "width": 4, "n_keys": 6, "n_bins": 15}
POLICY = {
    "_target_": "models.video_policy.VideoPolicy", "height": 16, "width": 20, "n_buttons": 4, "n_camera": 9,
    "camera_on": [True] * 4, "camera_null": 4, "context": 4, "channels": [4], "dim": 8, "layers": 1, "heads": 2,
}  # fmt: skip


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# hub folders


@pytest.fixture
def folder(tmp_path):
    return checkpoint.save(tmp_path / "hub", NET, FactoredHead(4, 6, 15), {"actions": DOOM, "size": (64, 80)}, "")


def edit(folder, change):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.pop("check", None)  # the change is ours
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "net",
    [
        {"_target_": "models.heads.FactoredHead", "width": 1 << 19, "n_keys": 1 << 19, "n_bins": 11},
        {"_target_": "models.heads.FactoredHead", "width": 10**12, "n_keys": 10**12, "n_bins": 11},
        {**POLICY, "layers": 1 << 20},
        {**POLICY, "channels": [1 << 19, 1 << 19]},
        {**POLICY, "dim": float("nan")},
        {"_target_": "models.heads.Factored", "key_log_probs": 1, "camera_log_probs": 1},  # no network
        {"_target_": "models.heads.FactoredHead.forward", "latent": 1},
        {"_target_": "models..heads.FactoredHead"},
        {"_target_": ["models.heads.FactoredHead"]},
        [NET],
        "models.heads.FactoredHead",
    ],
)
def test_a_config_cannot_build_more_than_its_weights(folder, net):
    edit(folder, lambda config: config.update(net=net))
    with pytest.raises(DataError):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 5}, {"size": [10**9, 10**9]}, {"size": ["a", "b"]}, {"size": [64]}, {"fps": float("nan")},
        {"fps": "fast"}, {"fps": -1.0}, {"actions": 7}, {"actions": {**DOOM.to_dict(), "camera_bins": 10**9 + 1}},
        {"actions": {**DOOM.to_dict(), "groups": 3}}, {"weights_sha256": 5},
    ],
)  # fmt: skip
def test_the_contract_of_a_hub_folder_is_checked(folder, values):
    edit(folder, lambda config: config.update(values))
    with pytest.raises(DataError):
        checkpoint.load(folder)


LAUGHS = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS, LAUGHS.replace("[1, 1]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n"), "[" * 1000,
        "a: " * 1000, "a: " + "1" * 9000, "a: 2001-99-99", b"\xff\xfe", "a: \0", "x: y\n" * (1 << 18), "? [a]\n: 1",
        "net: !!python/object/apply:os.mkdir ['owned']",
    ],
)  # fmt: skip
def test_yaml_that_multiplies_nests_or_acts(folder, text):
    (folder / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=r"plain YAML|too many"):
        checkpoint.load(folder)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "1" * 9000, "[]", "7", '{"label_report": 5}', '{"a": "' + "x" * (17 << 20) + '"}', "\udcff"]
)
def test_statistics_that_are_none(folder, text):
    (folder / "statistics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        checkpoint.load(folder)


def test_a_label_report_of_odd_shape_is_told(tmp_path):
    net = {
        "_target_": "models.inverse_dynamics.InverseDynamics", "height": 32, "width": 40, "n_keys": 6, "n_bins": 15,
        "window": 8, "channels": [4, 4], "dim": 16, "layers": 1, "heads": 2,
    }  # fmt: skip
    report = {"label_report": {"keys": {"attack": 3}}}
    extras = {"actions": DOOM, "size": (32, 40), "fps": 17.5, "statistics": report}
    checkpoint.save(tmp_path, net, checkpoint.build(net), extras, "")
    with pytest.raises(DataError, match="label report"):
        Labeller(tmp_path, Settings(), "cpu").gate()


def test_numbers_that_only_serve_to_fill_memory_when_acting(tmp_path):
    checkpoint.save(tmp_path, POLICY, checkpoint.build(POLICY), {}, "")
    checkpoint.load(tmp_path)
    edit(tmp_path, lambda config: config["net"].update(context=10**9))  # changes no weight
    with pytest.raises(DataError, match="context"):
        checkpoint.load(tmp_path)


# official weights, checkpoints, other people's models


def test_pickled_weights_never_run(tmp_path):
    path = tmp_path / "x.weights"
    for data in (pickle.dumps(Payload(tmp_path / "ran"), 2), zipped(data=pickle.dumps(Payload(tmp_path / "ran"), 2))):
        path.write_bytes(data)
        for read in (vpt_release.load_weights, vpt_release.load_model_file):
            with pytest.raises(DataError):
                read(path)
    assert not (tmp_path / "ran").exists()


def zipped(data, **options):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", **options) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3\n")
    return target.getvalue()


def test_compressed_weights_are_refused_before_they_unpack(tmp_path):
    path = tmp_path / "x.weights"
    path.write_bytes(zipped(bytes(1 << 24), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(DataError, match="compressed"):
        vpt_release.load_weights(path)


def test_settings_that_fill_memory(tmp_path):
    path = tmp_path / "x.model"
    table = b"\x80\x04]r\xff\xff\xff\x7f."  # one reference numbered 2,147,483,647
    laughs = [1]
    for _ in range(64):
        laughs = [laughs] * 8
    nested, long = b"]" * 100_000 + b"a" * 99_999 + b".", b"\x8e" + b"\xff" * 7 + b"\x7f."
    for data in (table, pickle.dumps(laughs), nested, long):
        path.write_bytes(data)
        with pytest.raises(DataError):
            vpt_release.load_model_file(path)


def test_a_clip_model_that_is_a_pickle_is_refused(tmp_path):
    pytest.importorskip("transformers")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 32, "projection_dim": 4, "model_type": "clip_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps(vision))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), 2))
    with pytest.raises(DataError, match="safetensors"):
        Clip(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_a_run_are_read_weights_only():
    """`torch.load` and Lightning resume without `weights_only=True` nowhere in the packages."""
    root = Path(importlib.util.find_spec("pipelines").origin).parents[1]
    for path in [p for package in ("models", "pipelines", "foundation") for p in (root / package).rglob("*.py")]:
        text = path.read_text()
        for call in ("torch.load(", "load_from_checkpoint("):
            for part in text.split(call)[1:]:
                assert "weights_only=True" in part[:200], f"{path}: {call}"
        if "ckpt_path=" in text:
            assert "weights_only=True" in text, path
        assert "import pickle" not in text or path.name == "vpt_release.py", path


# tasks


@pytest.mark.parametrize(
    "env",
    [
        {"_target_": "os.mkdir", "path": "owned"},
        {"_target_": "foundation.envs.recording.os.mkdir", "path": "owned"},
        {"_target_": "foundation.envs.doom.DoomEnv", "size": {"_target_": "os.mkdir", "path": "owned"}},
        {"_target_": "foundation.envs.doom.DoomEnv", "maps": [{"_target_": "foundation.training.ctypes.CDLL"}]},
        {"_target_": "foundation.envs.registry.instantiate"}, {"size": [64, 80]},
    ],
)  # fmt: skip
def test_a_task_builds_our_own_classes_only(env):
    with pytest.raises(DataError, match="package foundation"):
        registry.make({"name": "x", "env": env})
    assert not Path("owned").exists()


# text files


def test_limits_of_text(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"[1]")
    assert untrusted.read_json(path, 3) == [1]
    for limit, data in ((2, b"[1]"), (1 << 20, b"[" * 100_000), (1 << 20, b"\xff"), (1 << 20, b"")):
        path.write_bytes(data)
        with pytest.raises(DataError):
            untrusted.read_json(path, limit)
    loop = []
    loop.append(loop)
    with pytest.raises(DataError, match="refused"):
        untrusted.bounded(loop, "x")


def test_reports_survive_files_of_runs_from_elsewhere(tmp_path):
    (tmp_path / "summary.json").write_text("[" * 100_000)
    (tmp_path / "config.yaml").write_text(LAUGHS)
    (tmp_path / "rejected.jsonl").write_text("[" * 100_000 + "\n")
    run = run_files.read(tmp_path, "x")
    assert len(run.problems) == 2
    assert run.rejected == {"(unreadable line)": 1}
