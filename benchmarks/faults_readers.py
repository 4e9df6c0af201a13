"""Kinds of input without checksums: the user's own videos and action logs, text that commands leave or read."""

import json
import shutil
import zlib

import av
import numpy as np
from omegaconf import OmegaConf

from benchmarks.faults_kinds import CORRECT, OTHER, PART, REJECTED, SILENT, Kind, compose, run_ingest
from benchmarks.faults_processes import command
from benchmarks.faults_world import FPS, FRAMES, INGEST, NET_IDM, TRAINING, scene, write_log
from foundation import report, run_files
from pipelines import schema
from pipelines.command import CONFIGS
from pipelines.pixels import Resizer, encode
from pipelines.shards import Shards
from pipelines.video import decode


class Films(Kind):
    """Videos, read by ingest; what it accepts is compared picture by picture with the whole file."""

    name, weight = "videos", 25

    def __init__(self, root):
        compose("ingest", *INGEST, "workers=0")
        self.homes = [root / "films" / name for name in ("stored", "b-frames", "matroska")]
        for home in self.homes:
            home.mkdir(parents=True)
        encode(scene(FRAMES, 0), FPS, self.homes[0] / "v.mp4")
        write_b_frames(self.homes[1] / "v.mp4", scene(FRAMES, 1))
        encode(scene(FRAMES, 2), FPS, self.homes[2] / "v.mkv")

    def read(self, folder):
        notes = run_ingest(folder)
        video, resizer = next(folder.glob("v.*")), Resizer()
        return notes, {pts: zlib.crc32(resizer.rgb(frame)) for pts, frame in decode(video)}

    def judge(self, expected, got):
        if got[1] == expected[1]:
            return CORRECT
        return PART if got[1].items() < expected[1].items() and got[0] != expected[0] else OTHER


def write_b_frames(path, frames):
    """As cameras and recorders write: long groups of pictures, frames stored out of order."""
    with av.open(str(path), "w") as output:
        options = {"crf": "20", "preset": "veryfast", "bf": "2", "g": "24"}
        stream = output.add_stream("libx264", rate=20, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


class Logs(Kind):
    """Action logs beside videos, read by ingest. What differs is held to what the damaged text says, read plainly."""

    name, weight, text = "action logs", 15, True

    def __init__(self, root):
        self.homes = [root / "logs" / name for name in ("recording", "contractor")]
        for home in self.homes:
            home.mkdir(parents=True)
            encode(scene(FRAMES, 0), FPS, home / "v.mp4")
        write_log(self.homes[0] / "v.jsonl", FRAMES, 0)
        write_contractor(self.homes[1] / "v.jsonl")

    def victims(self, home):
        return [home / "v.jsonl"]

    def read(self, folder):
        run_ingest(folder)
        shards = Shards(folder / "out", verify=True)
        entries = sorted(shards.entries, key=lambda entry: entry.meta["frames"])
        parts = [shards.arrays(entry.key) for entry in entries]
        names = sorted(set.intersection(*map(set, parts)) - {schema.PTS})
        stored = {name: np.concatenate([part[name] for part in parts]) for name in names}
        stored = {name: array.tolist() for name, array in stored.items()}
        return stored, [entry.meta["actions"] for entry in entries[:1]], folder / "v.jsonl"

    def judge(self, expected, got):
        if got[:2] == expected[:2]:
            return CORRECT
        stored, said = got[0], told_by(got[2])
        return OTHER if all(stored[name] == said[name][: len(stored[name])] for name in said) else SILENT


def told_by(path):
    """{name: list} of what a recording's text says, by json alone; {} for contractor logs, which need computing."""
    lines = path.read_bytes().splitlines(keepends=True)
    if b'"format"' not in lines[0]:
        return {}
    names = json.loads(lines[0])["actions"]["keys"]
    whole = [line for line in lines[1:] if line.endswith(b"\n") or parses(line)]
    told = [json.loads(line) for line in whole]
    held = [[int(name in (row.get("keys") or ())) for name in names] for row in told]
    return {schema.KEYS: held, schema.MOUSE: np.array([row["mouse"] for row in told], np.float32).tolist()}


def parses(line):
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def write_contractor(path):
    """A log in the format of the VPT contractors."""
    rng, pressable, lines = np.random.default_rng(0), ["w", "a", "s", "d", "space", "e", "1", "2"], []
    for i in range(FRAMES):
        keys = [f"key.keyboard.{key}" for key in pressable if rng.random() < 0.3]
        dx, dy = rng.normal(0, 20, 2).round().tolist()
        mouse = {"x": 640.0, "y": 360.0, "dx": dx, "dy": dy, "buttons": [0] * int(i % 3 == 1), "newButtons": []}
        row = {"mouse": mouse, "keyboard": {"keys": keys, "newKeys": [], "chars": ""}, "hotbar": i // 20, "tick": i}
        lines.append({**row, "isGuiOpen": 10 < i < 15})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Runs(Kind):
    """What a run leaves beside its model, read by the report. Text without checksums."""

    name, weight, text, needs = "run folders", 4, True, ("shard tars", "checkpoints")

    def __init__(self, root):
        home = root / "ended"
        shutil.copytree(root / "straight", home, ignore=shutil.ignore_patterns("*.ckpt", "model", "*.log", "hparams*"))
        (home / "rejected.jsonl").write_text('{"file": "v.mp4", "code": "truncated", "detail": "x", "frames": 0}\n' * 3)
        self.homes = [home]

    def read(self, folder):
        report.write(folder.with_suffix(".html"), [folder])
        run = run_files.discover([folder])[0]
        return run.problems, (run.summary, run.metrics, run.config, run.machine, run.rejected)

    def judge(self, expected, got):
        return REJECTED if got[0] else CORRECT if repr(got[1]) == repr(expected[1]) else OTHER


class Configs(Kind):
    """YAML files that a command is configured by, read through its real entry. Text without checksums."""

    name, weight, text, needs = "configs", 6, True, ("shard tars",)

    def __init__(self, root):
        self.homes, self.root = [root / "configs"], root
        shutil.copytree(CONFIGS, self.homes[0])
        self.names = {f"{name}.yaml": name for name in ("ingest", "verify", "label", "pretrain")}
        self.names |= {"method/idm.yaml": "pretrain", "trainer/cpu.yaml": "pretrain"}

    def victims(self, home):
        return [home / name for name in self.names]

    def read(self, folder):
        """-> {command: its resolved config} after real runs of those that the damaged file belongs to."""
        whole = {name: (self.homes[0] / name).read_bytes() for name in self.names}
        changed = {self.names[name] for name in self.names if (folder / name).read_bytes() != whole[name]}
        return {name: self.run(name, folder) for name in sorted(changed or set(self.names.values()))}

    def run(self, name, folder):
        home, root = folder.parent / f"{folder.name}-{name}", self.root
        options = {
            "ingest": (f"videos={root / 'recorded'}", f"out={home / 'out'}", "workers=0", "limit=1", *INGEST),
            "verify": (f"shards={root / 'shards'}",),
            "label": (f"clips={root / 'shards'}", f"idm={root / 'idm'}", f"out={home / 'out'}", "workers=1"),
            "pretrain": (f"data.train={root / 'shards'}", *NET_IDM, *TRAINING, "steps=1", "best=null"),
        }
        module = "foundation.pretrain" if name == "pretrain" else f"pipelines.{name}"
        home.mkdir(exist_ok=True)
        command(module, "--config-path", folder, *options[name], "run.dir=run", cwd=home)
        saved = home / "run" / "config.yaml"
        return saved.read_text() if saved.exists() else ""  # the damage may have changed its place

    def judge(self, expected, got):
        different = [name for name in got if plain(got[name]) != plain(expected[name])]
        return OTHER if different else CORRECT


def plain(text):
    """A saved config without the paths of the case."""
    values = OmegaConf.to_container(OmegaConf.create(text))
    return {name: value for name, value in values.items() if name not in ("out", "hydra")}
