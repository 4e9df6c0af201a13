"""Ingest killed at every step, started twice, out of space, its folder deleted: the same bytes in the end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from benchmarks.faults_processes import Tripwire, fork, wait
from pipelines import gc, ingest_unit, verify
from pipelines import manifest as disk
from pipelines.ingest import claim, main, make_job
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter
from pipelines.video import encode
from tests.pipelines import videos
from tests.pipelines.running import config, files, ingest, rejections

SETTINGS = {"clip_frames": 8, "min_frames": 4, "samples_per_shard": 1}  # several shards per video


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    for index in range(3):
        encode(videos.scene(20, seed=index), 20, folder / f"v{index}.mp4")
    (folder / "bad.mp4").write_text("x")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What one undisturbed run leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ingest(source, out, **SETTINGS)
    return files(out)


def left(out):
    """Files after the clean-up."""
    gc.collect(out, older_than_seconds=-1)
    return files(out)


def run_until(source, out, n):
    """Ingests in a child that is killed before its n-th change; True if it was."""

    def child():
        sys.addaudithook(Tripwire(out, n))
        ingest(source, out, **SETTINGS)

    return wait(fork(child)) == -signal.SIGKILL


def count_changes(source, out):
    """How many changes an undisturbed run makes."""
    reader, writer = os.pipe()

    def child():
        wire = Tripwire(out)
        sys.addaudithook(wire)
        ingest(source, out, **SETTINGS)
        os.write(writer, str(wire.seen).encode())

    assert wait(fork(child)) == 0
    return int(os.read(reader, 20))


def kill_at(points, source, whole, root):
    """Kills a fresh run at each point, looks at what is there, runs again."""
    for n in points:
        out = root / f"at{n}"
        assert run_until(source, out, n), f"the run ended before change {n}"
        if out.is_dir():
            before = Shards(out, verify=True)  # what readers see is whole at any time
            assert {f"{e.shard}" for e in before.entries} <= whole.keys()
        ingest(source, out, **SETTINGS)
        assert left(out) == whole, f"killed before change {n}"
        shutil.rmtree(out)


def test_killed_at_random_steps(source, whole, tmp_path):
    total = count_changes(source, tmp_path / "counted")
    assert total > 60
    kill_at(random.Random(0).sample(range(1, total + 1), 8), source, whole, tmp_path)


@pytest.mark.slow
def test_killed_at_every_step(source, whole, tmp_path):
    kill_at(range(1, count_changes(source, tmp_path / "counted") + 1), source, whole, tmp_path)


def test_killed_again_and_again(source, whole, tmp_path):
    """Every run gets a few changes further than the one before; none starts from nothing."""
    generator, kills = random.Random(1), 0
    while run_until(source, tmp_path / "out", generator.randrange(1, 60)):
        kills += 1
        assert kills < 60
    assert left(tmp_path / "out") == whole


@pytest.mark.parametrize("same_rank", [True, False])
def test_two_processes_at_once(source, whole, tmp_path, same_rank):
    out = tmp_path / "out"
    shares = [{}, {}] if same_rank else [{"rank": rank, "world_size": 2} for rank in (0, 1)]
    runs = [{**SETTINGS, "run": {"dir": str(tmp_path / f"run{i}")}, **share} for i, share in enumerate(shares)]
    pids = [fork(lambda run=run: ingest(source, out, **run)) for run in runs]
    statuses = [wait(pid) for pid in pids]
    assert statuses == [0, 0]
    assert files(out) == whole  # no garbage either: nobody died


def test_racing_writers_of_other_bytes_leave_one_of_the_two(tmp_path):
    """As on two machines whose processors round differently."""

    def write(byte):
        with ShardWriter(tmp_path, "u", samples_per_shard=1, unit="id") as writer:
            for index in range(4):
                writer.write(f"k{index}", {"mp4": bytes([byte]) * 1000, "json": {}})

    for _ in range(10):
        for path in tmp_path.glob("*"):
            path.unlink()
        assert [wait(pid) for pid in [fork(lambda b=b: write(b)) for b in (1, 2)]] == [0, 0]
        shards = Shards(tmp_path, verify=True)
        assert len({shards.read(f"k{index}", "mp4") for index in range(4)}) == 1


def test_a_failing_writer_leaves_the_files_of_its_twin(tmp_path):
    def write(writer):
        for index in range(2):
            writer.write(f"k{index}", {"mp4": b"x", "json": {}})

    with ShardWriter(tmp_path, "u", samples_per_shard=1, unit="id") as winner:
        loser = ShardWriter(tmp_path, "u", samples_per_shard=1, unit="id")
        write(loser)
        write(winner)
    loser.abort()
    assert len(Shards(tmp_path, verify=True)) == 2


def test_a_unit_of_another_version_replaces_the_old_one_at_once(tmp_path):
    def write(unit, byte, count):
        with ShardWriter(tmp_path, "u", samples_per_shard=1, unit=unit) as writer:
            for index in range(count):
                writer.write(f"k{index}", {"mp4": byte * 9, "json": {}})

    write("old", b"a", 3)
    write("new", b"b", 2)
    assert [Shards(tmp_path).read(e.key, "mp4") for e in Shards(tmp_path).entries] == [b"b" * 9] * 2
    leftover = {"unit": "old", "parts": 3, "part": 2, "set": "x", "fingerprint": None, "counts": {}}
    (tmp_path / "u-00002-000000000000.tar").write_bytes(b"x")
    manifest = disk.new_manifest("u-00002-000000000000.tar", 1, "0" * 64, [], **leftover)
    disk.write_atomic(tmp_path / "u-00002.json", disk.sealed(manifest))  # as a kill before the clean-up leaves it
    assert len(Shards(tmp_path)) == 2
    assert {item.kind for item in gc.find(tmp_path, -1)} == {"leftover", "orphan"}
    gc.collect(tmp_path, -1)
    assert len(list(tmp_path.iterdir())) == 6


# the disk and the folder


def test_output_folder_deleted_after_the_run(source, whole, tmp_path):
    out = tmp_path / "out"
    ingest(source, out, **SETTINGS)
    shutil.rmtree(out)
    ingest(source, out, **SETTINGS)
    assert files(out) == whole


def test_output_folder_deleted_during_the_run(source, whole, tmp_path, monkeypatch):
    out, process = tmp_path / "out", ingest_unit.process

    def deleting(task):
        if "v1" in task[1].name:
            shutil.rmtree(out)
        return process(task)

    monkeypatch.setattr("pipelines.ingest.process", deleting)
    with pytest.raises(DataError, match=r"changed while it was written: 2 of 4 videos.*run the same command again"):
        ingest(source, out, **SETTINGS)
    monkeypatch.undo()
    ingest(source, out, **SETTINGS)
    assert files(out) == whole


def test_folder_deleted_under_an_open_writer(tmp_path):
    out = tmp_path / "out"
    writer = ShardWriter(out, unit="id")
    writer.write("k", {"mp4": b"x"})
    shutil.rmtree(out)
    with pytest.raises(DataError, match="deleted while it was written"):
        writer.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True
    ).returncode:  # fmt: skip
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(source, whole, small_disk, tmp_path):
    out = small_disk / "out"
    run = {"run": {"dir": str(tmp_path / "run")}, **SETTINGS}
    with pytest.raises(DataError, match=r"No space left on device.*free space"):
        ingest(source, out, **run)
    assert 0 < len(Shards(out, verify=True)) < 9  # whatever is there is whole
    assert not list(out.rglob(".*.part"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    ingest(source, out, **run)
    assert left(out) == whole


# records and settings


def test_a_damaged_record_is_not_believed(source, whole, tmp_path):
    out = tmp_path / "out"
    ingest(source, out, **SETTINGS)
    for path in (out / "units").iterdir():
        path.write_text(path.read_text().replace('"shards":3', '"shards":0'))
    for path in out.glob("clips-*"):
        path.unlink()
    assert ingest(source, out, **SETTINGS)["skipped_units"] == 1  # the rejected one
    assert files(out) == whole


def test_a_manifest_in_the_place_of_another_is_made_again(source, whole, tmp_path):
    out = tmp_path / "out"
    ingest(source, out, **SETTINGS)
    first, second = sorted(out.glob("clips-*-0000[01].json"))[:2]
    shutil.copy(second, first)
    with pytest.raises(DataError, match="is not whole"):
        Shards(out)
    ingest(source, out, **SETTINGS)
    assert files(out) == whole


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    encode(videos.scene(20), 20, folder / "v.mp4")
    data, digest = (folder / "v.mp4").read_bytes(), disk.file_sha256
    (folder / "v.mp4").write_bytes(data[:2000])

    def slow(path):
        value = digest(path)
        (folder / "v.mp4").write_bytes(data)  # the copy goes on
        return value

    monkeypatch.setattr(disk, "file_sha256", slow)
    ingest(folder, out, **SETTINGS)
    monkeypatch.undo()
    before = Shards(out).fingerprint()
    assert ingest(folder, out, **SETTINGS)["skipped_units"] == 0
    assert Shards(out).entries[0].meta["source_sha256"] == disk.file_sha256(folder / "v.mp4")
    assert Shards(out).fingerprint() != before
    assert ingest(folder, out, **SETTINGS)["skipped_units"] == 1


def test_a_crash_does_not_overwrite_the_success_of_a_twin(source, tmp_path, monkeypatch):
    out, process = tmp_path / "out", ingest_unit.process

    def late_crash(task):
        process(task)
        raise ZeroDivisionError

    monkeypatch.setattr("pipelines.ingest.process", late_crash)
    ingest(source, out, **SETTINGS)
    assert rejections(out) == {"bad.mp4": "unreadable"}


def test_only_one_of_two_settings_claims_a_folder(tmp_path):
    jobs = [make_job(config("x", tmp_path / "out", crf=crf)) for crf in range(20, 28)]
    (tmp_path / "out").mkdir()
    statuses = [wait(pid) for pid in [fork(lambda job=job: claim(job.out, job.settings())) for job in jobs]]
    assert statuses.count(0) == 1
    settings = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert settings["fingerprint"] == jobs[statuses.index(0)].fingerprint()


def test_remote_folders_are_read_only(source, tmp_path):
    for out in ("s3://bucket/clips", "memory://clips"):
        with pytest.raises(DataError, match="written to a local folder"):
            main.function(config(source, out, run={"dir": str(tmp_path)}))
        with pytest.raises(DataError, match="written to a local folder"):
            ShardWriter(out)


def test_verify_finds_nothing_to_complain_about(source, tmp_path):
    ingest(source, tmp_path / "out", **SETTINGS)
    report = verify.check(tmp_path / "out")
    assert (report.damage, report.indexes) == ([], [])
    assert report.numbers["samples"] == 9
