"""Shards: equal bytes for equal samples, random access, every kind of damage, and other tools' files."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from pipelines import gc, tars
from pipelines import manifest as disk
from pipelines.schema import DataError, SampleMeta
from pipelines.shards import Shards, ShardWriter


def sample(index, size=100):
    key = f"abc-{index:08d}"
    meta = SampleMeta(key, "ü 'x'.mp4", "0" * 64, (index * 10, index * 10 + 10), 17.5, 64, 80)
    arrays = {"keys": np.arange(6, dtype=np.uint8).reshape(2, 3) + index, "mouse": np.full((4, 2), index, np.float32)}
    return key, {"mp4": bytes([index]) * (size + index), "npz": arrays, "json": meta}


def fill(root, count=5, per_shard=2, **settings):
    with ShardWriter(root, samples_per_shard=per_shard, **settings) as writer:
        for index in range(count):
            writer.write(*sample(index))
    return root


def files(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if path.is_file()}


def tar_files(root):
    return sorted(root.glob("*.tar"))


def test_what_is_written_is_read_back(tmp_path):
    shards = Shards(fill(tmp_path), verify=True)
    assert len(shards) == 5
    assert [entry.key for entry in shards.entries] == [sample(i)[0] for i in range(5)]
    for index in (4, 0, 3):
        key, members = sample(index)
        assert shards.read(key, "mp4") == members["mp4"]
        assert shards.meta(key) == members["json"]
        assert shards.entry(key).meta["source"] == "ü 'x'.mp4"  # without touching the tar
        for name, array in members["npz"].items():
            np.testing.assert_array_equal(shards.arrays(key)[name], array)
            assert shards.arrays(key)[name].dtype == array.dtype
    assert [m["samples"] for m in shards.manifests] == [2, 2, 1]
    assert [m["frames"] for m in shards.manifests] == [20, 20, 10]


def test_equal_samples_give_equal_bytes(tmp_path):
    assert files(fill(tmp_path / "a")) == files(fill(tmp_path / "b"))
    assert Shards(tmp_path / "a").fingerprint() == Shards(tmp_path / "b").fingerprint()
    assert Shards(fill(tmp_path / "c", count=4)).fingerprint() != Shards(tmp_path / "a").fingerprint()


def test_tars_carry_no_time_owner_or_host(tmp_path):
    with tarfile.open(tar_files(fill(tmp_path))[0]) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
        assert archive.getnames() == sorted(archive.getnames())


def test_stock_webdataset_reads_ours(tmp_path):
    import webdataset

    dataset = webdataset.WebDataset([str(path) for path in tar_files(fill(tmp_path))], shardshuffle=False)
    got = {item["__key__"]: item for item in dataset}
    assert list(got) == [sample(i)[0] for i in range(5)]
    assert got["abc-00000003"]["mp4"] == sample(3)[1]["mp4"]
    assert json.loads(got["abc-00000003"]["json"])["fps"] == 17.5


def test_ours_reads_stock_webdataset_after_adoption(tmp_path):
    import webdataset

    for shard in range(2):
        with open(tmp_path / f"stock.{shard}.tar", "wb") as file, webdataset.TarWriter(file) as writer:
            for index in (2 * shard, 2 * shard + 1):
                key, members = sample(index)
                writer.write({"__key__": key, "mp4": members["mp4"], "json": members["json"].to_dict()})
    with pytest.raises(DataError, match="adopt=true"):
        Shards(tmp_path)
    assert tars.adopt(tmp_path) == 2
    shards = Shards(tmp_path, verify=True)
    assert len(shards) == 4
    assert shards.read("abc-00000002", "mp4") == sample(2)[1]["mp4"]
    assert tars.adopt(tmp_path) == 0


@pytest.mark.parametrize("key", ["a.b", "../a", "/a", "a/b", "", "ä", "a" * 129, "a\n"])
def test_key_grammar(tmp_path, key):
    with pytest.raises(DataError, match="not of the form"), ShardWriter(tmp_path) as writer:
        writer.write(key, {"mp4": b"x"})
    assert not tar_files(tmp_path)


def test_writer_refuses_bad_samples(tmp_path):
    with pytest.raises(DataError, match="written twice"), ShardWriter(tmp_path) as writer:
        [writer.write("a", {"mp4": b"x"}) for _ in range(2)]
    with pytest.raises(DataError, match="Python objects"), ShardWriter(tmp_path) as writer:
        writer.write("a", {"npz": {"x": np.array([{}])}})
    with pytest.raises(DataError, match="must be bytes"), ShardWriter(tmp_path) as writer:
        writer.write("a", {"mp4": "text"})
    with pytest.raises(ValueError, match="JSON"), ShardWriter(tmp_path) as writer:
        writer.write("a", {"json": {"x": float("nan")}})
    assert files(tmp_path) == {}  # nothing left behind


def test_second_writer_does_not_overwrite(tmp_path):
    fill(tmp_path)
    with pytest.raises(DataError, match="already holds"):
        ShardWriter(tmp_path)
    fill(tmp_path, prefix="more", count=0)
    assert len(Shards(tmp_path)) == 5


def test_units_appear_whole_or_not_at_all(tmp_path):
    writer = ShardWriter(tmp_path, "u", samples_per_shard=1, unit="id")
    for index in range(3):
        writer.write(*sample(index))
    assert len(Shards(tmp_path)) == 0
    assert disk.finished(tmp_path, "u", "id") is None
    writer.close()
    assert len(disk.finished(tmp_path, "u", "id")) == 3
    assert disk.finished(tmp_path, "u", "other") is None
    (tmp_path / "u-00001.json").unlink()
    assert disk.finished(tmp_path, "u", "id") is None
    with pytest.raises(DataError, match="unit u is not whole"):
        Shards(tmp_path)
    fill(tmp_path, 2, 1, prefix="u", unit="id")  # made again, shorter: the third part goes
    assert len(Shards(tmp_path)) == 2


def test_aborted_unit_leaves_nothing(tmp_path):
    with pytest.raises(DataError), ShardWriter(tmp_path, samples_per_shard=1, unit="id") as writer:
        [writer.write(*sample(index)) for index in (0, 1, 0)]
    assert files(tmp_path) == {}


# damage


def test_missing_shard_is_told_before_the_first_read(tmp_path):
    tar_files(fill(tmp_path))[1].unlink()
    with pytest.raises(DataError, match="is missing"):
        Shards(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_cut_shard(tmp_path, share):
    path = tar_files(fill(tmp_path))[0]
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match="is cut or changed"):
        Shards(tmp_path)


def test_damaged_payload_is_found_by_reading_and_by_verifying(tmp_path):
    path = tar_files(fill(tmp_path))[0]
    data = bytearray(path.read_bytes())
    at = data.index(sample(1)[1]["mp4"])
    data[at + 50] ^= 1
    path.write_bytes(data)
    shards = Shards(tmp_path)
    assert shards.read("abc-00000000", "mp4") == sample(0)[1]["mp4"]
    with pytest.raises(DataError, match="crc32"):
        shards.read("abc-00000001", "mp4")
    with pytest.raises(DataError, match="damaged"):
        Shards(tmp_path, verify=True)


def test_lost_index_is_rebuilt_but_not_from_a_damaged_tar(tmp_path):
    fill(tmp_path)
    for path in tmp_path.glob("*.index"):
        path.unlink()
    assert Shards(tmp_path).read("abc-00000002", "mp4") == sample(2)[1]["mp4"]
    path = tar_files(tmp_path)[1]
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        Shards(tmp_path).read("abc-00000002", "mp4")


def test_index_of_another_tar_is_not_believed(tmp_path):
    fill(tmp_path)
    first, second = sorted(tmp_path.glob("*.index"))[:2]
    first.write_bytes(second.read_bytes())
    assert Shards(tmp_path).read("abc-00000000", "mp4") == sample(0)[1]["mp4"]


def test_replaced_shard_of_equal_size(tmp_path):
    first, second = tar_files(fill(tmp_path, 4))[:2]
    second.write_bytes(first.read_bytes())
    for path in tmp_path.glob("*.index"):
        path.unlink()
    if first.stat().st_size == second.stat().st_size:
        with pytest.raises(DataError, match="damaged"):
            Shards(tmp_path).read("abc-00000002", "mp4")


def test_duplicate_keys_over_shards(tmp_path):
    fill(tmp_path, 2, prefix="a")
    fill(tmp_path, 2, prefix="b")
    with pytest.raises(DataError, match="2 sample keys occur twice"):
        Shards(tmp_path)
    assert len(Shards(tmp_path, prefix="a")) == 2


def test_manifests_are_checked(tmp_path):
    path = fill(tmp_path) / "clips-00000.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"schema": 99}, "schema 99"), ({"file": "../x.tar"}, "outside its folder"), ({"samples": 7}, "counts 7"),
    ]:  # fmt: skip
        path.write_bytes(disk.sealed({**good, **change}))
        with pytest.raises(DataError, match=message):
            Shards(tmp_path)
    path.write_text(json.dumps(good).replace("[10, 20]", "[10, 21]"))
    with pytest.raises(DataError, match="checksum differs"):
        Shards(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Shards(tmp_path)
    path.write_text("[]")
    with pytest.raises(DataError, match="not a shard manifest"):
        Shards(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["../a.mp4"], "not of the form"), (["v1.2/a.mp4"], "no plain extension"), (["a.mp4", "a.mp4"], "duplicate"),
     (["a"], "no plain extension"), ([], "no sample")],
)  # fmt: skip
def test_foreign_tars_must_follow_the_grammar(tmp_path, names, message):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match=message):
        tars.build_index(tmp_path / "x.tar")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 5000])
def test_what_is_no_tar(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError):
        tars.build_index(tmp_path / "x.tar")


def test_disk_full_leaves_no_partial_shard(tmp_path):
    """A file-size limit stands in for a full disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from pipelines.shards import ShardWriter; from pipelines.schema import DataError\n"
        "try:\n"
        "    with ShardWriter(sys.argv[1]) as writer:\n"
        "        for i in range(9): writer.write(f'k{i}', {'mp4': bytes(100_000), 'json': {}})\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "cannot write into" in done.stdout
    assert files(tmp_path) == {}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another"):
        ShardWriter(tmp_path / "file" / "x")
    with pytest.raises(DataError, match="no folder of shards"):
        Shards(tmp_path / "nowhere")


def test_garbage_is_what_no_manifest_names(tmp_path):
    fill(tmp_path)
    before = files(tmp_path)
    (tmp_path / ".123.tar.part").write_bytes(b"x")
    (tmp_path / "clips-00000-000000000000.tar").write_bytes(b"x")
    assert gc.collect(tmp_path) == 0  # younger than the lease
    assert gc.collect(tmp_path, older_than_seconds=0) == 2
    assert files(tmp_path) == before


def test_reader_survives_pickling_and_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    shards = Shards(fill(tmp_path, 40, 3))
    shards.read("abc-00000000", "mp4")
    copy = pickle.loads(pickle.dumps(shards))
    keys = [entry.key for entry in shards.entries] * 5
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda k: copy.read(k, "mp4"), keys)) == [shards.read(k, "mp4") for k in keys]


def test_unknown_names_are_told(tmp_path):
    shards = Shards(fill(tmp_path))
    with pytest.raises(DataError, match="no sample 'x'"):
        shards.read("x", "mp4")
    with pytest.raises(DataError, match=r"has no \.jpg"):
        shards.read("abc-00000000", "jpg")
    assert "abc-00000000" in shards
    assert "x" not in shards
