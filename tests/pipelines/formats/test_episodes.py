"""Where episodes begin and end in a recording, and the bounds of their actions."""

import numpy as np
import pytest

from pipelines.formats.episodes import FormatError, Options, cut
from pipelines.schema import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from tests.pipelines.exchanging import flat


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("marked", [True, False])
def test_boundaries_do_not_depend_on_the_blocks(size, marked):
    columns, ends = flat([4, 1, 3, 6])
    rows = {
        OBSERVATION: columns["observations"], NEXT_OBSERVATION: columns["next_observations"],
        ACTION: columns["actions"], REWARD: columns["rewards"], TERMINATED: np.zeros(14, bool),
    }  # fmt: skip
    rows |= {TRUNCATED: ends} if marked else {}
    blocks = [{name: value[i : i + size] for name, value in rows.items()} for i in range(0, 14, size)]
    parts = list(cut(blocks))
    assert [len(part[REWARD]) for part in parts] == [4, 1, 3, 6]
    np.testing.assert_array_equal(np.concatenate([part[ACTION] for part in parts]), columns["actions"])


def test_bounds():
    assert Options().bounds(2) == ((-1.0, -1.0), (1.0, 1.0))
    assert Options(low=0, high=(1, 2)).bounds(2, (-5, 5)) == ((0.0, 0.0), (1.0, 2.0))
    for options, found in (
        (Options(), (-np.inf, np.inf)),
        (Options(low=1, high=0), None),
        (Options(low=(0, 0, 0), high=1), None),
    ):
        with pytest.raises(FormatError, match="bounds"):
            options.bounds(2, found)
