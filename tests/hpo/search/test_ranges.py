"""The scales of a range: positions and values are the inverse of each other."""

import math

import pytest

from hpo.search.ranges import Range, spaced_values
from hpo.search.scale import unit_position


@pytest.mark.parametrize(
    "entry",
    [
        Range(low=-2.0, high=6.0),
        Range(low=1e-4, high=1e-1, log=True),
        Range(low=0.9, high=0.999, complement_log=True),
    ],
    ids=["linear", "log", "complement_log"],
)
def test_evenly_spaced_values_are_at_evenly_spaced_positions(entry: Range) -> None:
    points = spaced_values(entry, 5)
    positions = [
        unit_position(x, entry.low, entry.high, log=entry.log, complement_log=entry.complement_log) for x in points
    ]
    assert positions == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_position_is_measured_in_the_logarithm_of_the_value_or_of_its_complement() -> None:
    assert unit_position(0.99, 0.9, 0.999, complement_log=True) == pytest.approx(0.5)
    assert unit_position(1e-2, 1e-3, 1e-1, log=True) == pytest.approx(0.5)
    assert unit_position(1e-2, 1e-3, 1e-1) == pytest.approx(math.fsum([1e-2, -1e-3]) / 0.099)
