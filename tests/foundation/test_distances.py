"""Distances of representations beside those of a world."""

from types import SimpleNamespace

import numpy as np
import pytest

from foundation import hub
from foundation.distances import compare
from foundation.prompts import Prompts
from models.hilbert import METRICS
from pipelines.trajectories import Spaces
from tests.foundation.skills import write_skills


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_compared(metric, tmp_path):
    places = np.arange(5)
    line = SimpleNamespace(
        distances=lambda: np.abs(places[:, None] - places), xy=lambda cell: np.stack([cell, 0 * cell], -1),
        steps_per_cell=20,
    )  # fmt: skip
    spaces = Spaces(2, 2, low=(-1.0,) * 2, high=(1.0,) * 2)
    numbers = compare(Prompts(hub.load(write_skills(tmp_path, spaces, metric=metric))), line, "here")
    assert -1 <= numbers["here/spearman"] <= 1 and numbers["here/spearman_coordinates"] == pytest.approx(1)
