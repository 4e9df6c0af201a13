"""Which files of a folder are found: links are followed, circles end."""

import os

import pytest

from pipelines.folders import files_below
from pipelines.schema import DataError


def is_video(name):
    return name.endswith(".mp4")


def test_files_are_found_behind_links(tmp_path):
    videos, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for path in (videos / "b.mp4", videos / "a" / "c.mp4", videos / "a" / "c.txt", elsewhere / "d.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (videos / "e.mp4").mkdir()
    (videos / "f").symlink_to(elsewhere)
    (videos / "g.mp4").symlink_to(elsewhere / "d.mp4")
    (videos / "gone.mp4").symlink_to(elsewhere / "gone.mp4")
    (elsewhere / "round").symlink_to(videos)
    found = [path.relative_to(videos).as_posix() for path in files_below(videos, is_video)]
    assert found == ["a/c.mp4", "b.mp4", "f/d.mp4", "g.mp4"]


def test_a_link_to_where_it_lies_ends(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "self").symlink_to(".")
    assert files_below(tmp_path, is_video) == [tmp_path / "a.mp4"]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom nothing is closed to
    with pytest.raises(DataError, match="closed may not be read"):
        files_below(tmp_path, is_video)
