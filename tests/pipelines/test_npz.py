"""Array members: nothing in them can run code or claim more memory than they hold."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.shards import unpack


def npz(header, data=b""):
    """An npz whose one array has the given header dict (or bytes)."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, header)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("x.npy", array.getvalue() + data)
    return target.getvalue()


def test_array_header_that_promises_terabytes():
    bomb = npz({"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with pytest.raises(DataError, match="promises"):
        unpack(bomb, "x")


def test_arrays_that_are_pickles_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    bomb = npz({"descr": "|O", "fortran_order": False, "shape": ()}, pickle.dumps(Payload()))
    with pytest.raises(DataError, match="pickle"):
        unpack(bomb, "x")
    assert not (tmp_path / "owned").exists()


def test_zip_bomb_and_rubbish(monkeypatch):
    monkeypatch.setattr("pipelines.shards.MAX_ARRAY_BYTES", 1000)
    target = io.BytesIO()
    np.savez_compressed(target, x=np.zeros(100_000, np.uint8))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        unpack(target.getvalue(), "x")
    for rubbish in (b"", b"PK", target.getvalue()[:50]):
        with pytest.raises(DataError, match="not a readable npz"):
            unpack(rubbish, "x")


def test_array_layouts_survive():
    arrays = {
        "scalar": np.float32(3), "empty": np.zeros((0, 3), bool),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "half": np.linspace(0, 1, 5, dtype=np.float16),
    }  # fmt: skip
    target = io.BytesIO()
    np.savez(target, **arrays)
    for name, array in unpack(target.getvalue(), "x").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.flags.writeable
