"""The Slurm that tests submit to: real, one node, started for the session under its own folder."""

import os
import sys
from pathlib import Path

import pytest

from tests.foundation.test_resume import rows
from tests.slurm.cluster import Cluster, end_leftovers, missing

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "method=idm", "method.net.channels=[4,8,8]", "method.net.dim=32", "method.net.heads=2", "method.net.window=16",
    "method.optimizer.warmup_steps=5", "data.stride=8", "data.batch_size=4", "validate_every=60",
    "checkpoint_every=20", "steps=160",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    if missing():  # a mark, because pytest sums up marked tests in one line
        for item in items:
            if "slurm" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=f"no Slurm can be started here: {missing()}"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    end_leftovers()
    cluster = Cluster(tmp_path_factory.mktemp("slurm")).own()
    cluster.environment["PATH"] = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    cluster.environment["OMP_NUM_THREADS"] = "1"
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def tiny(play_shards, held_out_shards):
    """Overrides of a training of seconds."""
    return [*TINY, f"data.train={play_shards}", f"data.validation={held_out_shards}"]


@pytest.fixture
def submit_folder(tmp_path):
    return repository(tmp_path)


def repository(folder):
    """A folder to submit from: the repository, but with outputs of its own."""
    for name in ("foundation", "models", "pipelines", "slurm"):
        os.symlink(ROOT / name, folder / name)
    return folder


@pytest.fixture
def pretrain(slurm, submit_folder, tiny):
    """Function (*overrides, options of sbatch) -> number of a job of slurm/pretrain.sh."""
    return lambda *overrides, options=(): slurm.submit(submit_folder, *options, "slurm/pretrain.sh", *tiny, *overrides)


@pytest.fixture(scope="session")
def straight(slurm, tmp_path_factory, tiny):
    """Function () -> `result` of one process that was never interrupted."""
    folder = repository(tmp_path_factory.mktemp("straight"))
    job = slurm.submit(folder, "slurm/pretrain.sh", *tiny, "run.dir=run")

    def ended():
        slurm.wait(job, "COMPLETED")
        return result(folder / "run")

    return ended


def result(folder):
    """What must not depend on interruptions: the weights and every logged number that is not a time."""
    return (folder / "model" / "model.safetensors").read_bytes(), rows(folder)
