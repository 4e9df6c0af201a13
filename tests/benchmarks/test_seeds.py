"""All seeds of the benchmark learn what each learns by itself, and its numbers belong together."""

from argparse import Namespace

import pytest

from benchmarks.hilp import batches
from benchmarks.seeds import operations, row, several, single


def test_a_size():
    found = row("8x4", Namespace(seeds=3, repeats=1))
    assert found["difference"] < 1e-4
    assert found["gain"] == pytest.approx(3 / found["ratio"]) and found["products"] > 0


def test_products_are_as_many_as_the_seeds_have():
    batch = batches(Namespace(batch=4, state=2, action=2))
    assert operations(several(batch, 8, 3)[0]) == 3 * operations(single(batch, 8)[0]) > 0
