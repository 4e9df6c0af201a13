"""The shipped slurm/*.sh: what they say where they cannot work, and what they do when told nothing."""

import os
import subprocess

import pytest

from tests.slurm.conftest import ROOT, TINY

pytestmark = pytest.mark.timeout(1800)  # most of a job is Python's start, minutes on a busy machine


@pytest.mark.parametrize("script", ["pretrain", "finetune", "label"])
def test_without_sbatch_a_script_says_what_to_run(script, tmp_path):
    for name in ("bash", "dirname"):
        os.symlink(f"/usr/bin/{name}", tmp_path / name)
    command = ["/bin/bash", f"slurm/{script}.sh", "debug=true"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    module = {"label": "pipelines"}.get(script, "foundation")
    assert "sbatch is not on this machine" in done.stderr
    assert f"  python -m {module}.{script} debug=true\n" in done.stderr


def test_with_sbatch_a_script_run_by_hand_says_how_to_submit_it(slurm):
    done = subprocess.run(["bash", "slurm/label.sh"], cwd=ROOT, env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit it: sbatch slurm/label.sh" in done.stderr


def test_tasks_and_trainer_must_agree(slurm, pretrain):
    job = pretrain(options=["--ntasks-per-node=2"])
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "Slurm started 2 tasks" in slurm.log(job) and "trainer=ddp" in slurm.log(job)


@pytest.mark.slow
def test_without_data_a_job_records_its_own_and_trains_on_it(slurm, submit_folder):
    job = slurm.submit(submit_folder, "slurm/pretrain.sh", *TINY[:4], "steps=2")
    slurm.wait(job, "COMPLETED")
    assert '"idm/camera_r2_yaw"' in (submit_folder / "outputs" / f"pretrain-{job}" / "summary.json").read_text()
