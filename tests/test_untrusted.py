"""Nothing that came from elsewhere is executed, and nothing in it makes us allocate, loop or read without bound."""

import importlib.util
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml

from foundation import run_files
from foundation.envs import registry
from models.heads import FactoredHead
from pipelines import checkpoint, clips, manifest, tars, untrusted, vpt_release
from pipelines.actions import DOOM, ActionCodec, ActionSpec
from pipelines.contractor import read_contractor, read_index
from pipelines.embedding import Clip
from pipelines.labeller import Labeller, Settings
from pipelines.recordings import FORMAT, LogError, read_recording
from pipelines.schema import DataError, SampleMeta
from pipelines.shards import Shards, ShardWriter, unpack
from pipelines.stream import FrameStore
from pipelines.video import VideoError, encode, open_clip, open_reader, probe, scan

NET = {"_target_": "models.heads.FactoredHead", "width": 4, "n_keys": 6, "n_bins": 15}
POLICY = {
    "_target_": "models.video_policy.VideoPolicy", "height": 16, "width": 20, "n_buttons": 4, "n_camera": 9,
    "camera_on": [True] * 4, "camera_null": 4, "context": 4, "channels": [4], "dim": 8, "layers": 1, "heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def bounded():
    """Each attack here aims at gigabytes or hours; a defended one costs next to nothing."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB
    assert time.monotonic() - start < 20


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# hub folders


@pytest.fixture
def folder(tmp_path):
    return checkpoint.save(tmp_path / "hub", NET, FactoredHead(4, 6, 15), {"actions": DOOM, "size": (64, 80)}, "")


def edit(folder, change):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "net",
    [
        {"_target_": "models.heads.FactoredHead", "width": 1 << 19, "n_keys": 1 << 19, "n_bins": 11},
        {"_target_": "models.heads.FactoredHead", "width": 10**12, "n_keys": 10**12, "n_bins": 11},
        {**POLICY, "layers": 1 << 20},
        {**POLICY, "channels": [1 << 19, 1 << 19]},
        {**POLICY, "dim": float("nan")},
        {"_target_": "models.heads.Factored", "key_log_probs": 1, "camera_log_probs": 1},  # no network
        {"_target_": "models.heads.FactoredHead.forward", "latent": 1},
        {"_target_": "models..heads.FactoredHead"},
        {"_target_": ["models.heads.FactoredHead"]},
        [NET],
        "models.heads.FactoredHead",
    ],
)
def test_a_config_cannot_build_more_than_its_weights(folder, net):
    edit(folder, lambda config: config.update(net=net))
    with pytest.raises(DataError):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 5}, {"size": [10**9, 10**9]}, {"size": ["a", "b"]}, {"size": [64]}, {"fps": float("nan")},
        {"fps": "fast"}, {"fps": -1.0}, {"actions": 7}, {"actions": {**DOOM.to_dict(), "camera_bins": 10**9 + 1}},
        {"actions": {**DOOM.to_dict(), "groups": 3}}, {"weights_sha256": 5},
    ],
)  # fmt: skip
def test_the_contract_of_a_hub_folder_is_checked(folder, values):
    edit(folder, lambda config: config.update(values))
    with pytest.raises(DataError):
        checkpoint.load(folder)


LAUGHS = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS, LAUGHS.replace("[1, 1]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n"), "[" * 1000,
        "a: " * 1000, "a: " + "1" * 9000, "a: 2001-99-99", b"\xff\xfe", "a: \0", "x: y\n" * (1 << 18), "? [a]\n: 1",
        "net: !!python/object/apply:os.mkdir ['owned']",
    ],
)  # fmt: skip
def test_yaml_that_multiplies_nests_or_acts(folder, text):
    (folder / "config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=r"plain YAML|too many"):
        checkpoint.load(folder)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "1" * 9000, "[]", "7", '{"label_report": 5}', '{"a": "' + "x" * (17 << 20) + '"}', "\udcff"]
)
def test_statistics_that_are_none(folder, text):
    (folder / "statistics.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        checkpoint.load(folder)


def test_a_label_report_of_odd_shape_is_told(tmp_path):
    net = {
        "_target_": "models.inverse_dynamics.InverseDynamics", "height": 32, "width": 40, "n_keys": 6, "n_bins": 15,
        "window": 8, "channels": [4, 4], "dim": 16, "layers": 1, "heads": 2,
    }  # fmt: skip
    report = {"label_report": {"keys": {"attack": 3}}}
    extras = {"actions": DOOM, "size": (32, 40), "fps": 17.5, "statistics": report}
    checkpoint.save(tmp_path, net, checkpoint.build(net), extras, "")
    with pytest.raises(DataError, match="label report"):
        Labeller(tmp_path, Settings(), "cpu").gate()


def test_numbers_that_only_serve_to_fill_memory_when_acting(tmp_path):
    checkpoint.save(tmp_path, POLICY, checkpoint.build(POLICY), {}, "")
    checkpoint.load(tmp_path)
    edit(tmp_path, lambda config: config["net"].update(context=10**9))  # changes no weight
    with pytest.raises(DataError, match="context"):
        checkpoint.load(tmp_path)


# official weights, checkpoints, other people's models


def test_pickled_weights_never_run(tmp_path):
    path = tmp_path / "x.weights"
    for data in (pickle.dumps(Payload(tmp_path / "ran")), zipped(data=pickle.dumps(Payload(tmp_path / "ran")))):
        path.write_bytes(data)
        for read in (vpt_release.load_weights, vpt_release.load_model_file):
            with pytest.raises(DataError):
                read(path)
    assert not (tmp_path / "ran").exists()


def zipped(data, **options):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", **options) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3\n")
    return target.getvalue()


def test_compressed_weights_are_refused_before_they_unpack(tmp_path):
    path = tmp_path / "x.weights"
    path.write_bytes(zipped(bytes(1 << 24), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(DataError, match="compressed"):
        vpt_release.load_weights(path)


def test_settings_that_fill_memory(tmp_path):
    path = tmp_path / "x.model"
    table = b"\x80\x04]r\xff\xff\xff\x7f."  # one reference numbered 2,147,483,647
    laughs = [1]
    for _ in range(64):
        laughs = [laughs] * 8
    nested, long = b"]" * 100_000 + b"a" * 99_999 + b".", b"\x8e" + b"\xff" * 7 + b"\x7f."
    for data in (table, pickle.dumps(laughs), nested, long):
        path.write_bytes(data)
        with pytest.raises(DataError):
            vpt_release.load_model_file(path)


def test_a_clip_model_that_is_a_pickle_is_refused(tmp_path):
    pytest.importorskip("transformers")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 32, "projection_dim": 4, "model_type": "clip_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps(vision))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(DataError, match="safetensors"):
        Clip(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_a_run_are_read_weights_only():
    """`torch.load` and Lightning resume without `weights_only=True` nowhere in the packages."""
    root = Path(importlib.util.find_spec("pipelines").origin).parents[1]
    for path in [p for package in ("models", "pipelines", "foundation") for p in (root / package).rglob("*.py")]:
        text = path.read_text()
        for call in ("torch.load(", "load_from_checkpoint("):
            for part in text.split(call)[1:]:
                assert "weights_only=True" in part[:200], f"{path}: {call}"
        if "ckpt_path=" in text:
            assert "weights_only=True" in text, path
        assert "import pickle" not in text or path.name == "vpt_release.py", path


# tasks


@pytest.mark.parametrize(
    "env",
    [
        {"_target_": "os.mkdir", "path": "owned"},
        {"_target_": "foundation.envs.recording.os.mkdir", "path": "owned"},
        {"_target_": "foundation.envs.doom.DoomEnv", "size": {"_target_": "os.mkdir", "path": "owned"}},
        {"_target_": "foundation.envs.doom.DoomEnv", "maps": [{"_target_": "foundation.training.ctypes.CDLL"}]},
        {"_target_": "foundation.envs.registry.instantiate"}, {"size": [64, 80]},
    ],
)  # fmt: skip
def test_a_task_builds_our_own_classes_only(env):
    with pytest.raises(DataError, match="package foundation"):
        registry.make({"name": "x", "env": env})
    assert not Path("owned").exists()


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


def meta(frames=8, size=(16, 16)):
    return SampleMeta("k", "v.mp4", "0" * 64, (0, frames), 10.0, *size).to_dict()


def write_shard(root, video, sample):
    with ShardWriter(root, "clips") as writer:
        writer.write("k", {"mp4": video, "npz": {"pts": np.arange(3)}, "json": sample})


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


# video


SMALL = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)


def bomb(count):
    """An MP4 of 4 KB whose tables promise `count` samples of one byte."""
    data = bytearray(encode(SMALL, 10))
    at = data.find(b"stsz")
    data[at + 8 : at + 16] = struct.pack(">II", 1, count)
    at = data.find(b"stsc")
    data[at + 16 : at + 20] = struct.pack(">I", count)
    data[(at := data.find(b"stss")) : at + 4] = b"free"
    return bytes(data)


def fragmented(count):
    """A fragmented MP4 whose one run promises `count` samples of the default size."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i, image in enumerate(SMALL):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = bytearray(target.getvalue())
    at = data.find(b"trun")
    data[at + 4 : at + 12] = struct.pack(">II", 1, count)
    return bytes(data)


def hidden(data):
    """The same file with a box of an odd name before it, so that its first bytes do not say MP4."""
    return struct.pack(">I4s", 16, b"\0\0\0x") + bytes(8) + data


def enveloped(data):
    """The header inside a box called `free`, where one demuxer looks for it."""
    return data.replace(b"moov", b"free", 1)


@pytest.mark.parametrize("count", [10**6, 2**28, 2**31, 2**32 - 1])
@pytest.mark.parametrize("shape", [lambda data: data, hidden, enveloped])
@pytest.mark.parametrize("make", [bomb, fragmented])
def test_tables_that_promise_billions_of_frames(tmp_path, make, shape, count):
    data = shape(make(count))
    (tmp_path / "a.mp4").write_bytes(data)
    for source in (data, tmp_path / "a.mp4"):
        for read in (scan, probe, open_reader):
            with pytest.raises(VideoError):
                read(source)


def test_ordinary_tables_pass(tmp_path):
    assert len(scan(encode(SMALL, 10))) == len(SMALL)
    assert len(scan(encode(SMALL, 10, tmp_path / "a.mkv"))) == len(SMALL)


def test_videos_that_are_scripts_open_nothing(tmp_path):
    encode(SMALL, 10, tmp_path / "secret.mp4")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
    for text in (
        "ffconcat version 1.0\nfile 'secret.mp4'\n", playlist.format("secret.mp4"),
        playlist.format(tmp_path / "secret.mp4"), "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 0 RTP/AVP 96\n",
    ):  # fmt: skip
        for name in ("a.mp4", "a.m3u8", "a.sdp", "a.ffconcat"):
            (tmp_path / name).write_text(text)
            with pytest.raises(VideoError):
                scan(tmp_path / name)
        with pytest.raises(VideoError):
            scan(text.encode())


def write_packets(path, times):
    """A Matroska file of frames at the given milliseconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for image, milliseconds in zip(SMALL, times, strict=False):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = None
            for packet in stream.encode(frame):
                packet.pts = packet.dts = milliseconds
                packet.time_base = Fraction(1, 1000)
                file.mux(packet)
    return path


def test_frames_years_apart_do_not_fill_the_disk(tmp_path):
    table = scan(write_packets(tmp_path / "a.mkv", [0, 1, 2, 3, 10**8, 10**8 + 1]))
    assert len(table) == 6 and table.pts[-1] * table.time_base > 10**5
    for fps in (100.0, "source"):
        with pytest.raises(VideoError, match=r"too_long|timestamps"):
            clips.plan(table, fps)


def test_a_file_of_more_frames_than_anyone_records(monkeypatch):
    monkeypatch.setattr("pipelines.video.MAX_FRAMES", 5)
    with pytest.raises(VideoError, match="too_long"):
        scan(encode(SMALL, 10))


def test_a_header_that_promises_huge_pictures(tmp_path):
    """The size in the container and the size in the stream are both attacks; neither is believed unseen."""
    data = encode(SMALL, 10)
    at = data.find(b"avc1") + 28
    for width, height in ((65535, 65535), (32768, 16384)):
        wide = data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]
        with suppress(VideoError):
            assert probe(wide).height == 32  # the stream's own size counts
    big = encode(np.zeros((2, 1200, 1600, 3), np.uint8), 10)
    for read in (scan, probe):
        with pytest.raises(VideoError, match="too_large"):
            read(big, max_pixels=10**6)


def test_a_clip_that_is_not_what_its_metadata_say(tmp_path):
    video = encode(SMALL, 10)
    with open_clip(video, meta(8, (32, 32))) as reader:
        assert reader.frames(range(8)).shape == (8, 32, 32, 3)
    for wrong in (meta(9, (32, 32)), meta(8, (16, 16)), meta(1 << 40, (32, 32))):
        with pytest.raises(VideoError, match="metadata"):
            open_clip(video, wrong)
    write_shard(tmp_path, video, meta(8, (16, 16)))
    with pytest.raises(VideoError, match="metadata"):
        FrameStore(Shards(tmp_path)).rows("k", [0])


def test_more_frames_at_once_than_memory(monkeypatch):
    monkeypatch.setattr("pipelines.decoders.MAX_DECODED_BYTES", 10_000)
    with pytest.raises(DataError, match="too many"):
        open_reader(encode(SMALL, 10)).frames(range(8))


# text files


def test_limits_of_text(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"[1]")
    assert untrusted.read_json(path, 3) == [1]
    for limit, data in ((2, b"[1]"), (1 << 20, b"[" * 100_000), (1 << 20, b"\xff"), (1 << 20, b"")):
        path.write_bytes(data)
        with pytest.raises(DataError):
            untrusted.read_json(path, limit)
    loop = []
    loop.append(loop)
    with pytest.raises(DataError, match="refused"):
        untrusted.bounded(loop, "x")


def test_reports_survive_files_of_runs_from_elsewhere(tmp_path):
    (tmp_path / "summary.json").write_text("[" * 100_000)
    (tmp_path / "config.yaml").write_text(LAUGHS)
    (tmp_path / "rejected.jsonl").write_text("[" * 100_000 + "\n")
    run = run_files.read(tmp_path, "x")
    assert len(run.problems) == 2
    assert run.rejected == {"(unreadable line)": 1}


def test_the_random_stream_of_torch_is_left_alone(folder):
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    checkpoint.load(folder)
    assert torch.equal(before, torch.rand(1))
