"""The test Slurm itself: it leaves nothing behind, and says why it does not start."""

import subprocess
import sys

import pytest

from tests.slurm import cluster
from tests.slurm.cluster import Cluster, daemons, end_leftovers
from tests.slurm.conftest import ROOT

ALL = {"munged", "slurmctld", "slurmd"}


def running(root):
    return {name for _, name, folder in daemons() if folder == root}


def test_the_slurm_of_a_killed_session_is_ended_by_the_next(slurm, tmp_path):
    code = "import sys, tests.slurm.cluster as c; c.Cluster(sys.argv[1]).own().start(); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, **pipes) as session:
        assert session.stdout.readline() == b"\n"
        end_leftovers()
        assert running(tmp_path) == ALL  # its owner lives
        session.kill()
    end_leftovers()
    assert running(tmp_path) == set() and running(slurm.root) == ALL


def test_a_slurm_that_does_not_start_shows_its_logs(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONF", cluster.CONF.replace("select/cons_tres", "select/no_such_plugin"))
    with pytest.raises(RuntimeError, match=r"(?s)does not start.*--- munged.log\n.*--- slurmctld.log\n.*no_such"):
        Cluster(tmp_path).start()
    assert running(tmp_path) == set()
