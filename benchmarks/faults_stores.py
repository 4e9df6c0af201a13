"""Kinds of input that carry checksums: shards, checkpoints, model folders. Nothing may differ without a word."""

import copy
import logging
import shutil
import zlib

from omegaconf import OmegaConf

from benchmarks.faults_kinds import CORRECT, REFUSED, REJECTED, SILENT, Kind, compose, run_ingest
from benchmarks.faults_processes import fork, wait
from benchmarks.faults_world import NET_IDM, TRAINING, write_videos
from foundation import pretrain
from pipelines import checkpoint, schema, verify
from pipelines.command import execute
from pipelines.schema import DataError
from pipelines.shards import Shards


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
        again = told(lambda: run_ingest(self.videos, folder))
        return {**found, "again": REFUSED if again == REFUSED else told(lambda: members(Shards(folder, verify=True)))}

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
