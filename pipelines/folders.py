"""Which files a folder holds."""

import os
from pathlib import Path

from pipelines.schema import DataError


def files_below(folder, fits):
    """Sorted paths of the files below `folder` for whose name `fits` holds; links are followed, also those to folders.

    A link to a folder that it lies in is left out: its files are found already. DataError for a folder that may not be
    read.
    """
    return sorted(_walk(Path(folder), fits, frozenset()))


def _walk(folder, fits, around):
    """`around`: real paths of the folders on the way here."""
    here = os.path.realpath(folder)
    if here in around:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _walk(folder / entry.name, fits, around | {here})
                elif entry.is_file() and fits(entry.name):
                    yield folder / entry.name
    except PermissionError as error:
        raise DataError(
            f"{folder} may not be read ({error.strerror}); ask for the right to, or take it away"
        ) from error
