"""Names that no YAML has and values of the wrong kind are told by name, also where the YAML has null."""

from pathlib import Path

import pytest
import yaml

from pipelines.values import CONFIGS, KINDS, explain, kind, lacking, leaves, unknown, wrong_kinds

YAMLS = sorted(Path(CONFIGS).rglob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_whatever_is_null_has_a_kind(path):
    values = {} if path.parent.name == "trainer" else yaml.safe_load(path.read_text())
    empty = [name for name, value in leaves(values) if value in (None, [], {}, "???")]
    lost = [name for name in empty if name.rpartition(".")[2] not in KINDS]
    assert not lost, f"{lost}: say in pipelines.values.TABLE what they may be"


def test_kinds_of_values():
    base = {"steps": 5, "rate": 0.5, "size": [1, 2], "on": True, "unheard": None, "runs": [], "run": {"seed": 0}}
    assert not list(wrong_kinds({**base, "rate": 1, "unheard": "x", "runs": "x", "size": [3]}, base))
    given = {"steps": 1.5, "rate": "x", "size": 3, "on": 1, "runs": 5, "run": {"seed": -1}}
    names = [line.split("=")[0] for line in wrong_kinds(given, base)]
    assert names == ["steps", "rate", "size", "on", "runs", "run.seed"]
    assert not kind("steps", 5)[1](True)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("stop_after", (None, 0, 3), ("abc", -1, 1.5)), ("hours", (2, 0.5), ("many", [1])), ("greedy", (True,), (1, "no")),
     ("videos", ("a", ["a", "b"]), (5, [5], {})), ("also", (["a"],), ("a",)),
     ("target", (3, "q0.9", [1, "q1"]), ({}, True)),
     ("mix", ([0, 0.3], {"expert": 1}), ("foo", ["a"], {"expert": "all"})), ("low", (1, [0, 1.5]), ("x", ["x"])),
     ("encoder", ("resnet", {"_target_": "x"}), (5, True)), ("tasks", (3, {"map": [0]}), ("map",)),
     ("best_return", (5.0, {"behaviour": "random"}), ("x",))],
)  # fmt: skip
def test_kinds_of_what_is_null(name, good, bad):
    assert not [value for value in good if list(wrong_kinds({name: value}, {name: None}))]
    assert not [value for value in bad if not list(wrong_kinds({name: value}, {name: None}))]


def test_null_in_a_group_and_what_is_lightnings_own():
    base = {"method": {"lr": 0.1, "mirror": {"left": "right"}, "alpha": 1}, "trainer": {"devices": 1}}
    given = {"method": {"lr": 1, "mirror": None, "alpha": 0.5}, "trainer": {"devices": "auto"}}
    assert not list(wrong_kinds(given, base))
    assert list(wrong_kinds({"method": {"lr": "1e-s"}}, base)) == ["method.lr=1e-s must be a number"]
    assert list(wrong_kinds({"method": {"lr": None}}, base)) == ["method.lr=None must be a number"]
    assert list(lacking({"method": {"lr": 1, "alpha": 2}}, base)) == [
        "method.mirror is missing in the config files", "trainer is missing in the config files",
    ]  # fmt: skip


def test_nan_is_no_number_and_nothing_no_size():
    base = {"gamma": 0.9, "width": 8, "layers": 2}
    assert not list(wrong_kinds({"gamma": 0.5, "width": 1, "layers": 0}, base))
    wrong = list(wrong_kinds({"gamma": float("nan"), "width": 0, "layers": -1}, base))
    assert [complaint.split("=")[0] for complaint in wrong] == ["gamma", "width", "layers"]


def test_unknown_names_are_told_with_those_that_resemble_them():
    net = "models.critic.EnsembleCritic"
    base = {
        "steps": 1, "where": None, "tags": {}, "trainer": {"devices": 1}, "task": {"evaluation": {"seed": 0}},
        "method": {"net": {"_target_": net, "state_dim": 2}, "optimizer": {"lr": 1}, "loss": {"state": 0.0}},
    }  # fmt: skip
    free = {
        "where": {"task": "x"}, "tags": {"any": 1}, "trainer": {"max_time": "1h"},
        "task": {"evaluation": {"env": {"start": "far"}}},
        "method": {"net": {"_target_": net, "width": 8}, "optimizer": {"eps": 1e-6}},
    }  # fmt: skip
    assert not list(unknown(free, base))
    wrong = {
        "stpes": 2, "trainer": {"device": 2}, "task": {"evaluation": {"sede": 1}},
        "method": {"net": {"_target_": net, "widht": 8}, "optimizer": {"epz": 1}, "loss": {"reward": 1}},
    }  # fmt: skip
    assert list(unknown(wrong, base)) == [
        "there is no stpes; did you mean steps?",
        "there is no trainer.device; did you mean trainer.devices?",
        "there is no task.evaluation.sede; did you mean task.evaluation.seed?",
        "there is no method.net.widht; did you mean method.net.width?",
        "there is no method.optimizer.epz; did you mean method.optimizer.eps?",
        "there is no method.loss.reward; --help lists what there is",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.trian", "there is no data.trian; did you mean data.train"), ("lr", "did you mean method.optimizer.lr?"),
     ("xyz", "there is no xyz; --help lists what there is"), ("data.where.task", "write +data.where.task=...")],
)  # fmt: skip
def test_an_override_without_a_place(override, said):
    assert said in explain(f"Could not override '{override}'.\nTo append to your config use +{override}=1", "pretrain")
    assert explain("another error", "pretrain") == "another error"
