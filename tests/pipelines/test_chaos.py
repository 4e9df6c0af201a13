"""Workers that race and are killed at random moments: nothing lost, nothing twice, every byte right."""

import os
import random
import signal
import time

import pytest

from pipelines import gc
from pipelines import manifest as disk
from pipelines.shards import Shards, ShardWriter

UNITS = 12


def work(root):
    """Makes every unit that is not there yet. The payload differs from try to try, as on another machine."""
    for unit in range(UNITS):
        prefix = f"u{unit:02d}"
        if disk.finished(root, prefix, prefix) is None:
            with ShardWriter(root, prefix, samples_per_shard=2, unit=prefix) as writer:
                for sample in range(3):
                    writer.write(f"{prefix}-{sample}", {"mp4": os.urandom(3000), "json": {"frames": [0, 1]}})
                    time.sleep(0.002)


def start(root):
    pid = os.fork()
    if pid == 0:
        try:
            work(root)
        finally:
            os._exit(0)
    return pid


def kill_and_restart(root, kills, seed):
    """Two racing workers; one of them is killed and started again, `kills` times. Returns kills that hit a live one."""
    generator, pids, hits = random.Random(seed), [start(root), start(root)], 0
    for _ in range(kills):
        time.sleep(generator.uniform(0.001, 0.03))
        victim = generator.randrange(2)
        os.kill(pids[victim], signal.SIGKILL)
        hits += os.waitpid(pids[victim], 0)[1] == signal.SIGKILL
        pids[victim] = start(root)
    for pid in pids:
        os.waitpid(pid, 0)
    return hits


def check(root, kills):
    hits = sum(kill_and_restart(root / f"round{i}", 10, i) for i in range(kills // 10))
    for folder in sorted(root.iterdir()):
        shards = Shards(folder, verify=True)
        assert sorted(entry.key for entry in shards.entries) == sorted(
            f"u{unit:02d}-{sample}" for unit in range(UNITS) for sample in range(3)
        )
        for entry in shards.entries:
            assert len(shards.read(entry.key, "mp4")) == 3000
        before = shards.fingerprint()
        gc.collect(folder, older_than_seconds=-1)
        assert Shards(folder, verify=True).fingerprint() == before
        assert not list(folder.glob("*.part"))
        assert not list(folder.glob(".*.part"))
    return hits


def test_forty_kills(tmp_path):
    assert check(tmp_path, 40) > 4  # on a busy machine most workers are done before their kill comes


@pytest.mark.slow
def test_four_hundred_kills(tmp_path):
    assert check(tmp_path, 400) > 40
