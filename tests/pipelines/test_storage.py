"""Shards at any fsspec address: the same samples and the same batches as from the local folder."""

import functools
import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader

from foundation.pretraining.data import ShardData
from pipelines import storage, verify
from pipelines.command import CONFIGS
from pipelines.filter import Kept
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter
from pipelines.stream import StepSampler
from tests.conftest import write_play
from tests.pipelines.server import serve

EXTENSIONS = ("mp4", "npz", "json")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_play(tmp_path_factory.mktemp("data") / "clips", videos=3)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))


@pytest.fixture
def server(clips):
    with serve(clips.parent) as started:
        yield started


@pytest.fixture(params=["memory", "http", "zip", "simplecache", "file"])
def remote(request, clips, tmp_path):
    """The address of a copy of the clips."""
    kind = request.param
    if kind == "memory":
        fsspec.filesystem("memory").put(str(clips), "/clips", recursive=True)
        yield "memory://clips"
        fsspec.filesystem("memory").rm("/clips", recursive=True)
    elif kind == "zip":
        yield f"zip://clips::{shutil.make_archive(tmp_path / 'all', 'zip', clips.parent)}"
    elif kind == "file":
        yield f"file://{clips}"
    else:
        with serve(clips.parent) as started:
            prefix = "simplecache::" if kind == "simplecache" else ""
            yield f"{prefix}{started.address}/clips"


def equal(a, b):
    assert [entry.key for entry in a.entries] == [entry.key for entry in b.entries]
    assert a.fingerprint() == b.fingerprint()
    for entry in a.entries:
        for extension in EXTENSIONS:
            assert a.read(entry.key, extension) == b.read(entry.key, extension)


def test_samples_are_those_of_the_local_folder(clips, remote):
    shards = Shards(remote, verify=True)
    equal(Shards(clips), shards)
    equal(Shards(clips), pickle.loads(pickle.dumps(shards)))
    assert verify.check(remote).damage == []


@functools.cache
def settings():
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("pretrain", ["method=idm", "data.length=16", "data.stride=8", "data.batch_size=2"]).data


def batches(train, **change):
    """The first batches of `foundation.pretrain data.train=...`."""
    options = {**settings(), "train": str(train), **change}
    options.pop("_target_")
    data = ShardData(**options, steps=3, seed=3)
    sampler = StepSampler(len(data.dataset), data.batch_size, data.steps, data.seed)
    return list(DataLoader(data.dataset, batch_sampler=sampler, num_workers=data.workers))


@pytest.fixture(scope="module")
def expected(clips):
    return batches(clips)


def same(a, b):
    assert len(a) == len(b) == 3
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[name], y[name]) for name in x)


def test_batches_are_those_of_the_local_folder(expected, remote):
    same(expected, batches(remote, cache_gb=0.0))


def test_loader_processes_read_over_the_network(expected, server):
    """Workers are forked after the parent has used the connection."""
    same(expected, batches(f"{server.address}/clips", workers=2, cache_gb=0.0))


def test_labels_and_validation_may_be_elsewhere_too(expected, server):
    address = f"{server.address}/clips"
    same(expected, batches(address, labels=address, validation=address))


def test_kept_reads_remote_shards(clips, server, tmp_path):
    keys = [entry.key for entry in Shards(clips).entries][::2]
    (tmp_path / "keep.txt").write_text("\n".join(keys))
    equal(Kept(clips, tmp_path / "keep.txt"), Kept(f"{server.address}/clips", tmp_path / "keep.txt"))


def test_only_the_parts_that_are_needed_travel(clips, server):
    shards = Shards(f"{server.address}/clips")
    key = shards.entries[4].key
    server.requests.clear()
    data = shards.read(key, "npz")
    assert len(data) < 5000
    (request,) = [wanted for path, wanted in server.requests if path.endswith(".tar")]
    first, last = map(int, request.removeprefix("bytes=").split("-"))
    assert last - first + 1 == len(data)


# servers with faults


def test_a_server_that_hiccups_is_asked_again(clips, server):
    shards = Shards(f"{server.address}/clips")
    key = shards.entries[0].key
    server.failures = 2
    assert shards.read(key, "mp4") == Shards(clips).read(key, "mp4")
    server.failures = 3
    with pytest.raises(storage.ShardError, match=r"tried three times.*503"):
        shards.read(key, "mp4")


def test_a_server_without_lists_needs_a_listing(clips, tmp_path):
    copy = shutil.copytree(clips, tmp_path / "clips")
    with serve(tmp_path, lists=False) as server:
        address = f"{server.address}/clips"
        with pytest.raises(DataError, match=r"cannot list it.*listing\.txt.*ls >"):
            Shards(address)
        (copy / storage.LISTING).write_text("".join(f"{name}\n" for name in sorted(os.listdir(copy))))
        equal(Shards(clips), Shards(address))


def test_a_server_without_ranges_is_told(clips):
    with serve(clips.parent, ranges=False) as server:
        shards = Shards(f"{server.address}/clips")
        with pytest.raises(DataError, match=r"sends whole files.*simplecache::http"):
            shards.read(shards.entries[0].key, "npz")
        cached = Shards(f"simplecache::{server.address}/clips")
        assert cached.read(cached.entries[0].key, "npz") == Shards(clips).read(cached.entries[0].key, "npz")


def test_damage_is_found_over_the_network(clips, tmp_path):
    copy = shutil.copytree(clips, tmp_path / "clips")
    first, second = sorted(copy.glob("*.tar"))[:2]
    first.unlink()
    with serve(tmp_path) as server:
        address = f"{server.address}/clips"
        with pytest.raises(DataError, match=r"clips-00000\S+ is missing"):
            Shards(address)
        os.truncate(second, 1000)
        with pytest.raises(DataError, match=r"2 shards are damaged.*\(1000 of"):
            Shards(address)
        assert len(Shards(address, on_damage="set_aside")) == 0
        assert len(verify.check(address).damage) == 2


def test_lost_index_is_rebuilt_over_the_network(clips, tmp_path):
    copy = shutil.copytree(clips, tmp_path / "clips")
    for path in copy.glob("*.index"):
        path.unlink()
    with serve(tmp_path) as server:
        equal(Shards(clips), Shards(f"{server.address}/clips"))


# addresses


def test_bad_addresses_are_told(tmp_path):
    for address, message in [
        ("nonsense://x/y", "cannot open nonsense"), ("http://127.0.0.1:9/clips", "tried three times.*[Cc]onnect"),
        ("memory://empty", "no shards found at"), (tmp_path / "nowhere", "no folder of shards"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            Shards(address)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named():
    with pytest.raises(DataError, match=r"not installed \(Install s3fs"):
        Shards("s3://bucket/clips")


@pytest.mark.parametrize(
    ("address", "remote"),
    [("data/clips", False), (Path("/a/b"), False), ("file:///a/b", False), ("local://a", False), ("s3://b/c", True),
     ("simplecache::s3://b/c", True), ("C:/data", False)],
)  # fmt: skip
def test_which_addresses_are_remote(address, remote):
    assert storage.is_remote(address) is remote
    if remote:
        with pytest.raises(DataError, match="written to a local folder"):
            storage.local(address, "out")


def test_hydra_takes_addresses():
    for address in ("http://127.0.0.1:80/clips", "s3://bucket/a/b", "simplecache::s3://bucket/a"):
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            assert compose("pretrain", [f"data.train={address}"]).data.train == address


def test_a_folder_written_here_and_copied_there(tmp_path):
    """As the error of a remote out= advises."""
    with ShardWriter(tmp_path / "local", unit="u") as writer:
        writer.write("k", {"mp4": b"data", "json": {}})
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "local"), "/copied", recursive=True)
    assert Shards("memory://copied").read("k", "mp4") == b"data"
    manifest = json.loads(memory.cat_file("/copied/clips-00000.json"))
    assert manifest["samples"] == 1
    memory.rm("/copied", recursive=True)
