"""The searched fields of a ladder as axes of a fit: one coordinate per number, on the scale of its range.

Fields that are not numbers keep the value of the copied configuration, because a law extrapolates numbers only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from hpo.search.ranges import Choices, Range, Space
from hpo.search.space import configs_with_field, field_type
from model.section import flat

Scale = Literal["log", "complement_log", "linear"]
BATCH = ("run.batch_size", "run.grad_accum")


@dataclass(frozen=True)
class Axis:
    """One searched number.

    path: dotted field. scale: how its values become coordinates. low, high: ends of the searched range.
    whole: whether its values are whole numbers. choices: the values of a list, () for a range.
    """

    path: str
    scale: Scale
    low: float
    high: float
    whole: bool
    choices: tuple[float, ...] = ()

    @property
    def role(self) -> str:
        """Return what the published exponents call the field: lr, batch, decay, horizon or other."""
        leaf = self.path.rpartition(".")[2]
        if self.path in BATCH:
            return "batch"
        if leaf == "lr" or leaf.endswith("_lr"):
            return "lr"
        return {"weight_decay": "decay", "decay_horizon": "horizon"}.get(leaf, "other")

    def coordinate(self, value: float) -> float:
        """Return the position of a value on the scale of the axis."""
        if self.scale == "log":
            return math.log(value)
        return -math.log1p(-value) if self.scale == "complement_log" else float(value)

    def value(self, coordinate: float) -> float:
        """Return the value at a coordinate. Whole numbers are rounded, values on a linear scale stay in the range."""
        if self.scale == "log":
            number = math.exp(coordinate)
        elif self.scale == "complement_log":
            number = -math.expm1(-coordinate)
        else:
            number = min(max(coordinate, self.low), self.high)
        if not self.whole:
            return number
        return max(1, round(number)) if self.scale == "log" else round(number)

    def holds(self, value: Any) -> bool:
        """Return whether a value has a coordinate: null has none, and 0 has none on a log scale."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return value > 0 if self.scale == "log" else value < 1 if self.scale == "complement_log" else True


def axis_of(path: str, entry: Range | Choices, kind: type) -> Axis | None:
    """Return the axis of an entry of the space, None if its values are not numbers that can vary."""
    whole = kind is int
    if isinstance(entry, Range):
        scale: Scale = "log" if entry.log else "complement_log" if entry.complement_log else "linear"
        return Axis(path, scale, float(entry.low), float(entry.high), whole)
    numbers = [c for c in entry.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if len(numbers) < len(entry.choices) or len(numbers) < 2:
        return None
    ordered = tuple(sorted(float(n) for n in numbers))
    near_one = ordered[0] >= 0.5 and ordered[-1] < 1  # the coefficients of running means
    of_list: Scale = "complement_log" if near_one else "log" if ordered[0] > 0 else "linear"
    return Axis(path, of_list, ordered[0], ordered[-1], whole, ordered)


def axes_of(base: BaseModel, space: Space, fixed: Mapping[str, Any]) -> list[Axis]:
    """Return the axes of a space: learning rates, the batch, then the others in their order.

    The best learning rate is modelled as a function of the batch and not the reverse (`hpo.transfer.laws`), so the
    order of the space must not decide. A field whose value in the base has no coordinate is no axis.

    fixed: fields that do not vary in a ladder, such as its lengths and sizes. Where both factors of the batch are
    searched, only the number of sequences varies, because their product decides.
    """
    paths = [path for path in space if path not in fixed and configs_with_field(base, space, path)]
    if set(BATCH) <= set(paths):
        paths.remove("run.grad_accum")
    fields = flat(base)
    found = [axis_of(path, space[path], field_type(base, path)) for path in paths if path in fields]
    axes = [axis for axis in found if axis is not None and axis.holds(fields[axis.path])]
    return sorted(axes, key=lambda axis: ("lr", "batch", axis.role).index(axis.role))
