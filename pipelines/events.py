"""Key events: presses and releases, and how predicted ones match recorded ones within a collar.

An *event* is a change of a key between two successive frames of one segment: a press, or a release. A key that is down
when a segment starts has no press there. Predicted and recorded events of one kind match one to one if they lie at most
`collar` frames apart in one segment.

A hold without a single effective frame (a door key far from doors) cannot be seen: its press and release are dropped
from the truth, and predicted events inside it, widened by the collar, are neither right nor wrong.
"""

import numpy as np


def match_key(held, guess, on, start, collar=2):
    """Recorded and predicted holds of one key, bool [n] each -> counts (matched, spurious, missed) of its events.

    on bool [n]: False where the key is held without effect. start bool [n]: first frame of a segment.
    """
    hidden = holds_without_effect(held, on, start)
    right = spurious = missed = 0
    for press in (True, False):
        true, said = events(held, start, press), events(guess, start, press)
        visible = true[~(hidden[true] if press else hidden[true - 1])]
        matched, loose = match(visible, said, start, collar)
        right, missed = right + matched, missed + len(visible) - matched
        spurious += int((~near(loose, hidden, start, collar)).sum())
    return right, spurious, missed


def holds_without_effect(held, on, start):
    """bool [n]: frames of holds of the key that have no effective frame."""
    change = start | np.diff(held, prepend=held[:1])
    run = change.cumsum() - 1  # numbers the runs of equal state
    effective = np.bincount(run, weights=held & on) > 0
    return held & ~effective[run]


def events(held, start, press):
    """Frames [m] at which a key goes down (press) or is up again (release), inside segments."""
    before = np.roll(held, 1)
    change = held & ~before if press else ~held & before
    return np.flatnonzero(change & ~start)


def match(true, said, start, collar):
    """One-to-one matches of sorted frames at most `collar` apart in one segment -> (count, unmatched said).

    Taking the earliest partner each time gives the largest matching.
    """
    segment = start.cumsum()
    matched, loose, i = 0, [], 0
    for frame in said:
        while i < len(true) and (segment[true[i]] < segment[frame] or true[i] < frame - collar):
            i += 1
        if i < len(true) and true[i] <= frame + collar and segment[true[i]] == segment[frame]:
            matched, i = matched + 1, i + 1
        else:
            loose.append(frame)
    return matched, np.array(loose, np.int64)


def near(frames, hidden, start, collar):
    """bool per frame: within `collar` of a hidden hold (its release frame included) of the same segment."""
    segment, n = start.cumsum(), len(hidden)
    release = np.roll(hidden, 1) & ~start
    spots = np.clip(frames[:, None] + np.arange(-collar, collar + 1), 0, n - 1)  # m 2c+1
    return ((hidden | release)[spots] & (segment[spots] == segment[frames][:, None])).any(1)
