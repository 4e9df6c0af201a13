"""What a kind of input is to the campaign of damaged inputs, and what all kinds share.

A kind has `homes` (folders, of which one file is damaged in a copy), `read(folder)`, which is called once on the whole
folder for the answer and once per damaged copy, and `judge(expected, got)`. DataError and the other errors that
commands turn into a message are rejections; what `judge` may say is CORRECT, REJECTED (the damage was noticed and
told, the rest is right), PART, OTHER or SILENT.
"""

import copy
import functools
import json

import hydra
from omegaconf import OmegaConf

from benchmarks.faults_world import INGEST
from pipelines import ingest, verify
from pipelines.command import CONFIGS, execute
from pipelines.ingest_unit import RETRIED
from pipelines.schema import DataError

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


def run_ingest(videos, out=None):
    """Ingests a folder into `out` or `<videos>/out` -> {note: how often}. DataError if nothing was kept."""
    out = out or videos / "out"
    cfg = copy.deepcopy(compose("ingest", *INGEST, "workers=0"))
    cfg.merge_with(OmegaConf.create({"videos": str(videos), "out": str(out), "run": {"dir": f"{out}-run"}}))
    try:
        execute(ingest.main.function, cfg)
    except DataError:
        check_codes(out)
        raise
    check_codes(out)
    if damage := verify.check(out).damage:
        raise Crash(f"ingest made damaged shards: {damage}")
    records = [json.loads(path.read_text()) for path in (out / "units").iterdir()]
    return {note: n for record in records for note, n in record["notes"].items()}


def check_codes(out):
    """Ingest goes on after an unforeseen error of one video; here that is a crash all the same."""
    path = out / "rejected.jsonl"
    for row in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        if row["code"] in RETRIED:
            raise Crash(f"{row['code']}: {row['detail']}")
