"""The kinds of input that the campaign damages, what reads each of them for real, and how an answer is judged.

A kind has `homes` (folders, of which one file is damaged in a copy), `read(folder)`, which is called once on the whole
folder for the answer and once per damaged copy, and `judge(expected, got)`. DataError and the other errors that
commands turn into a message are rejections; what `judge` may say is CORRECT, REJECTED (the damage was noticed and
told, the rest is right), PART, OTHER or SILENT.
"""

import copy
import functools
import json
import logging
import shutil
import zlib

import av
import hydra
import numpy as np
from omegaconf import OmegaConf

from benchmarks.faults_world import (
    FPS,
    FRAMES,
    INGEST,
    NET_IDM,
    TRAINING,
    command,
    fork,
    scene,
    wait,
    write_log,
    write_videos,
)  # fmt: skip
from foundation import pretrain, report, run_files
from pipelines import checkpoint, ingest, schema, verify
from pipelines.command import CONFIGS, execute
from pipelines.ingest_unit import RETRIED
from pipelines.pixels import Resizer, encode
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.video import decode

CORRECT = "correct"  # what the whole file gives
REJECTED = "rejected"
PART = "in part"  # less than the whole file gives, the rest exact, and the loss is noted with the data
OTHER = "other"  # something else, in a file that carries no checksum: nobody can tell that from another file
SILENT = "silent"  # something else, although it could have been known
REFUSED = "refused"  # in place of a member that was not read


class Crash(Exception):
    """Something that commands caught as an unforeseen error of one item."""


@functools.cache
def compose(name, *overrides):
    """A command's config; cached, so that forks inherit it. Copy it before changing it."""
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose(name, list(overrides))


class Kind:
    """Base: nothing is told, everything that differs is silent."""

    text = False  # whether values in it can be exchanged for others
    needs = ()  # names of kinds whose files it uses

    def victims(self, home):
        """Files of a home that are damaged."""
        return [path for path in sorted(home.rglob("*")) if path.is_file()]

    def judge(self, expected, got):
        return CORRECT if got == expected else SILENT


# videos and action logs: the user's own files, without checksums


def run_ingest(folder, **changes):
    """Ingests a folder into `folder/out` -> {note: how often}. DataError with the reasons if nothing was kept."""
    cfg = copy.deepcopy(compose("ingest", *INGEST, "workers=0"))
    places = {"videos": str(folder), "out": f"{folder / 'out'}", "run": {"dir": f"{folder / 'run'}"}}
    cfg.merge_with(OmegaConf.create({**places, **changes}))
    try:
        execute(ingest.main.function, cfg)
    except DataError:
        check_codes(folder / "out")
        raise
    check_codes(folder / "out")
    if damage := verify.check(folder / "out").damage:
        raise Crash(f"ingest made damaged shards: {damage}")
    records = [json.loads(path.read_text()) for path in (folder / "out" / "units").iterdir()]
    return {note: n for record in records for note, n in record["notes"].items()}


def check_codes(out):
    """Ingest goes on after an unforeseen error of one video; here that is a crash all the same."""
    path = out / "rejected.jsonl"
    for row in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        if row["code"] in RETRIED:
            raise Crash(f"{row['code']}: {row['detail']}")


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


# shards: every byte has a checksum


class Tars(Kind):
    """Tars of trajectory shards, read by key, with damage set aside, and by verify."""

    name, weight = "shard tars", 15
    pattern = ("*.tar",)

    def __init__(self, root):
        self.videos = root / "recorded"
        home = root / "shards"
        if not home.exists():
            write_videos(self.videos, 3)
            run_ingest(self.videos)
            shutil.move(self.videos / "out", home)
        self.homes = [home]

    def victims(self, home):
        return sorted(path for pattern in self.pattern for path in home.glob(pattern))

    def read(self, folder):
        readers = {"plain": lambda: members(Shards(folder)), "set aside": lambda: set_aside(folder),
                   "verify": lambda: [item.reason for item in verify.check(folder).damage]}  # fmt: skip
        return {name: told(reader) for name, reader in readers.items()}

    def judge(self, expected, got):
        """Everything is exact or refused; what is left out is counted; verify sees what is wrong with a tar."""
        aside, count = (REFUSED, 0) if got["set aside"] == REFUSED else got["set aside"]
        found = [members for members in (got["plain"], aside) if members != REFUSED]
        wanted = expected["plain"]
        if any(value not in (REFUSED, wanted.get(name)) for members in found for name, value in members.items()):
            return SILENT
        if any(members.keys() != wanted.keys() and not (members is aside and count) for members in found):
            return SILENT
        noticed = len(found) < 2 or count or got["verify"] or any(REFUSED in members.values() for members in found)
        return REJECTED if noticed else self.unnoticed

    unnoticed = SILENT  # a damaged tar that verify does not see


def told(reader):
    try:
        return reader()
    except (DataError, OSError):
        return REFUSED


def members(shards):
    """{member: crc32, or REFUSED} of all samples."""
    found = {f"{entry.key}.listed": entry.meta for entry in shards.entries}
    for key in [entry.key for entry in shards.entries]:
        for kind in (schema.VIDEO, schema.ARRAYS, schema.META):
            found[f"{key}.{kind}"] = told(lambda key=key, kind=kind: zlib.crc32(shards.read(key, kind)))
    return found


def set_aside(folder):
    shards = Shards(folder, on_damage="set_aside")
    return members(shards), shards.set_aside["shards"]


class Records(Tars):
    """Manifests, indexes and ingest's own records; after reading, the same ingest is run again."""

    name, weight, text = "manifests, indexes", 15, True
    pattern = ("*-[0-9][0-9][0-9][0-9][0-9].json", "*.index", "units/*.json", "dataset.json")
    unnoticed = CORRECT  # an index or a record can be made anew

    def read(self, folder):
        found = super().read(folder)
        changes = {"videos": str(self.videos), "out": str(folder), "run": {"dir": f"{folder}-run"}}
        again = told(lambda: run_ingest(folder, **changes))
        kept = {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in self.victims(folder)}
        return {**found, "again": REFUSED if again == REFUSED else members(Shards(folder, verify=True)), "kept": kept}

    def judge(self, expected, got):
        if got["again"] not in (REFUSED, expected["again"]):
            return SILENT
        verdict = super().judge(expected, got)
        return REJECTED if verdict == CORRECT and got["again"] == REFUSED else verdict


# checkpoints, models


class Checkpoints(Kind):
    """Checkpoints of a stopped run, read by the command that goes on from them; compared with the straight run."""

    name, weight, needs = "checkpoints", 10, ("shard tars",)
    options = ("method=idm", *NET_IDM, *TRAINING, "method.optimizer.schedule=constant")  # it may go on beyond its end

    def __init__(self, root):
        compose("pretrain", *self.options)
        self.clips, self.straight = root / "shards", root / "straight"
        both, one = self.homes = [root / "stopped" / name for name in ("two", "one")]
        for folder, steps in ((self.straight, 4), (both, 2)):
            status = wait(fork(lambda folder=folder, steps=steps: self.train(folder, steps), root / "train.log"))
            assert status == 0, (root / "train.log").read_text()[-2000:]
        one.mkdir()
        shutil.copy(both / "last.ckpt", one)

    def train(self, folder, steps):
        cfg = copy.deepcopy(compose("pretrain", *self.options))
        given = {"steps": steps, "data": {"train": str(self.clips)}, "run": {"dir": str(folder)}}
        cfg.merge_with(OmegaConf.create(given))
        return execute(pretrain.main.function, cfg)

    def victims(self, home):
        return sorted(home.glob("last*.ckpt"))

    def read(self, folder):
        """-> (the final weights, whether a checkpoint was passed over)"""
        if folder in self.homes:
            return (self.straight / "model" / checkpoint.WEIGHTS).read_bytes(), False
        heard = Heard()
        self.train(folder, 4)
        return (folder / "model" / checkpoint.WEIGHTS).read_bytes(), heard.warned

    def judge(self, expected, got):
        return SILENT if got[0] != expected[0] else REJECTED if got[1] else CORRECT


class Heard(logging.Handler):
    """Notes whether the program warned of anything."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.warned = False
        logging.getLogger("foundation-policy").addHandler(self)

    def emit(self, record):
        self.warned = True


class Models(Kind):
    """Hub folders: weights, config and statistics."""

    name, weight, text = "model folders", 10, True

    def __init__(self, root):
        self.homes = [root / "idm", root / "policy"]

    def victims(self, home):
        return [home / name for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.STATISTICS)]

    def read(self, folder):
        bundle = checkpoint.load(folder)
        weights = {name: zlib.crc32(value.numpy().tobytes()) for name, value in bundle.net.state_dict().items()}
        return weights, bundle.spec, bundle.size, bundle.fps, bundle.config["net"], bundle.statistics


# text of runs


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


KINDS = (Films, Logs, Tars, Records, Checkpoints, Models, Runs, Configs)
