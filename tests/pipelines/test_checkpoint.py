import pickle

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models.heads import FactoredHead
from pipelines import checkpoint
from pipelines.actions import DOOM
from pipelines.schema import DataError

NET = {"_target_": "models.heads.FactoredHead", "width": 4, "n_keys": 6, "n_bins": 11}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    extras = {"actions": DOOM, "size": (64, 80), "fps": 17.5, "statistics": {"mean": np.float32([1, 2])}, "steps": 3}
    return checkpoint.save(tmp_path / "hub", NET, FactoredHead(4, 6, 11), extras, "# A head")


def edit(folder, change):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.pop("check", None)  # the change is ours
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_what_was_saved_is_loaded(folder):
    torch.manual_seed(0)
    net, latent = FactoredHead(4, 6, 11), torch.randn(2, 3, 4)
    bundle = checkpoint.load(folder)
    assert torch.equal(bundle.net(latent).key_log_probs, net(latent).key_log_probs)
    assert not bundle.net.training
    assert (bundle.spec, bundle.size, bundle.fps) == (DOOM, (64, 80), 17.5)
    assert bundle.statistics == {"mean": [1.0, 2.0]}
    assert bundle.config["steps"] == 3
    names = ["README.md", "config.yaml", "model.safetensors", "statistics.json"]
    assert sorted(p.name for p in folder.iterdir()) == names


def test_loading_leaves_the_random_stream_alone(folder):
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    checkpoint.load(folder)
    assert torch.equal(before, torch.rand(1))


def test_hash_follows_weights_and_config_but_not_the_report(folder, tmp_path):
    first = checkpoint.load(folder).sha256
    checkpoint.update_statistics(folder, {"label_report": {"keys": {}}})
    (folder / "README.md").write_text("another card")
    assert checkpoint.load(folder).sha256 == first
    checkpoint.update_statistics(folder, {"mean": 3.0})
    assert checkpoint.load(folder).sha256 != first
    other = checkpoint.save(tmp_path / "other", NET, FactoredHead(4, 6, 11), {}, "")
    assert checkpoint.load(other).sha256 != first
    assert checkpoint.load(other).spec is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "models.heads.torch.load",
        "models.heads.nn.Linear",
        "models.heads.F.log_softmax",
        "models.heads._categorical",
        "models.nowhere.Net",
        "models_evil.Net",
        "models",
        "",
        7,
    ],
)
def test_only_our_own_classes_are_built(folder, target):
    for change in (lambda c: c["net"].update(_target_=target), lambda c: c["net"].update(width=[{"_target_": target}])):
        edit(folder, change)
        with pytest.raises(DataError, match=r"config\.yaml asks for"):
            checkpoint.load(folder)


def test_hydra_directives_are_refused(folder):
    edit(folder, lambda c: c["net"].update(_partial_=True))
    with pytest.raises(DataError, match="_partial_"):
        checkpoint.load(folder)


def test_python_tags_in_yaml_are_refused(folder, tmp_path):
    (folder / "config.yaml").write_text(f"net: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(DataError, match="plain YAML"):
        checkpoint.load(folder)
    assert not (tmp_path / "made").exists()


def test_weights_that_are_no_numbers_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(DataError, match=f"NaN in .*{name}"):
        checkpoint.load(folder)


def test_weights_that_do_not_fit_are_named(folder):
    edit(folder, lambda c: c["net"].update(n_keys=5))
    with pytest.raises(DataError, match=r"keys\.weight: file has \[12, 4\], config.yaml builds \[10, 4\]"):
        checkpoint.load(folder)
    weights = load_file(folder / "model.safetensors")
    weights["surplus"] = weights.pop("camera.bias")
    save_file(weights, folder / "model.safetensors")
    edit(folder, lambda c: (c["net"].update(n_keys=6), c.pop("weights_sha256")))
    with pytest.raises(DataError, match=r"missing camera\.bias .*unexpected surplus"):
        checkpoint.load(folder)


def test_arguments_that_do_not_fit_are_told(folder):
    edit(folder, lambda c: c["net"].update(colour="red"))
    with pytest.raises(DataError, match="colour"):
        checkpoint.load(folder)


def test_a_flipped_bit_is_noticed(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="sha256"):
        checkpoint.load(folder)


def test_a_cut_file_is_noticed(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged"):
        checkpoint.load(folder)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "last.ckpt"])
def test_pickles_are_never_opened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(DataError, match=r"pickles|not safetensors"):
        checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fault", ["missing", "empty", "no_config", "schema"])
def test_what_is_not_a_hub_folder_is_told(folder, tmp_path, fault):
    if fault == "missing":
        folder = tmp_path / "nowhere"
    if fault == "empty":
        (folder / "config.yaml").write_text("")
    if fault == "no_config":
        (folder / "config.yaml").unlink()
    if fault == "schema":
        edit(folder, lambda c: c.update(schema=99))
    with pytest.raises(DataError, match=r"hub folder|schema 99"):
        checkpoint.load(folder)


def test_a_killed_writer_never_leaves_a_folder_that_loads_wrong(folder, monkeypatch):
    """Overwriting dies between weights and config: the mix of new weights and old config is refused."""
    monkeypatch.setattr(checkpoint, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, NET, FactoredHead(4, 6, 11), {}, "")
    with pytest.raises(DataError, match="sha256"):
        checkpoint.load(folder)


def test_only_plain_values_are_stored(tmp_path):
    with pytest.raises(DataError, match=r"net\.width is a object"):
        checkpoint.save(tmp_path, {**NET, "width": object()}, FactoredHead(4, 6, 11), {}, "")


def test_statistics_that_are_not_json_are_told(folder):
    (folder / "statistics.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        checkpoint.load(folder)
    for lost in ("{}", None):  # a policy would act on states that are not normalised
        (folder / "statistics.json").unlink() if lost is None else (folder / "statistics.json").write_text(lost)
        with pytest.raises(DataError, match=r"statistics.json is missing or lacks \['mean'\]"):
            checkpoint.load(folder)
    for odd in (5, [["mean"]], {"mean": 1}):
        edit(folder, lambda config, odd=odd: config.update(measured=odd))
        with pytest.raises(DataError, match="expected the names in"):
            checkpoint.load(folder)
    edit(folder, lambda config: config.pop("measured"))  # of a version that did not list them
    assert checkpoint.load(folder).statistics == {}


def test_changed_values_are_told_and_can_be_allowed(folder, tmp_path):
    path = folder / "config.yaml"
    good = path.read_text()
    for bad in (good.replace("fps: 17.5", "fps: 17.4"), good[: good.index("fps:")], good.replace("check:", "chick:")):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"config\.yaml is damaged or was changed .* delete its entry `check`"):
            checkpoint.load(folder)
    path.write_text(good.replace("fps: 17.5", "fps: 17.4").replace("check:", "#"))
    assert checkpoint.load(folder).fps == 17.4
    path.write_text(good)
    other = checkpoint.save(tmp_path / "other", NET, FactoredHead(4, 6, 11), {"statistics": {"mean": 0}}, "")
    changed = (folder / "statistics.json").read_text().replace("2.0", "3.0")
    for text in (changed, (other / "statistics.json").read_text()):
        (folder / "statistics.json").write_text(text)
        with pytest.raises(DataError, match=r"statistics\.json is damaged or was changed"):
            checkpoint.load(folder)


def test_names_that_are_no_text_are_refused(folder):
    edit(folder, lambda c: c.update({5: "x"}))
    with pytest.raises(DataError, match="names that are no text"):
        checkpoint.load(folder)
