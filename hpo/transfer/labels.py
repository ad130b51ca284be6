"""Which changes of a configuration keep their effect at other scales: scale-stable, scale-bound or undecided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpo.transfer.fit import LEVEL, Surface
from hpo.transfer.ladder import Ladder
from hpo.transfer.laws import excess
from hpo.transfer.scale import scale_of

Label = Literal["scale-stable", "scale-bound", "undecided"]
LOST = 0.5  # share of the effect at the smallest cell that is left at the largest, below which a change is scale-bound


@dataclass(frozen=True)
class CellEffect:
    """The effect of a change at one cell, as a difference of losses with its 90 % interval."""

    cell: tuple[Any, ...]
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Return -1 or 1 if the interval excludes 0, else 0."""
        return int(self.high < 0) * -1 + int(self.low > 0)


def cell_effects(
    ladder: Ladder, surface: Surface, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[CellEffect], Label]:
    """Return the effect of a change at each cell of a ladder, the smallest first, and the label of the change.

    The fields that do not change have their values in the copied configuration. A change is scale-stable if it has the
    same sign at all cells, each with an interval without 0, and keeps at least half of its effect. It is scale-bound if
    the effect at the smallest cell and its difference from that at the largest one have intervals without 0, and the
    sign changes or more than half of the effect is lost. Otherwise the ladder does not decide.

    before, after: values of the fields that change, by dotted field; each is an axis of the ladder.
    """
    points = np.array([_coordinates(ladder, values) for values in (before, after)])
    scales = np.array([scale_of(ladder.at(cell)) for cell in ladder.cells])
    draws = []
    for s in scales:
        of_points = excess(surface.layout, surface.draws, points, np.repeat(s[None, :], 2, 0))
        draws.append(of_points[:, 1] - of_points[:, 0])
    effects = [CellEffect(cell, float(d.mean()), *_interval(d)) for cell, d in zip(ladder.cells, draws, strict=True)]
    return effects, _label(effects, draws[-1] - draws[0])


def _coordinates(ladder: Ladder, values: Mapping[str, Any]) -> list[float]:
    return [axis.coordinate(float(values.get(axis.path, ladder.copied[axis.path]))) for axis in ladder.axes]


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _label(effects: Sequence[CellEffect], difference: np.ndarray) -> Label:
    first, last = effects[0], effects[-1]
    low, high = _interval(difference)
    kept = last.mean / first.mean if first.mean else 0.0
    if first.sign and (low > 0 or high < 0) and kept < LOST:
        return "scale-bound"
    if first.sign and all(effect.sign == first.sign for effect in effects) and kept >= LOST:
        return "scale-stable"
    return "undecided"
