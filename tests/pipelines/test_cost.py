"""Operations per file do not depend on how many files there are: counted, never timed."""

import sys
from collections import Counter

import pytest

from foundation.pretraining.data import ShardData
from pipelines.pixels import encode
from pipelines.shards import ShardWriter
from tests.pipelines import videos
from tests.pipelines.running import ingest
from tests.pipelines.test_label import make_clips, make_idm
from tests.pipelines.test_label import run as label

EVENTS = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove"}
LISTINGS = ("os.listdir", "os.scandir")
SIZES = 3, 6, 9


class Operations:
    """Counts file operations under a folder while it is active; hooks cannot be taken back, so there is one."""

    def __init__(self):
        self.folder, self.count = None, Counter()
        sys.addaudithook(self._see)

    def _see(self, event, arguments):
        if self.folder and event in EVENTS and arguments and str(arguments[0]).startswith(self.folder):
            self.count[event] += 1

    def of(self, folder, function):
        self.folder, self.count = str(folder), Counter()
        try:
            function()
        finally:
            self.folder = None
        return self.count


@pytest.fixture(scope="module")
def operations():
    return Operations()


def check_linear(counts):
    """counts: of SIZES, which are evenly spaced. Each further file costs what the one before it did."""
    small, middle, large = counts
    for event in EVENTS - set(LISTINGS):
        assert large[event] - middle[event] == middle[event] - small[event], event
    for event in LISTINGS:
        assert small[event] == middle[event] == large[event], f"{event} for every file"
    assert large["open"] > small["open"]  # something was counted


def test_ingest(operations, tmp_path):
    counts = []
    for size in SIZES:
        source = tmp_path / f"in{size}"
        source.mkdir()
        for index in range(size):
            encode(videos.scene(18, seed=index), 20, source / f"{index}.mp4")
        counts.append(operations.of(tmp_path, lambda s=size, v=source: ingest(v, tmp_path / f"out{s}")))
    check_linear(counts)
    assert counts[-1]["os.rename"] == 4 * SIZES[-1] + counts[0]["os.rename"] - 4 * SIZES[0]  # tar, index, two JSON


def test_label(operations, tmp_path):
    idm, counts = make_idm(tmp_path / "idm"), []
    for size in SIZES:
        clips = make_clips(tmp_path / f"clips{size}", videos=size, clips_per_video=1, per_shard=1)
        counts.append(operations.of(tmp_path, lambda s=size, c=clips: label((c, idm), tmp_path / f"labels{s}")))
    check_linear(counts)


def test_start_of_training(operations, make_play, tmp_path):
    counts = []
    for size in SIZES:
        shards = make_play(tmp_path / f"clips{size}", videos=size, clips=3)  # one shard each
        counts.append(operations.of(shards, lambda s=shards: data(s)))
    check_linear(counts)


def data(shards):
    return ShardData(
        train=shards, keep=None, validation=None, labels=None, length=8, stride=8, carry=True, nulls="drop",
        targets="hard", augment=None, features="frames", batch_size=2, workers=0, cache_gb=0.0, hours=None,
        on_damage="stop", steps=1, seed=0,
    )  # fmt: skip


def test_a_unit_is_committed_without_a_look_around(operations, tmp_path):
    def write(unit, count):
        with ShardWriter(tmp_path, "u", samples_per_shard=1, unit=unit) as writer:
            for index in range(count):
                writer.write(f"k{index}", {"mp4": b"x", "json": {}})

    seen = operations.of(tmp_path, lambda: (write("first", 3), write("second", 1)))
    assert not any(seen[event] for event in LISTINGS)
    assert [path.name for path in tmp_path.glob("*.json")] == ["u-00000.json"]  # the longer version's parts are gone


def test_parts_of_a_longer_version_go_with_the_one_that_commits(tmp_path):
    """A unit that has become empty, at a kill before and in the middle of the clean-up."""
    for left in ((1, 2), (1,)):  # parts are committed in ascending order and dropped in descending order
        for number in left:
            (tmp_path / f"u-{number:05d}.json").write_text("{}")
        with ShardWriter(tmp_path, "u", unit="empty"):
            pass
        assert not list(tmp_path.iterdir())
