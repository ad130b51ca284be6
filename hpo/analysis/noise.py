"""The noise floor: what the same configuration differs by from seed to seed, and so what a result must beat."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from hpo.console import Rounded
from hpo.storage.trials import State, Trial

if TYPE_CHECKING:
    pass

MOST_DECIMALS = 12  # a sigma that is nothing but rounding errors is worth no more


class Run(Protocol):
    """A finished run of the baseline, as Optuna holds it or as we read it."""

    @property
    def values(self) -> Any: ...
    @property
    def intermediate_values(self) -> dict[int, float]: ...


@dataclass(frozen=True)
class Noise:
    """n runs of the baseline that differ in their seed alone: mean and standard deviation, at the end and by rung."""

    n: int
    mean: float
    sigma: float
    curve: dict[int, tuple[float, float]]

    def stored(self) -> dict[str, Any]:
        """Return what `restored` reads; JSON has no numbers for keys."""
        return asdict(self) | {"curve": {str(rung): list(point) for rung, point in self.curve.items()}}


def restored(held: Mapping[str, Any]) -> Noise:
    """Return the noise floor that `Noise.stored` described."""
    curve = {int(rung): (mean, sigma) for rung, (mean, sigma) in held["curve"].items()}
    return Noise(held["n"], held["mean"], held["sigma"], curve)


def measured(runs: Sequence[Run]) -> Noise | None:
    """Return the noise floor of these runs, None for fewer than two."""
    if len(runs) < 2:
        return None
    ends = [run.values[0] for run in runs]
    rungs = sorted(set.intersection(*(set(run.intermediate_values) for run in runs)))
    curve = {rung: (fmean(points), _spread(points)) for rung in rungs if (points := _at(runs, rung))}
    return Noise(len(ends), fmean(ends), _spread(ends), curve)


def _at(runs: Sequence[Run], rung: int) -> list[float]:
    """Return the values of a rung where all are finite."""
    points = [run.intermediate_values[rung] for run in runs]
    return points if all(map(math.isfinite, points)) else []


def _spread(values: Sequence[float]) -> float:
    from hpo.analysis.statistics import spread  # loads scipy, which takes longer than a command that only looks

    return spread(values) or 0.0


def decimals(sigma: float) -> int:
    """Return the decimals that are worth printing: those down to the second digit of sigma."""
    return min(max(0, 1 - math.floor(math.log10(sigma))), MOST_DECIMALS) if sigma > 0 else 4


def rounded(floor: Noise | None, value: float) -> float:
    """Return a value of the objective, for a person with the decimals that the noise leaves."""
    return value if floor is None else Rounded(value, decimals(floor.sigma))


def sigmas(floor: Noise, trial: Trial, value: float | None) -> float | None:
    """Return how many sigma a value lies below the baseline's mean at the same rung; None where none is known."""
    mean, sigma = floor.mean, floor.sigma
    if trial.state != State.COMPLETE:
        rung = trial.last_step or 0
        known = trial.intermediate_values.get(rung) == value  # its last rung may have had no finite loss
        mean, sigma = floor.curve.get(rung, (mean, 0.0)) if known else (mean, 0.0)
    if value is None or sigma == 0 or not math.isfinite(value):
        return None
    return Rounded((mean - value) / sigma, 1)


def beside(floor: Noise) -> str:
    """Return the baseline's mean with its noise, such as 3.846 ± 0.011 (4 seeds)."""
    d = decimals(floor.sigma)
    return f"{floor.mean:,.{d}f} ± {floor.sigma:,.{d}f} ({floor.n} seeds)"
