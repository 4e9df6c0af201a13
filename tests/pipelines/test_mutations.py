"""Random damage: whatever the bytes, ingest ends with a typed reason or with frames, never with another error."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import clips
from pipelines.video import VideoError, probe
from tests.pipelines import videos

SETTINGS = clips.ClipSettings(size=(32, 40), min_frames=1, max_pixels=10**6)
CODES = {"unreadable", "truncated", "corrupt", "timestamps", "no_video_stream", "too_large", "pixel_format"}


def mutate(data, generator):
    """Bytes with a few random edits: flips, zeroed or doubled stretches, cuts."""
    data = bytearray(data)
    for _ in range(int(generator.integers(1, 6))):
        at, length = int(generator.integers(0, len(data))), int(generator.integers(1, 200))
        kind = generator.integers(0, 5)
        if kind == 0:
            data[at] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            data[at : at + length] = generator.bytes(len(data[at : at + length]))
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            del data[at : at + length]
        elif generator.random() < 0.3:
            del data[at:]
        data = data or bytearray(b"x")
    return bytes(data)


def store(data):
    """What ingest does with a file once it is opened."""
    table, report = clips.source_table(data, SETTINGS.max_pixels), clips.Report()
    for clip in clips.make_clips(data, SETTINGS, report, table, clips.plan(table, "source")):
        assert len(probe(clip.data)) == len(clip.rows)


def outcomes(folder, count):
    """{outcome: how often} over `count` mutated files of three containers."""
    kinds = ("mp4", "mkv", "ts")
    whole = [Path(videos.write(folder / f"a.{kind}", 24, size=(48, 64))).read_bytes() for kind in kinds]
    generator, found = np.random.default_rng(0), {}
    for index in range(count):
        data = mutate(whole[index % len(whole)], generator)
        try:
            outcome = "kept"
            assert 1 <= len(probe(data, max_pixels=SETTINGS.max_pixels)) <= 200
            store(data)
        except VideoError as error:
            outcome = error.code
        found[outcome] = found.get(outcome, 0) + 1
    return found


def test_mutated_files(tmp_path):
    found = outcomes(tmp_path, 90)
    assert set(found) <= CODES | {"kept"}
    assert found["kept"] > 30


@pytest.mark.slow
def test_a_thousand_mutated_files(tmp_path):
    assert set(outcomes(tmp_path, 1000)) <= CODES | {"kept"}
