"""Recording: as many log lines as frames, the same bytes whoever records, nothing done twice."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from foundation.collect import episode_returns, main, plan
from foundation.envs.doom_engine import FACTS
from foundation.envs.recording import effective, read_log
from pipelines.actions import DOOM, spec_from
from pipelines.command import CONFIGS
from pipelines.schema import DataError
from pipelines.video import probe


def config(tmp_path, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(
            "collect",
            [
                *("task=doom_my_way_home", "hours=0.01", "minutes_per_video=0.3", "workers=1"),
                *(f"out={tmp_path}/plays", f"run.dir={tmp_path}/run", *overrides),
            ],
        )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collect")
    cfg = config(folder)
    return cfg, main.function(cfg), folder / "plays"


def test_frames_equal_log_lines(recorded):
    _, summary, plays = recorded
    videos = sorted(plays.glob("*.mp4"))
    assert len(videos) == summary["videos"] == 2
    for video in videos:
        header, rows = read_log(video.with_suffix(".jsonl"))
        table = probe(video)
        assert len(rows) == len(table.pts) == 315  # 0.3 minutes at 17.5 frames/s
        assert (table.height, table.width) == (120, 160)
        assert header["fps"] == 17.5
        assert spec_from(header["actions"]) == DOOM
        assert header["map"] == "my_way_home:map01"
        assert rows[0]["first"]
        assert {key for row in rows for key in row["keys"]} <= set(DOOM.keys)
        for row, following in zip(rows, rows[1:], strict=False):
            assert following["first"] == (row["terminated"] or row["truncated"])
    assert sorted(p.suffix for p in plays.iterdir()) == [".json", ".jsonl", ".jsonl", ".mp4", ".mp4"]


def test_summary_describes_the_play(recorded):
    _, summary, _ = recorded
    assert summary["frames"] == 630
    assert summary["hours"] == pytest.approx(0.01)
    assert 0.2 < summary["null_share"] < 0.45
    assert summary["prevalence/forward"] > 0.2
    assert "doom_my_way_home/return" in summary


def test_rerun_continues(recorded):
    cfg, summary, plays = recorded
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in plays.iterdir()}
    lost = sorted(plays.glob("*.mp4"))[1]
    lost.unlink()
    again = main.function(cfg)
    assert {key: again[key] for key in summary if key != "frames_per_second"} == {
        key: value for key, value in summary.items() if key != "frames_per_second"
    }
    for path, (mtime, content) in before.items():
        assert path.read_bytes() == content
        if path.stem != lost.stem:
            assert path.stat().st_mtime_ns == mtime  # kept, not recorded again


def test_unlabelled_keeps_answers_apart(tmp_path):
    cfg = config(tmp_path, "labelled=false", f"answers={tmp_path}/answers", "hours=0.002")
    main.function(cfg)
    assert sorted(p.name for p in (tmp_path / "plays").iterdir() if p.suffix != ".mp4") == ["dataset.json"]
    assert [p.suffix for p in (tmp_path / "answers").iterdir()] == [".jsonl"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["run.seed=1"], "seed: 0 -> 1"), (["player.null_share=0.5"], "player.null_share: 0.34 -> 0.5"),
     (["task.env.skill=1", "split=heldout"], "split: train -> heldout; tasks.doom_my_way_home.skill: 5 -> 1")],
)  # fmt: skip
def test_other_play_does_not_mix_into_a_folder(recorded, tmp_path, overrides, message):
    _, _, plays = recorded
    before = {path: path.read_bytes() for path in plays.iterdir()}
    with pytest.raises(DataError, match=f"{message}.*choose another out="):
        main.function(config(plays.parent, *overrides))
    assert {path: path.read_bytes() for path in plays.iterdir()} == before


@pytest.mark.slow
def test_workers_do_not_matter(recorded, tmp_path):
    _, _, plays = recorded
    main.function(config(tmp_path, "workers=2"))
    for path in plays.iterdir():
        assert (tmp_path / "plays" / path.name).read_bytes() == path.read_bytes()


def test_plan_takes_turns_and_splits_by_stream(tmp_path):
    sessions = plan(config(tmp_path, "also=[doom_defend_the_center]", "hours=0.02"))
    assert [s.task["name"] for s in sessions] == ["doom_my_way_home", "doom_defend_the_center"] * 2
    assert len({s.video for s in sessions}) == 4
    heldout = plan(config(tmp_path, "split=heldout"))
    assert heldout[0].stream != sessions[0].stream
    assert len(plan(config(tmp_path, "hours=0.0101"))) == 2  # no video for a sliver


@pytest.mark.parametrize(
    ("override", "message"),
    [("labelled=false", "answers"), ("hours=0", "positive"), ("also=[doom_nowhere]", "unknown task")],
)
def test_bad_settings_say_what_to_do(tmp_path, override, message):
    with pytest.raises(DataError, match=message):
        plan(config(tmp_path, override))


def test_a_log_of_another_length_is_refused(tmp_path, recorded):
    _, _, plays = recorded
    target = tmp_path / "plays"
    target.mkdir()
    for path in plays.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    log = sorted(target.glob("*.jsonl"))[0]
    log.write_text("\n".join(log.read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(DataError, match="asks for 315"):
        main.function(config(tmp_path))


def facts(n, **columns):
    table = np.zeros((n, len(FACTS)))
    for name, values in columns.items():
        table[:, FACTS.index(name)] = values
    return table


def test_effective_by_hand():
    names = [*DOOM.keys, "pitch", "yaw"]
    keys = np.ones((6, 6), bool)
    keys[5] = False
    after_x = [10.0, 10, 10, 0, 0, 20]  # facing east: +10, rest, rest, -10, rest, and +20 with no key held
    before = facts(6, position_x=[0, 10, 10, 10, 0, 0], selected_weapon_ammo=[9, 9, 9, 9, 8, 8])
    after = facts(6, position_x=after_x, selected_weapon_ammo=[9, 9, 9, 8, 8, 8], angle=[0, 0, 0, 0, 359.9, 350])
    marks = effective(keys, before, after, np.array([False, True, False, False, False, False]))
    table = {name: marks[:, i].tolist() for i, name in enumerate(names)}
    assert table["forward"] == [True, False, False, False, False, False]
    assert table["backward"] == [False, False, False, True, False, False]
    assert table["left"] == table["right"] == [False] * 6
    assert table["attack"] == [True, True, True, True, False, False]  # the shot of frame 3 was due to any of these
    assert table["use"] == [False, True, False, False, False, False]
    assert table["yaw"] == [False, False, False, False, False, True]  # 0.1 degrees is none, 10 across zero is some
    assert table["pitch"] == [False] * 6


def test_returns_of_finished_episodes():
    ends = {"terminated": False, "truncated": False}
    rows = [{"reward": r, "first": f, **ends} for r, f in [(1, True), (2, False), (5, True), (7, True)]]
    rows[1]["terminated"] = rows[2]["truncated"] = True
    assert episode_returns(json.loads(json.dumps(rows))) == [3, 5]
