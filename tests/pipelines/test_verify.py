"""verify finds every kind of damage and says what to re-run; readers stop or set it aside."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from foundation.pretraining.data import ShardData
from pipelines import manifest as disk
from pipelines import schema, verify
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from pipelines.shards import Shards, ShardWriter
from pipelines.stream import load_tracks

LENGTH = 48


def config(name, folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(name, [f"run.dir={folder}", *overrides])


def run_verify(root, tmp_path, *more):
    return execute(verify.main.function, config("verify", tmp_path / "run", f"shards={root}", *more))


@pytest.fixture
def clips(make_play, tmp_path):
    return make_play(tmp_path / "clips", videos=4, length=LENGTH)  # 8 clips, 3 shards


def flip(path, at=700):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def tar(root, number=0):
    return sorted(root.glob("*.tar"))[number]


def cut(root):
    os.truncate(tar(root), 1000)


def spoil_manifest(root):
    path = root / "clips-00000.json"
    path.write_text(path.read_text().replace(f"[0,{LENGTH}]", f"[0,{LENGTH + 1}]", 1))


def duplicate(root):
    manifest = disk.read_manifest(root / "clips-00000.json")
    manifest = {**manifest, "file": tar(root).name, "path": ""}
    disk.write_atomic(root / "more-00000.json", disk.sealed({k: v for k, v in manifest.items() if k != "path"}))


DAMAGE = {
    "missing": (lambda root: tar(root).unlink(), "is missing"),
    "cut": (cut, "1000 of"),
    "one bit": (lambda root: flip(tar(root)), "its sha256 is"),
    "one bit of a header": (lambda root: flip(tar(root), 100), "damaged|not a readable tar"),
    "manifest": (spoil_manifest, "its checksum differs"),
    "no json": (lambda root: (root / "clips-00000.json").write_text("{"), "not valid JSON"),
    "twice": (duplicate, "occur twice"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_found_and_named(clips, tmp_path, kind, capsys):
    spoil, reason = DAMAGE[kind]
    spoil(clips)
    with pytest.raises(verify.DamageFound, match=r"problems? found"):
        run_verify(clips, tmp_path)
    shown = capsys.readouterr().out
    assert "DAMAGED clips-00000" in shown
    assert re.search(reason, shown)
    assert "re-run what made them (pipelines.ingest, foundation.collect" in shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["shards/damaged"] >= 1


def test_a_whole_folder(clips, tmp_path, capsys):
    summary = run_verify(clips, tmp_path)
    assert (summary["shards/shards"], summary["shards/samples"], summary["shards/frames"]) == (3, 8, 8 * LENGTH)
    assert summary["shards/damaged"] == 0
    assert "DAMAGED" not in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: flip(path, 90), lambda path: path.write_text("{}")])
def test_a_lost_index_is_no_damage(clips, tmp_path, spoil):
    spoil(sorted(clips.glob("*.index"))[0])
    assert run_verify(clips, tmp_path)["shards/indexes_to_rebuild"] == 1


def test_exit_status(clips, tmp_path):
    command = [sys.executable, "-m", "pipelines.verify", f"shards={clips}", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(CONFIGS).parent)
    assert done.returncode == 0, done.stderr
    flip(tar(clips, 1))
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(CONFIGS).parent)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"DAMAGED {tar(clips, 1).name}  samples: 3" in done.stdout
    done = subprocess.run([*command, "shards=/nowhere"], capture_output=True, text=True, cwd=Path(CONFIGS).parent)
    assert done.returncode == 2


# units


def unit(root, name, count=2, fingerprint="f", rejected=()):
    with ShardWriter(root, name, 1, unit=f"id of {name}", fingerprint=fingerprint, counts={"rejected": rejected}) as w:
        for index in range(count):
            w.write(f"{name}-{index}", {"mp4": b"x", "json": {"frames": [0, 1]}})


def test_units_that_are_not_whole(tmp_path):
    root = tmp_path / "clips"
    for name in ("clips-a", "clips-b", "clips-c"):
        unit(root, name)
    (root / "clips-a-00000.json").unlink()  # never committed: readers do not see it
    (root / "clips-b-00001.json").unlink()  # committed, then lost
    report = verify.check(root)
    assert {item.shard: item.reason[:30] for item in report.damage} == {
        "clips-a-00001.json": "part of a unit that was begun ", "clips-b-00000.json": "unit clips-b is not whole: not",
    }  # fmt: skip
    with pytest.raises(DataError, match="unit clips-b is not whole"):
        Shards(root)
    assert [e.key for e in Shards(root, on_damage="set_aside").entries] == ["clips-c-0", "clips-c-1"]


def test_a_unit_on_record_that_is_gone(tmp_path):
    root = tmp_path / "clips"
    unit(root, "clips-a")
    unit(root, "clips-b")
    (root / "units").mkdir()
    for name in "ab":
        record = {"unit": f"id of clips-{name}", "shards": 2, "clips": 2, "source": f"{name}.mp4"}
        disk.write_atomic(root / "units" / f"{name}.json", disk.sealed(record))
    assert verify.check(root).damage == []
    for path in root.glob("clips-b*"):
        path.unlink()
    (damage,) = verify.check(root).damage
    assert (damage.shard, damage.samples) == ("clips-b", 2)
    assert damage.reason == "0 of the 2 shards of 'b.mp4' are there"
    (root / "units" / "a.json").write_text("{}")
    assert {item.shard for item in verify.check(root).damage} == {"units/a.json", "clips-b"}


def test_settings_that_mix(tmp_path):
    root = tmp_path / "clips"
    unit(root, "clips-a")
    unit(root, "clips-b", 1, "another")
    assert ["other settings" in item.reason for item in verify.check(root).damage] == [True]


# labels


def label(clips, out, keys):
    """Label shards as pipelines.label lays them out: one unit for each clip shard."""
    shards = Shards(clips)
    for manifest in shards.manifests:
        entries = shards.in_shard(manifest["file"])
        lost = [{"key": e.key, "shard": e.shard, "reason": "x"} for e in entries if keys.get(e.key) == "rejected"]
        name = f"labels-{manifest['path'].stem}"
        with ShardWriter(out, name, 9, unit=name, fingerprint="f", counts={"rejected": lost}) as writer:
            for entry in entries:
                if entry.key not in keys:
                    writer.write(entry.key, {"npz": shards.arrays(entry.key), "json": entry.meta})
    return out


def test_labels_cover_clips(clips, tmp_path):
    keys = [entry.key for entry in Shards(clips).entries]
    labels = label(clips, tmp_path / "labels", {keys[1]: "rejected"})
    summary = run_verify(clips, tmp_path, f"labels={labels}")
    assert (summary["labels/samples"], summary["labels/rejected"], summary["labels/unlabelled"]) == (7, 1, 0)
    labels = label(clips, tmp_path / "fewer", {keys[0]: "lost", keys[4]: "lost"})
    with pytest.raises(verify.DamageFound, match="2 problems"):
        run_verify(clips, tmp_path, f"labels={labels}")


def test_labels_of_other_clips(clips, make_play, tmp_path, capsys):
    labels = label(clips, tmp_path / "labels", {})
    other = make_play(tmp_path / "other", videos=2, length=LENGTH, seed=5)
    with pytest.raises(verify.DamageFound):
        run_verify(other, tmp_path, f"labels={labels}")
    shown = capsys.readouterr().out
    assert "labels have no clip" in shown
    assert "clips of clips-00000 have no label" in shown
    longer = make_play(tmp_path / "longer", videos=4, length=LENGTH + 1)
    shutil.rmtree(labels)
    label(longer, labels, {})
    with pytest.raises(verify.DamageFound):
        run_verify(clips, tmp_path, f"labels={labels}")
    assert "another version of their clips" in capsys.readouterr().out


# setting aside


def test_damage_is_set_aside_and_counted(clips, caplog):
    flip(tar(clips), tar(clips).read_bytes().index(b"ftyp"))
    whole = Shards(clips)  # sizes are right: found when it is read
    with pytest.raises(DataError, match="damaged"):
        whole.read(whole.entries[0].key, schema.VIDEO)
    tar(clips, 1).unlink()
    with pytest.raises(DataError, match=r"1 shards are damaged: clips-00001.* is missing.*on_damage=set_aside"):
        Shards(clips)
    shards = Shards(clips, on_damage="set_aside")
    assert shards.set_aside == {"shards": 2, "samples": 6}
    assert [entry.key for entry in shards.entries] == [entry.key for entry in whole.entries[6:]]
    assert "Set aside with 6 samples" in caplog.text
    assert shards.fingerprint() != whole.fingerprint()
    assert sum(map(len, load_tracks(shards))) == 2 * LENGTH
    with pytest.raises(DataError, match="on_damage='ignore'"):
        Shards(clips, on_damage="ignore")


def test_training_goes_on_without_damaged_shards(clips, tmp_path):
    def data(**change):
        cfg = config("pretrain", tmp_path, "method=idm", f"data.train={clips}", "data.length=16", "data.stride=16")
        options = {**cfg.data, **change}
        options.pop("_target_")
        return ShardData(**options, steps=4, seed=0)

    before = data()
    flip(tar(clips, 1))
    with pytest.raises(DataError, match="its sha256 is"):
        Shards(clips, verify=True)
    after = data(on_damage="set_aside")
    assert after.set_aside == {"data/set_aside_shards": 1, "data/set_aside_samples": 3}
    assert before.set_aside == {}
    assert after.frames == before.frames - 3 * LENGTH
