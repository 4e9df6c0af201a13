"""Shards, arrays and action logs from elsewhere: nothing in them is executed or followed, nothing fills the memory."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from pipelines import manifest, tars
from pipelines.actions import DOOM, ActionCodec, ActionSpec
from pipelines.contractor import read_contractor, read_index
from pipelines.recordings import FORMAT, LogError, read_recording
from pipelines.schema import DataError
from pipelines.shards import Shards, unpack
from pipelines.video import encode
from tests.attacks import meta, write_shard

pytestmark = pytest.mark.usefixtures("bounded")

# tars and shards


def header(name, size=0, kind=b"0", raw_size=None):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if raw_size is not None:
        block[124:136] = raw_size
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    "tar",
    [
        header("/etc/passwd.json") + END, header("../a.json") + END, header("a/../../b.json") + END,
        header("./a.json") + END, header("a.json", kind=b"2") + END, header("a.json", kind=b"1") + END,
        header("a.json", kind=b"3") + END, header("a.json", kind=b"6") + END, header("a", kind=b"5") + END,
        header("a.json", kind=b"S") + END, header("a.json", size=1 << 33) + END,
        header("a.json", raw_size=b"\x80" + (1 << 60).to_bytes(11, "big")) + END,
        header("a.json", raw_size=b"\xff" + (256**11 - 512).to_bytes(11, "big")) + END,
        header("a.json") + header("b.json", raw_size=b"\xff" + (256**11 - 512).to_bytes(11, "big")) + END,
        header("x", kind=b"L", raw_size=b"\xff" + (256**11 - 512).to_bytes(11, "big")) + END,
        header("x", kind=b"x", raw_size=b"\x80" + (1 << 60).to_bytes(11, "big")) + END,
        header("x", 30, b"x") + b"30 size=-999999999999999999\n".ljust(512, b"\0") + header("a.json") + END,
        header("a.json") + header("a.json") + END, header("a.b.c/d.json") + END, header("a.json", 3) + b"xyz", b"", END,
    ],
)  # fmt: skip
def test_tars_from_elsewhere(tmp_path, tar):
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(DataError):
        tars.adopt(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar"]


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"[]", b'{"schema": 1}', b"\xff", b" " * (2 << 20) + b"1"])
def test_metadata_in_a_tar_from_elsewhere(tmp_path, text):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in (("a.json", text), ("a.npz", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError):
        tars.adopt(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../x.tar"}, {"file": ".."}, {"file": ""}, {"file": "/etc/passwd"}, {"file": "x.json"}, {"file": 7},
        {"bytes": "many"}, {"samples": 10**12}, {"entries": 5}, {"entries": [7]}, {"schema": 99},
        {"entries": [{"key": "k", "meta": {"frames": [0, 1 << 60]}}]},
        {"entries": [{"key": "k", "meta": {"frames": [5, "a"]}}]}, {"entries": [{"key": "k", "meta": {"frames": 5}}]},
        {"entries": [{"key": "k", "meta": {"height": 1 << 40}}]}, {"entries": [{"key": "k", "meta": {"fps": -1}}]},
    ],
)  # fmt: skip
def test_manifests_from_elsewhere(tmp_path, change):
    write_shard(tmp_path, encode(np.zeros((8, 16, 16, 3), np.uint8), 10), meta())
    path = tmp_path / "clips-00000.json"
    values = {**json.loads(path.read_text()), **change}
    path.write_bytes(manifest.sealed(values))
    with pytest.raises(DataError):
        Shards(tmp_path)


def test_an_index_that_points_beyond_its_tar_is_not_followed(tmp_path):
    write_shard(tmp_path, encode(np.zeros((8, 16, 16, 3), np.uint8), 10), meta())
    path = next(tmp_path.glob("*.index"))
    index = json.loads(path.read_text())
    for span in ([0, 1 << 45, 0], [-512, 512, 0], ["a", 1, 0], [0]):
        members = dict.fromkeys(index["members"], span)
        path.write_bytes(manifest.sealed({**index, "members": members}))
        assert len(Shards(tmp_path).arrays("k")["pts"]) == 3  # rebuilt from the tar


def npy(text, data=b"", compression=zipfile.ZIP_STORED, megabytes=0):
    """An npz of one array with this header, this data, and zeros after it."""
    head = text.encode().ljust(118) + b"\n"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive, archive.open("x.npy", "w") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data)
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return target.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + "0" * 40 + ")}"),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), npy("{'descr': '<f8'}"), npy("(" * 5000),
        npy("'''"), npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", pickle.dumps(1)), npy("[]"),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(8)), npy("if 1:\n  x\n y"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (8,)}", bytes(8), zipfile.ZIP_BZIP2),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (8,)}", bytes(8), zipfile.ZIP_LZMA),
        npy("{'descr': 5, 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    ],
)  # fmt: skip
def test_arrays_from_elsewhere(data):
    with pytest.raises(DataError):
        unpack(data, "x")


def test_an_archive_that_lies_about_its_size_unpacks_no_further():
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (8,)}"
    data = bytearray(npy(head, bytes(8), zipfile.ZIP_DEFLATED, megabytes=600))
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10 + 119 + 8)  # the size of the unpacked member
    with pytest.raises(DataError):
        unpack(bytes(data), "x")


# action logs and specs


@pytest.mark.parametrize(
    "change",
    [
        {"camera_bins": 10**9 + 1}, {"camera_bins": "many"}, {"camera_max": float("inf")}, {"camera_mu": float("nan")},
        {"keys": [f"k{i}" for i in range(40)], "groups": [[f"k{i}"] for i in range(40)], "cancelling": []},
        {"keys": [f"k{i}" for i in range(20_000)], "groups": [], "exclusive": [f"k{i}" for i in range(20_000)],
         "cancelling": []},
        {"keys": 5}, {"groups": [5]}, {"keys": [[]]}, {"exclusive": "forward"}, {"cancelling": ["x"]},
    ],
)  # fmt: skip
def test_action_specs_cannot_make_tables_without_bound(change):
    with pytest.raises(DataError):
        ActionCodec(ActionSpec.from_dict({**DOOM.to_dict(), **change}))


HEADER = {"format": FORMAT, "version": 1, "actions": DOOM.to_dict(), "fps": 10}
ROW = '{"keys": [], "mouse": [0, 0]}\n'


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({**HEADER, "tag": "x" * 20_000}) + "\n" + ROW, json.dumps(HEADER) + "\n" + "[" * 900_000,
        json.dumps(HEADER) + "\n" + " " * (3 << 20) + ROW, json.dumps(HEADER) + "\n" + "[" * 100_000 + "\n" + ROW * 3,
        json.dumps({**HEADER, "actions": {**DOOM.to_dict(), "camera_bins": 10**9 + 1}}) + "\n" + ROW,
    ],
)  # fmt: skip
def test_action_logs_from_elsewhere(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    if text.endswith("[" * 900_000):  # a killed recorder's last line
        assert read_recording(tmp_path / "a.jsonl").notes == ["log_truncated"]
        return
    with pytest.raises(LogError):
        read_recording(tmp_path / "a.jsonl")


def test_a_log_without_end_is_refused(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(json.dumps(HEADER).encode() + b"\n")
        file.truncate(1 << 40)  # sparse
    with pytest.raises(LogError, match="bytes"):
        read_recording(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        {"mouse": [], "keyboard": [1]}, {"mouse": 5, "keyboard": {}}, {"mouse": {"buttons": [[1]]}, "keyboard": {}},
        {"hotbar": "x"}, {"hotbar": 1e400}, {"tick": 10**30}, {"mouse": {"dx": "x"}},
        {"mouse": {"x": [], "y": 1}, "isGuiOpen": True},
    ],
)  # fmt: skip
def test_contractor_logs_from_elsewhere(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps({'mouse': {}, 'keyboard': {}, **row})}\n" * 2)
    with pytest.raises(LogError):
        read_contractor(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.mp4", "a/../../b.mp4", "a\0.mp4"])
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    (tmp_path / "index.json").write_text(json.dumps({"basedir": "x", "relpaths": [name]}))
    with pytest.raises(DataError, match="outside"):
        read_index(tmp_path / "index.json")
