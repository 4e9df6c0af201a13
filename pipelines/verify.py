"""Checks every byte of a folder of shards: `python -m pipelines.verify shards=data/clips [labels=data/labels]`.

Every tar is read once from start to end: size, sha256, members, the crc32 of each against the index, samples against
the manifest. Then what no single file shows: keys that are there twice, units begun and not finished, units on record
that are gone and, with labels, clips without a label. Prints a table; exit status 1 when anything is damaged.
"""

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pipelines import manifest as disk
from pipelines import storage, tars
from pipelines.command import command, write_summary
from pipelines.ingest_unit import FOLDER as UNITS
from pipelines.manifest import Damage
from pipelines.schema import DataError
from pipelines.shards import file_damage

REMEDIES = {  # what to re-run, by the first word of a shard's name
    "clips": "what made them (pipelines.ingest, foundation.collect or pipelines.exchange) with the same out= and"
    " settings; it redoes only these",
    "labels": "python -m pipelines.label with the same clips=, idm=, out= and settings; it redoes only these",
    "": "the command that made them",
}
log = logging.getLogger("foundation-policy")


class DamageFound(DataError):
    """The check was done and found something."""

    status = 1  # exit status of the command


@dataclass
class Report:
    """What is in a folder and what is wrong with it."""

    root: str
    survey: disk.Survey
    damage: list = field(default_factory=list)
    indexes: list = field(default_factory=list)  # side files to be rebuilt; no data is lost
    numbers: dict = field(default_factory=dict)

    def entries(self):
        """Yields (key, meta, manifest) of all samples that manifests list."""
        for manifest in self.survey.manifests:
            yield from ((entry["key"], entry["meta"], manifest) for entry in manifest["entries"])

    def found(self, shard, reason, samples=None):
        self.damage.append(Damage(shard, reason, samples))


@command("verify")
def main(cfg):
    """Prints the table; returns counts, or raises DamageFound after they are written."""
    clips = check(cfg.shards)
    reports = [clips]
    if cfg.labels:
        reports.append(check(cfg.labels))
        check_labels(clips, reports[1])
    summary = {}
    for name, report in zip(("shards", "labels"), reports, strict=False):
        show(report)
        summary |= {f"{name}/{key}": value for key, value in report.numbers.items()}
        summary[f"{name}/damaged"] = len(report.damage)
    damage = [item for report in reports for item in report.damage]
    if damage:
        summary["samples_damaged"] = sum(item.samples or 0 for item in damage)
        write_summary(Path(cfg.run.dir) / "summary.json", summary)
        raise DamageFound(f"{len(damage)} problem{'s' * (len(damage) > 1)} found, listed above with what to re-run")
    log.info("no damage found")
    return summary


def check(root):
    """Report of one folder, local or remote."""
    folder = storage.open_folder(root)
    survey = disk.survey(folder)
    report = Report(str(folder.root), survey, list(survey.damage))
    if not survey.manifests and not survey.damage and not survey.open:
        raise DataError(f"{root} holds no shards")
    read_tars(folder, report)
    check_keys(report)
    check_units(folder, report)
    return report


def read_tars(folder, report):
    """Reads every tar, with a progress bar over bytes; fills `numbers`."""
    manifests = report.survey.manifests
    sizes, total = folder.sizes([m["file"] for m in manifests]), sum(m["bytes"] for m in manifests)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"verify {report.root}", disable=None) as bar:
        for manifest in manifests:
            reason = file_damage(folder, manifest, sizes[manifest["file"]], verify=False)
            reason = reason or tar_damage(folder, manifest, report)
            if reason:
                report.found(manifest["file"], reason, manifest["samples"])
            bar.update(manifest["bytes"])
    report.numbers |= {
        "shards": len(manifests), "samples": sum(m["samples"] for m in manifests),
        "frames": sum(m["frames"] for m in manifests), "bytes": total,
        "indexes_to_rebuild": len(report.indexes), "leftovers": len(report.survey.leftovers),
    }  # fmt: skip


def tar_damage(folder, manifest, report):
    """What is wrong inside a tar, or None; an index that does not fit a good tar goes into `report.indexes`."""
    try:
        members, sha256 = tars.scan(folder, manifest["file"], manifest["bytes"])
        tars.check_sha256(folder, manifest, sha256)
        tars.check_index(members, folder, manifest)
    except DataError as error:
        return str(error)
    try:
        intact = tars.read_index(folder, manifest) == members
    except (OSError, DataError):
        intact = False
    if not intact:
        report.indexes.append(tars.index_name(manifest["file"]))
    return None


def check_keys(report):
    """Keys that occur twice, and units that were made with other settings than the rest."""
    count = Counter(key for key, _, _ in report.entries())
    twice = {key for key, n in count.items() if n > 1}
    for shard, hits in Counter(m["file"] for key, _, m in report.entries() if key in twice).items():
        report.found(shard, f"{hits} of its keys occur twice, e.g. {min(twice)}; remove one copy", 0)
    units = [m for m in report.survey.manifests if m.get("unit")]
    usual = Counter(m["fingerprint"] for m in units).most_common(1)
    for manifest in units:
        if manifest["fingerprint"] != usual[0][0]:
            report.found(manifest["file"], "made with other settings than most shards of this folder", 0)


def check_units(folder, report):
    """Parts of units that were never committed, and units on record whose shards are gone."""
    for manifest in report.survey.open:
        report.found(manifest["path"].name, "part of a unit that was begun and not finished", manifest["samples"])
    if storage.is_remote(folder.root) or not (folder.root / UNITS).is_dir():
        return
    there = Counter(manifest.get("unit") for manifest in report.survey.manifests)
    known = {stem(damage.shard) for damage in report.damage}
    records = storage.LocalFolder(folder.root / UNITS)
    for name, data in records.read_many([name for name in records.names() if name.endswith(".json")]):
        if f"clips-{name.removesuffix('.json')}" not in known:
            check_record(name, data, there, report)


def check_record(name, data, there, report):
    """Compares the record of one ingest unit with the manifests, {unit: how many} in `there`."""
    try:
        record = disk.parse_json(data, name)
        wanted, found = record["shards"], there[record["unit"]]
    except (DataError, KeyError, TypeError):
        report.found(f"{UNITS}/{name}", "this record is damaged", 0)
        return
    if wanted and found != wanted:
        shard = f"clips-{name.removesuffix('.json')}"
        report.found(shard, f"{found} of the {wanted} shards of {record['source']!r} are there", record["clips"])


def check_labels(clips, labels):
    """Adds to `labels` what shows only beside the clips: clips without label, labels without clip or of old clips."""
    label_of = {key: (meta, manifest["file"]) for key, meta, manifest in labels.entries()}
    rejected = {row["key"] for m in labels.survey.manifests for row in m.get("counts", {}).get("rejected", ())}
    bare, old, clip_keys = Counter(), Counter(), set()
    for key, meta, manifest in clips.entries():
        clip_keys.add(key)
        if key not in label_of:
            bare[manifest["path"].stem] += key not in rejected
        elif any(label_of[key][0].get(name) != meta.get(name) for name in ("frames", "source_sha256")):
            old[label_of[key][1]] += 1
    homeless = Counter(file for key, (_, file) in label_of.items() if key not in clip_keys)
    for name, count in (+bare).items():
        labels.found(f"labels-{name}", f"{count} clips of {name} have no label", count)
    for counter, text in ((old, "labels are of another version of their clips"), (homeless, "labels have no clip")):
        for file, count in counter.items():
            labels.found(file, f"{count} {text}", count)
    labels.numbers |= {"clips": len(clip_keys), "rejected": len(rejected & clip_keys), "unlabelled": bare.total()}


def stem(shard):
    """`clips-<unit>` of any file name of that unit."""
    return re.sub(r"-\d{5}(-[0-9a-f]{12})?\.\w+$", "", shard)


def show(report):
    """Prints totals and, of what is damaged, the shard, the samples lost with it and the reason."""
    numbers = report.numbers
    print(f"{report.root}")
    for name, value in numbers.items():
        print(f"  {name.replace('_', ' '):20} {value:>16,}")
    print(f"  {'damaged':20} {len(report.damage):>16,}")
    if report.indexes:
        print(f"  {len(report.indexes)} indexes are lost or damaged, e.g. {report.indexes[0]}: rebuilt while reading")
    if numbers["leftovers"]:
        print(f"  leftovers are ignored; python -m pipelines.gc shards={report.root} dry_run=false deletes them")
    for item in report.damage:
        lost = "?" if item.samples is None else item.samples
        print(f"  DAMAGED {item.shard}  samples: {lost}\n    {item.reason}")
    for word in sorted({first_word(item.shard) for item in report.damage}):
        print(f"  to repair {word or 'other'} shards, delete the files named above and re-run {REMEDIES[word]}")


def first_word(shard):
    word = shard.removeprefix(f"{UNITS}/").partition("-")[0]
    return "clips" if shard.startswith(UNITS) else word if word in REMEDIES else ""


if __name__ == "__main__":
    main()
