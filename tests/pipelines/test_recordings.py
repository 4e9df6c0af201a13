"""Our own action logs: reading, refusing, aggregating over changed rates."""

import json

import numpy as np
import pytest

from pipelines.actions import DOOM
from pipelines.recordings import FORMAT, ActionLog, LogError, aggregate, find_log, kind_of, read_recording

HEADER = {"format": FORMAT, "version": 1, "actions": DOOM.to_dict(), "fps": 17.5, "task": "x", "map": "E1M1", "seed": 3}


def row(keys=(), mouse=(0.0, 0.0), **events):
    return {"keys": list(keys), "mouse": list(mouse), **events}


@pytest.fixture
def write(tmp_path):
    """write(rows, header) -> path; rows may be ready-made strings."""

    def call(rows, header=HEADER):
        lines = [value if isinstance(value, str) else json.dumps(value) + "\n" for value in (header, *rows)]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(lines))
        return path

    return call


def test_everything_logged_is_read(write):
    log = read_recording(write([
        row(["forward"], [1.5, -2.0], reward=0.5, first=True, effective=["forward", "yaw"]),
        row(["attack", "right"], terminated=True, truncated=False, reward=-1, effective=["pitch"]),
    ]))  # fmt: skip
    assert log.spec == DOOM.to_dict()
    np.testing.assert_array_equal(log.keys, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(log.mouse, np.array([[1.5, -2], [0, 0]], np.float32))
    np.testing.assert_array_equal(log.events["reward"], np.array([0.5, -1], np.float32))
    np.testing.assert_array_equal(log.events["first"], [True, False])
    np.testing.assert_array_equal(log.events["terminated"], [False, True])
    np.testing.assert_array_equal(log.events["effective"], [[1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0]])
    assert (log.fps, log.tags, log.notes) == (17.5, {"task": "x", "map": "E1M1", "seed": 3}, [])


def test_events_that_were_never_logged_are_not_invented(write):
    assert read_recording(write([row(), row()])).events == {}


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (row(["jump"]), "unknown_key", "line 3 holds 'jump'"), (row([7]), "unknown_key", "line 3"),
        (row(mouse=[0, float("nan")]), "bad_log", "line 3: mouse is not finite"),
        (row(mouse=[0, float("inf")]), "bad_log", "not finite"), (row(mouse=[0]), "bad_log", "must be"),
        ({"keys": []}, "bad_log", "must be"), ({"keys": "forward", "mouse": [0, 0]}, "bad_log", "list of names"),
        ("{broken\n", "bad_log", "line 3 is not JSON"), ("[1]\n", "bad_log", "not a JSON object"),
        (row(mouse=[1e300, 0]), "bad_log", "line 3: mouse"), (row(mouse=[10**400, 0]), "bad_log", "line 3: mouse"),
        (row(mouse=[True, 0]), "bad_log", "must be"), (row(first="no"), "bad_log", "line 3: first must be true or"),
        (row(reward="many"), "bad_log", "line 3: reward"), (row(reward=10**400), "bad_log", "line 3: reward"),
        (row(reward=float("nan")), "bad_log", "line 3: reward"), (row(effective=["jump"]), "unknown_key", "jump"),
    ],
)  # fmt: skip
def test_bad_lines_are_refused_by_number(write, bad, code, message):
    with pytest.raises(LogError, match=message) as error:
        read_recording(write([row(), bad, row()]))
    assert error.value.code == code


@pytest.mark.parametrize(
    ("header", "message"),
    [({**HEADER, "version": 2}, "version 2"), ({**HEADER, "actions": "quake"}, "action spec"),
     ({**HEADER, "fps": "fast"}, "fps must be"), ({**HEADER, "fps": 0}, "fps must be"),
     ({**HEADER, "fps": float("nan")}, "fps must be"), ({**HEADER, "actions": None}, "action spec"),
     ({**HEADER, "actions": {"name": "x"}}, "action spec")],
)  # fmt: skip
def test_bad_headers_are_refused(write, header, message):
    with pytest.raises(LogError, match=message):
        read_recording(write([row()], header))


def test_null_keys_mean_none_and_are_noted(write):
    log = read_recording(write([{"keys": None, "mouse": [0, 0]}, row(["use"])]))
    assert log.keys.sum() == 1
    assert log.notes == ["null_keys"]


def test_a_row_without_keys_is_refused_as_misspelt(write):
    with pytest.raises(LogError, match=r"line 2 has no .keys., only ..key., .mouse."):
        read_recording(write([{"key": ["use"], "mouse": [0, 0]}]))


def test_last_line_cut_by_a_kill_is_dropped(write):
    log = read_recording(write([row(), row(), '{"keys": ["for']))
    assert (len(log), log.notes) == (2, ["log_truncated"])


def test_no_line_at_all(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(LogError, match="empty"):
        read_recording(tmp_path / "a.jsonl")


def test_empty_log(write):
    assert len(read_recording(write([]))) == 0


def test_kind_and_place(write, tmp_path):
    path = write([row()])
    assert kind_of(path) == "recording"
    assert find_log(tmp_path / "a.mp4", tmp_path) == path
    assert find_log(tmp_path / "b.mp4", tmp_path) is None
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "b.jsonl").write_bytes(path.read_bytes())
    assert find_log(tmp_path / "b.mp4", tmp_path, tmp_path / "answers") == tmp_path / "answers" / "b.jsonl"


def log_of(keys, yaw, **events):
    mouse = np.stack([np.zeros(len(yaw)), yaw], -1).astype(np.float32)
    return ActionLog({}, np.array(keys, np.uint8)[:, None], mouse, {k: np.array(v) for k, v in events.items()})


def test_halving_the_rate_holds_keys_and_sums_the_mouse():
    log = log_of([0, 1, 0, 0, 1, 1], [1, 2, 3, 4, 5, 6], reward=np.arange(6, dtype=np.float32))
    out = aggregate(log, np.array([0, 2, 4]), np.array([2, 4, 6]))
    np.testing.assert_array_equal(out["keys"][:, 0], [1, 0, 1])
    np.testing.assert_array_equal(out["mouse"][:, 1], [3, 7, 11])
    np.testing.assert_array_equal(out["reward"], [1, 5, 9])


def test_doubling_the_rate_turns_no_further():
    log = log_of([1, 0], [4, 6], terminated=[False, True])
    out = aggregate(log, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(out["keys"][:, 0], [1, 1, 0, 0])
    np.testing.assert_array_equal(out["mouse"][:, 1], [0, 4, 0, 6])
    np.testing.assert_array_equal(out["terminated"], [False, False, False, True])


def test_episode_boundaries_inside_a_longer_frame():
    log = log_of([1, 0, 1, 1], [1, 2, 30, 40], first=[True, False, True, False], terminated=[False, True, False, False])
    out = aggregate(log, np.array([0, 3]), np.array([3, 4]))  # frame 0 covers the end of one episode and a reset
    np.testing.assert_array_equal(out["mouse"][:, 1], [3, 40])  # what follows the reset is not the old episode's
    np.testing.assert_array_equal(out["terminated"], [True, False])
    np.testing.assert_array_equal(out["first"], [True, True])


def test_one_to_one_is_untouched_and_the_end_is_clipped():
    log = log_of([1, 0, 1], [1, 2, 3])
    rows = np.arange(3)
    np.testing.assert_array_equal(aggregate(log, rows, rows + 1)["mouse"], log.mouse)
    out = aggregate(log, np.array([0, 2]), np.array([2, 99]))
    np.testing.assert_array_equal(out["mouse"][:, 1], [3, 3])
