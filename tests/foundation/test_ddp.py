"""Two processes over gloo against one at the same global batch, as commands a user types."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from pipelines.stream import LaneSampler, StepSampler

SMALL = [
    "method=idm", "method.net.channels=[4,4,4]", "method.net.dim=16", "method.net.heads=2", "method.net.layers=1",
    "method.net.window=8", "method.net.dropout=0", "method.mirror=null", "data.length=8", "data.stride=8",
]  # fmt: skip
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "data.batch_size=2"]


def pretrain(folder, *overrides):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "foundation.pretrain", f"run.dir={folder}", *SMALL, *overrides]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def difference(one, other):
    a, b = weights(one), weights(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_equal_one_and_resume_bit_for_bit(play_shards, tmp_path):
    train = [f"data.train={play_shards}", "steps=6", f"data.validation={play_shards}"]
    one = pretrain(tmp_path / "one", *train, "data.batch_size=4")
    assert one.returncode == 0, one.stderr
    both = pretrain(tmp_path / "two", *train, *TWO)
    assert both.returncode == 0, both.stderr
    assert difference(tmp_path / "one", tmp_path / "two") < 2e-5  # sums in another order; lr 1e-3, six steps
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["steps"] == 6
    assert (tmp_path / "two" / "label_report.json").is_file()


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(play_shards, tmp_path):
    train = [f"data.train={play_shards}", "steps=6"]
    constant = "method.optimizer.schedule=constant"
    for folder, steps in (("straight", 6), ("stopped", 3), ("stopped", 6)):
        done = pretrain(tmp_path / folder, *train, *TWO, constant, f"steps={steps}")
        assert done.returncode == 0, done.stderr
    assert difference(tmp_path / "straight", tmp_path / "stopped") == 0
    alone = pretrain(tmp_path / "stopped", *train, constant, "steps=9")
    assert alone.returncode == 2 and "2 processes, now there are 1" in alone.stderr


def test_every_sample_is_seen_once_an_epoch_by_two_ranks():
    for n, batch in ((24, 3), (24, 4)):
        samplers = [StepSampler(n, batch, n // (2 * batch), seed=3, rank=rank, world_size=2) for rank in (0, 1)]
        seen = [item[0] for sampler in samplers for items in sampler for item in items]
        assert sorted(seen) == list(range(n))
        single = list(StepSampler(n, 2 * batch, n // (2 * batch), seed=3))
        merged = [one + other for one, other in zip(*samplers, strict=True)]
        assert [sorted(items) for items in single] == [sorted(items) for items in merged]
    windows = [(track, start) for track in range(4) for start in range(6)]
    lanes = [LaneSampler(windows, 2, 6, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(item[0] for lane in lanes for items in lane for item in items) == list(range(24))
