"""Workers that race and are killed at random moments: nothing lost, nothing twice, every byte right."""

import os
import random
import signal
import time

import pytest

from benchmarks.faults_processes import ended
from pipelines import gc
from pipelines import manifest as disk
from pipelines.shards import Shards, ShardWriter

UNITS = 12
UNIT_BYTES = 40_000  # on disk, about


def work(root):
    """Makes every unit that is not there yet. The payload differs from try to try, as on another machine."""
    for unit in range(UNITS):
        prefix = f"u{unit:02d}"
        if disk.finished(root, prefix, prefix) is None:
            with ShardWriter(root, prefix, samples_per_shard=2, unit=prefix) as writer:
                for sample in range(3):
                    writer.write(f"{prefix}-{sample}", {"mp4": os.urandom(9000), "json": {"frames": [0, 1]}})


def start(root):
    pid = os.fork()
    if pid == 0:
        try:
            work(root)
        finally:
            os._exit(0)
    return pid


def written(root):
    """Bytes of all files of a folder, those in the making included; it only grows, as every payload is new."""
    total = 0
    for entry in os.scandir(root):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def kill_and_restart(root, generator):
    """Two racing workers; one of them is killed whenever a random number of bytes was written since, and restarted.

    Returns how many kills hit a living worker; both end when all units are there.
    """
    root.mkdir()
    pids, hits = [start(root), start(root)], 0
    while True:
        goal = written(root) + generator.randrange(1, UNIT_BYTES)
        while written(root) < goal and not all(map(ended, pids)):
            time.sleep(0.0002)
        victim = generator.randrange(2)
        if all(map(ended, pids)):
            break
        os.kill(pids[victim], signal.SIGKILL)
        hits += os.waitpid(pids[victim], 0)[1] == signal.SIGKILL
        pids[victim] = start(root)
    for pid in pids:
        os.waitpid(pid, 0)
    return hits


def check(folder):
    shards = Shards(folder, verify=True)
    assert sorted(entry.key for entry in shards.entries) == sorted(
        f"u{unit:02d}-{sample}" for unit in range(UNITS) for sample in range(3)
    )
    for entry in shards.entries:
        assert len(shards.read(entry.key, "mp4")) == 9000
    before = shards.fingerprint()
    gc.collect(folder, older_than_seconds=-1)
    assert Shards(folder, verify=True).fingerprint() == before
    assert len(list(folder.iterdir())) == 3 * len(shards.manifests)  # tar, index, manifest: no garbage is left


def kill(folder, kills):
    """Rounds until so many kills have hit: 3 to 30 of a round do, as the machine is quick; none would be our error."""
    hits = rounds = 0
    while hits < kills:
        hits += kill_and_restart(folder / f"round{rounds}", random.Random(rounds))
        check(folder / f"round{rounds}")
        rounds += 1
        assert hits >= rounds, f"only {hits} of the kills in {rounds} rounds hit"
    return hits


def test_forty_kills(tmp_path):
    assert kill(tmp_path, 40) >= 40


@pytest.mark.slow
def test_four_hundred_kills(tmp_path):
    assert kill(tmp_path, 400) >= 400
