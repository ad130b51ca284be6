"""The ranges of a search space: an interval on a linear, logarithmic or complement-log scale, or a list of choices."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hpo.search.foreign_ranges import read_range
from hpo.search.prior import Choice, ChoicePrior, Number, Prior
from model.section import Section

MAX_STEPS = 1_000_000  # of a range, because some samplers try every value


class Range(Section):
    """An interval, including both ends. The keys of a W&B sweep (min, max, q, distribution) are accepted too."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Whether values are uniform in log x. Requires low > 0."""
    complement_log: bool = False
    """Whether values are uniform in log (1 - x), for decay rates such as beta2: 0.9, 0.99 and 0.999 are equally far
    apart. Requires high < 1."""
    step: Number | None = None
    """Distance between values: only low, low + step, ..., high are used. Default: 1 for whole numbers, else
    continuous."""
    prior: Prior | None = None
    """Where you expect the best value: {at: 3e-3} or {at: 3e-3, trust: strong}. Default: no prior."""

    @model_validator(mode="before")
    @classmethod
    def _read_sweep_words(cls, given: Any) -> Any:
        return read_range(given)

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high, got low {self.low} and high {self.high}")
        if self.log and self.complement_log:
            raise ValueError("must not have both log and complement_log; remove one of them")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be greater than 0 for log, got {self.low}")
        if self.complement_log and self.high >= 1:
            raise ValueError(f"high must be less than 1 for complement_log, got {self.high}")
        if self.step is not None:
            self._check_step(_decimal(self.step))
        if self.prior is not None and not self.low <= self.prior.at <= self.high:
            raise ValueError(
                f"prior.at must be in the range, from {self.low} to {self.high}, got {self.prior.at}; "
                "move the prior, or widen the range"
            )
        return self

    def _check_step(self, step: Decimal) -> None:
        if self.log or self.complement_log:
            raise ValueError("step must not be combined with log or complement_log; remove one of them")
        if step <= 0:
            raise ValueError(f"step must be greater than 0, got {step}")
        width = _decimal(self.high) - _decimal(self.low)
        if width / step > MAX_STEPS:
            raise ValueError(f"step must give at most {MAX_STEPS:,} steps from low to high, got {step}; increase it")
        if rest := width % step:
            raise ValueError(
                f"high must be low plus a multiple of step, got {self.high}; use {_decimal(self.high) - rest}"
            )

    def distribution(self, kind: type) -> BaseDistribution:
        """Return Optuna's distribution for a field of this type, int or float.

        Optuna has no complement-log scale, so that the sampler transforms the values. The storage holds the values
        themselves.
        """
        if kind is int:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        step = None if self.step is None else float(self.step)
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=step)


class Choices(Section):
    """A list of values, without an order. The key of a W&B sweep (values) is accepted too."""

    choices: tuple[Choice, ...] = Field(min_length=1)
    """The values, at least one, each different."""
    prior: ChoicePrior | None = None
    """Which choice you expect to be the best: {at: 0.05} or {at: 0.05, trust: strong}. Default: no prior."""

    @model_validator(mode="before")
    @classmethod
    def _read_sweep_words(cls, given: Any) -> Any:
        return read_range(given)

    @field_validator("choices")
    @classmethod
    def _check_distinct(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        seen: set[Choice] = set()
        for choice in choices:
            if choice in seen:  # Optuna finds a choice by ==, so that True and 1 are equal
                raise ValueError(f"must be distinct, got {choice!r} twice; remove one of them")
            seen.add(choice)
        return choices

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.prior is not None and self.prior.at not in self.choices:
            raise ValueError(
                f"prior.at must be one of the choices, got {self.prior.at!r}; use one of {list(self.choices)!r:.200}"
            )
        return self

    def distribution(self, kind: type) -> BaseDistribution:
        """Return Optuna's distribution, which does not depend on the type of the field."""
        return CategoricalDistribution(self.choices)


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))  # as in Optuna, so that 0.3 is three steps of 0.1


def _tag(given: Any) -> str:
    """Return the tag of the union `Space`: choices or range."""
    if isinstance(given, Mapping):
        return "choices" if given.keys() & {"choices", "values"} else "range"
    return "choices" if isinstance(given, Choices) else "range"


Entry = Range | Choices
Space = dict[str, Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_tag)]]


def is_inside(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a value is in a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if not isinstance(value, int | float) or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / (distribution.step or 1)
    return distribution.step is None or abs(steps - round(steps)) < 1e-8


def discrete_values(entry: Entry, kind: type) -> Sequence[Any] | None:
    """Return all values of a discrete range, None for a continuous range.

    kind: type of the field, int or float.
    """
    if isinstance(entry, Choices):
        return entry.choices
    if kind is int:
        return range(
            int(entry.low), int(entry.high) + 1, int(entry.step or 1) or 1
        )  # `space_problems` reports a step below 1 later
    if entry.step is None:
        return None
    low, step = _decimal(entry.low), _decimal(entry.step)
    return [float(low + k * step) for k in range(int((_decimal(entry.high) - low) / step) + 1)]


def nearest_value(entry: Range, value: float, kind: type) -> int | float:
    """Return the value of a range that is nearest to a number between its ends."""
    if kind is not int and entry.step is None:
        return min(max(value, float(entry.low)), float(entry.high))
    low, step = _decimal(entry.low), _decimal(entry.step or 1)
    n_steps = int((_decimal(entry.high) - low) / step)
    nearest = low + step * min(max(round((_decimal(value) - low) / step), 0), n_steps)
    return int(nearest) if kind is int else float(nearest)


def spaced_values(entry: Entry, points: int, kind: type = float) -> list[Any]:
    """Return values that are evenly spaced on the scale of a range, including both ends; all values of choices.

    points: number of values. A discrete range with fewer values returns all of them.
    """
    if isinstance(entry, Choices):
        return list(entry.choices)
    grid = discrete_values(entry, kind)
    if grid is not None and not entry.log:
        n = min(points, len(grid))
        return [grid[round(i * (len(grid) - 1) / max(1, n - 1))] for i in range(n)]
    spaced = [value_at(entry, i / (points - 1)) for i in range(points)]
    return list(dict.fromkeys(round(x) for x in spaced)) if kind is int else spaced


def value_at(entry: Range, t: float) -> float:
    """Return the value at a position in [0, 1] on the scale of the range. This is the inverse of `unit_position`."""
    low, high = float(entry.low), float(entry.high)
    if t in (0, 1):
        return high if t else low  # exact, because the formulas below may round
    if entry.log:
        return float(low * (high / low) ** t)
    if entry.complement_log:
        return float(1 - (1 - low) * ((1 - high) / (1 - low)) ** t)
    return low + (high - low) * t
