"""The rules that keep the tree as the README draws it."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "pipelines", "foundation")  # each may import itself and those before it
OUTSIDE = {  # what a layer does without
    "models": {"lightning", "hydra", "omegaconf", "gymnasium", "webdataset", "av", "vizdoom", "pathlib"},
    "pipelines": {"lightning", "gymnasium", "vizdoom"},
}
NEVER = {"torchvision", "timm", "litdata", "streaming"}  # no build for our torch, and its presence breaks lightning
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
EVERYTHING = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def imported(path):
    """Top-level names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.partition(".")[0]


@EVERYTHING
def test_imports_follow_the_arrow(path):
    names, layer = set(imported(path)), path.relative_to(ROOT).parts[0]
    later = set(PACKAGES[PACKAGES.index(layer) + 1 :])
    assert not names & later, f"{layer} must not import {names & later}: models <- pipelines <- foundation"
    assert not names & OUTSIDE.get(layer, set())
    assert not names & (NEVER | {"tests", "benchmarks"})
    assert "." not in names, "imports are absolute"


@EVERYTHING
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 350


def test_packages_re_export_nothing():
    for path in FILES:
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            assert not any(isinstance(n, ast.ImportFrom) for n in ast.walk(tree)), path
            assert set(imported(path)) <= {"os"}, path  # for WDS_SECURE, which must precede webdataset


def test_tests_are_not_a_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))  # `tests/models` would shadow our `models`


def test_every_package_is_installed():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert set(listed) == found


def test_torchvision_is_absent():
    assert importlib.util.find_spec("torchvision") is None


def commands():
    """(name, path) of every function decorated with @command("name")."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "command":
                    yield call.args[0].value, path


@pytest.mark.parametrize(("name", "path"), list(commands()))
def test_a_command_shares_its_stem_with_its_config(name, path):
    assert path.stem == name
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert config["defaults"][0] == "_self_"
    assert config["run"]["dir"] == "outputs/${run.name}"
    assert config["run"]["seed"] == 0
    assert config["debug"] is False
    assert config["hydra"]["run"]["dir"] == "${run.dir}"
    assert config["hydra"]["output_subdir"] is None
    assert config["hydra"]["job"]["chdir"] is False
