import numpy as np
import pytest

from pipelines.events import events, match, match_key


def bits(text):
    return np.array([c == "1" for c in text])


def starts(*at, n):
    start = np.zeros(n, bool)
    start[list(at)] = True
    return start


def count(held, guess, on=None, start=None, collar=2):
    held, guess = bits(held), bits(guess)
    on = np.ones(len(held), bool) if on is None else bits(on)
    return match_key(held, guess, on, starts(0, n=len(held)) if start is None else start, collar)


def test_presses_and_releases_by_hand():
    held, start = bits("0110011"), starts(0, n=7)
    assert events(held, start, press=True).tolist() == [1, 5]
    assert events(held, start, press=False).tolist() == [3]


def test_a_key_down_at_the_start_of_a_segment_is_no_press():
    assert events(bits("1100"), starts(0, n=4), press=True).tolist() == []
    assert events(bits("0011"), starts(0, 2, n=4), press=True).tolist() == []
    assert events(bits("1100"), starts(0, 2, n=4), press=False).tolist() == []


def test_matching_is_one_to_one_and_largest():
    start = starts(0, n=20)
    assert match(np.array([5]), np.array([4, 6]), start, 2)[0] == 1
    # greedily giving 5 its nearest partner 6 would leave 8 alone; the earliest partner matches both
    matched, loose = match(np.array([5, 8]), np.array([6, 7]), start, 2)
    assert (matched, loose.tolist()) == (2, [])
    assert match(np.array([5]), np.array([8]), start, 2)[1].tolist() == [8]


def test_events_do_not_match_across_segments():
    assert match(np.array([9]), np.array([10]), starts(0, 10, n=20), 2)[0] == 0


@pytest.mark.parametrize(
    ("held", "guess", "expected"),
    [
        ("0011100000", "0011100000", (2, 0, 0)),
        ("0011100000", "0000111000", (2, 0, 0)),  # both two late: inside the collar
        ("0011100000", "0000011100", (0, 2, 2)),  # three late: outside
        ("0011100000", "0000000000", (0, 0, 2)),
        ("0000000000", "0011100000", (0, 2, 0)),
        ("0011111100", "0011011100", (2, 2, 0)),  # a flicker adds a release and a press
        ("0011100000", "0011111111", (1, 0, 1)),  # never released
    ],
)
def test_counts_by_hand(held, guess, expected):
    assert count(held, guess) == expected


def test_collar_of_zero_wants_the_very_frame():
    assert count("00110", "00110", collar=0) == (2, 0, 0)
    assert count("00110", "01100", collar=0) == (0, 2, 2)


def test_holds_without_effect_are_left_out():
    held, none, one = "0011110000", "1100001111", "1100101111"  # `one`: effective in its third frame
    assert count(held, "0000000000", on=none) == (0, 0, 0)  # not missed
    assert count(held, held, on=none) == (0, 0, 0)  # not wrong either
    assert count(held, "0001100000", on=none) == (0, 0, 0)  # inside the hold
    assert count(held, "0000000001", on=none) == (0, 1, 0)  # beyond the collar: spurious
    assert count(held, held, on=one) == (2, 0, 0)
    assert count(held, "0000000000", on=one) == (0, 0, 2)


def test_a_prediction_near_both_kinds_of_holds_prefers_the_visible_one():
    held, on = "0110011000", "1001111111"  # the first hold has no effect
    assert count(held, "0000110000", on=on) == (2, 0, 0)
