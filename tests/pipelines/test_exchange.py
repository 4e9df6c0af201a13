"""Episodes from files of other tools: what all formats share, and what a user can get wrong."""

import json

import numpy as np
import pytest

from pipelines import exchange
from pipelines.schema import DataError
from pipelines.shards import Shards
from pipelines.trajectories import Trajectories
from tests.pipelines.exchanging import flat, hdf5, run
from tests.pipelines.running import rejections


def test_running_again_continues_and_only_changed_files_are_read(tmp_path):
    for i in range(3):
        columns, ends = flat([3, 2], seed=i)
        hdf5(tmp_path / "in" / f"{i}.hdf5", {**columns, "terminals": ends})
    (tmp_path / "in" / "broken.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    first = run(tmp_path / "in", tmp_path / "out", format="d4rl", limit=2)
    assert (first["episodes"], first["skipped_units"]) == (4, 0)
    before = Shards(tmp_path / "out").fingerprint()
    again = run(tmp_path / "in", tmp_path / "out", format="d4rl", limit=2)
    assert again["skipped_units"] == 2 and Shards(tmp_path / "out").fingerprint() == before
    whole = run(tmp_path / "in", tmp_path / "out", format="d4rl")
    assert (whole["episodes"], whole["rejected"], whole["skipped_units"]) == (6, 1, 2)
    assert rejections(tmp_path / "out") == {"broken.hdf5": "unreadable"}
    with pytest.raises(DataError, match=r"other settings .*options\.fps: None -> 5"):
        run(tmp_path / "in", tmp_path / "out", format="d4rl", fps=5)
    with pytest.raises(DataError, match="strict=true"):
        run(tmp_path / "in", tmp_path / "out", format="d4rl", strict=True)


def test_a_bad_episode_is_left_out_alone(tmp_path):
    columns, ends = flat([3, 2, 4])
    columns["rewards"][4] = np.nan
    columns["actions"][7] = 3.0
    path = hdf5(tmp_path / "a.hdf5", {**columns, "terminals": ends})
    summary = run(path, tmp_path / "out", format="d4rl")
    assert (summary["episodes"], summary["steps"]) == (1, 3)
    assert (summary["rejected/episode"], summary["rejected/bounds"]) == (1, 1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert "NaN" in lines[0]["detail"] and "set low= and high=" in lines[1]["detail"]
    wide = run(path, tmp_path / "wide", format="d4rl", low=-3, high=[3, 6])
    assert wide["episodes"] == 2
    assert Trajectories.load(tmp_path / "wide").spaces.high == (3.0, 6.0)


def test_a_run_that_wrote_nothing_leaves_its_folder_to_other_settings(tmp_path, monkeypatch):
    columns, ends = flat([3])
    path = hdf5(tmp_path / "a.hdf5", {**columns, "actions": columns["actions"] * 4, "terminals": ends})
    for _ in range(2):
        with pytest.raises(DataError, match="rejected bounds 1; see"):
            run(path, tmp_path / "out", format="d4rl")
    assert "beyond" in (tmp_path / "out" / "rejected.jsonl").read_text()
    summary = run(path, tmp_path / "out", format="d4rl", low=-4, high=4)
    assert (summary["episodes"], summary["rejected"]) == (1, 0) and not rejections(tmp_path / "out")
    with pytest.raises(DataError, match="other settings"):  # now it holds something
        run(path, tmp_path / "out", format="d4rl")
    monkeypatch.setattr(exchange, "work", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(path, tmp_path / "stopped", format="d4rl")
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "rlds"}, "expected one of minari, lerobot, d4rl, l2m, ogbench, exorl"),
        ({"format": "d4rl", "low": -1}, "set both"),
        ({"format": "l2m", "ends": "timeouts"}, "ends=timeouts is for format=d4rl"),
        ({"format": "d4rl", "from": "nowhere"}, "does not exist"),
        ({"format": "d4rl"}, "no d4rl files"),
        ({"format": "minari", "from": "hopper/none-v0"}, "neither a path nor a data set"),
        ({"to": "lerobot"}, "expected minari"),
        ({"to": "minari", "out": "no version"}, "expected the name of a Minari data set"),
        ({"from": None}, "set from="),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    pytest.importorskip("h5py")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=message):
        run(**{"source": tmp_path / "in", "out": tmp_path / "out", "run": {"dir": str(tmp_path / "run")}, **changes})
