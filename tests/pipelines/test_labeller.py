"""Which models label, and which labellers are let loose on a corpus."""

import pytest

from pipelines import checkpoint
from pipelines.actions import DOOM
from pipelines.labeller import Labeller, Settings
from pipelines.schema import DataError
from tests.pipelines.test_label import FPS, SIZE, make_idm, run, world  # noqa: F401 a fixture among them


def rows(**recall):
    return {key: {"support": 9, "recall": value, "positive_rate_ratio": 1.0} for key, value in recall.items()}


def test_a_labeller_that_never_emits_a_key_is_refused(world, tmp_path):  # noqa: F811
    silent = make_idm(tmp_path / "silent", {"keys": rows(forward=0.9, use=0.0), "effective_keys": None})
    with pytest.raises(DataError, match=r"never emitted \['use'\]"):
        run((world[0], silent), tmp_path / "out")
    run((world[0], silent), tmp_path / "out", "allow_unlabelled_keys=true")


@pytest.mark.parametrize(
    "report",
    [
        {"keys": rows(forward=0.9), "effective_keys": None},
        {"keys": rows(use=0.0), "effective_keys": rows(use=0.5)},  # what nobody can see is not asked for
        {"keys": {"use": {"support": 0, "recall": None, "positive_rate_ratio": None}}},
    ],
)
def test_a_good_report_passes(tmp_path, report, caplog):
    Labeller(make_idm(tmp_path / "idm", report), Settings()).gate()
    assert not caplog.records


def test_the_gate_warns(tmp_path, caplog):
    Labeller(make_idm(tmp_path / "a"), Settings()).gate()
    assert "no held-out label report" in caplog.text
    report = {"keys": {"use": {"support": 9, "recall": 0.9, "positive_rate_ratio": 3.0}}}
    Labeller(make_idm(tmp_path / "b", report), Settings()).gate()
    assert "'use' 3.00 times as often" in caplog.text


def test_a_model_without_the_contract_is_no_labeller(tmp_path):
    net = {"_target_": "models.heads.FactoredHead", "width": 4, "n_keys": 6, "n_bins": 15}
    checkpoint.save(tmp_path, net, checkpoint.build(net), {"size": SIZE, "fps": FPS}, "")
    with pytest.raises(DataError, match=r"FactoredHead lacks \['window', 'reach', 'encode', 'decode', 'spec'\]"):
        Labeller(tmp_path, Settings())


def test_a_run_directory_is_a_labeller(tmp_path):
    make_idm(tmp_path / "model")
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert Labeller(tmp_path, Settings()).bundle.spec == DOOM
