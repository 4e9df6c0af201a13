"""The Slurm that tests submit to: real, one node, started for the session under its own folder."""

import os
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if missing():
        pytest.skip(f"no Slurm can be started here: {missing()}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.environment["PATH"] = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    cluster.environment["OMP_NUM_THREADS"] = "1"
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def submit_folder(tmp_path):
    """A folder to submit from: the repository, but with outputs of its own."""
    for name in ("foundation", "models", "pipelines", "slurm"):
        os.symlink(ROOT / name, tmp_path / name)
    return tmp_path
