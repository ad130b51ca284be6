"""The noise floor of a study: how far runs of one configuration differ when only their seed changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist, fmean, stdev

from hpo.console import Rounded, format_number
from hpo.search.direction import Direction
from hpo.storage.trials import State, Trial

MOST_DECIMALS = 12  # a smaller sigma is rounding error, so more decimals carry no information


@dataclass(frozen=True)
class Noise:
    """Mean and standard deviation of n runs of the baseline that differ only in their seed.

    direction: of the study, which decides on which side of the mean a better value lies.
    """

    n: int
    mean: float
    sigma: float
    runs: Sequence[Trial] = field(default=(), repr=False, compare=False)
    direction: Direction = Direction.MINIMIZE

    def expected_best(self, n: int) -> float:
        """Return the expected best value of n further runs of the baseline, which n trials reach by chance alone."""
        loss = self.direction.loss
        return loss(expected_minimum(n, loss(self.mean), self.sigma))

    @property
    def sample_sigma(self) -> float:
        """The sample standard deviation, which is too small by c4(n) on average."""
        return self.sigma * c4(self.n)

    @cached_property
    def curve(self) -> dict[int, tuple[float, float]]:
        """Rung -> mean and standard deviation there, for each rung at which all runs have a finite value.

        Read on demand, because `hpo status` needs no curves.
        """
        curves = [run.intermediate_values for run in self.runs]
        rungs = sorted(set.intersection(*map(set, curves))) if curves else []
        values = {rung: [curve[rung] for curve in curves] for rung in rungs}
        return {r: (fmean(v), unbiased_stdev(v) or 0.0) for r, v in values.items() if all(map(math.isfinite, v))}


def noise_floor(runs: Sequence[Trial], direction: Direction = Direction.MINIMIZE) -> Noise | None:
    """Return the noise floor of finished runs of the baseline, None for fewer than two runs."""
    values = [run.values[0] for run in runs]
    sigma = unbiased_stdev(values)
    return None if sigma is None else Noise(len(values), fmean(values), sigma, tuple(runs), direction)


def unbiased_stdev(values: Sequence[float]) -> float | None:
    """Return the standard deviation of runs that differ only in their seed, None for fewer than two values.

    The sample standard deviation of n normal values is too small by the factor c4(n): 0.80 for n = 2, 0.92 for
    n = 4. The result is corrected for c4. It needs the standard library alone, because scipy takes longer to load
    than `hpo status` takes to run.
    """
    return stdev(values) / c4(len(values)) if len(values) > 1 else None


def c4(n: int) -> float:
    """Return the mean of the sample standard deviation of n standard normal values.

    c4(n) = sqrt(2 / (n - 1)) * Gamma(n / 2) / Gamma((n - 1) / 2). A test compares it with scipy.
    """
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def expected_minimum(n: int, mean: float, sigma: float) -> float:
    """Return the expected minimum of n independent normal values, which n runs reach by chance alone.

    Source: Blom 1958, the mean of the first order statistic is about Phi^-1((1 - 3/8) / (n + 1/4)).
    """
    return mean + sigma * NormalDist().inv_cdf((1 - 0.375) / (n + 0.25))


def decimals(sigma: float) -> int:
    """Return the number of decimals to print: down to the second significant digit of sigma."""
    return min(max(0, 1 - math.floor(math.log10(sigma))), MOST_DECIMALS) if sigma > 0 else 4


def rounded(floor: Noise | None, value: float) -> float:
    """Return a value of the objective that prints with the decimals of the noise floor."""
    return value if floor is None else Rounded(value, decimals(floor.sigma))


def sigmas(floor: Noise, trial: Trial, value: float | None) -> float | None:
    """Return how many sigmas a trial's value is better than the baseline's mean at the same rung.

    None where the value is not finite, where sigma is 0, or where the value is not that of the trial's last rung.
    """
    mean, sigma = floor.mean, floor.sigma
    if trial.state != State.COMPLETE:
        rung = trial.last_step or 0
        known = trial.intermediate_values.get(rung) == value  # the last rung may have had no finite loss
        mean, sigma = floor.curve.get(rung, (mean, 0.0)) if known else (mean, 0.0)
    if value is None or sigma == 0 or not math.isfinite(value):
        return None
    return Rounded(floor.direction.loss(mean - value) / sigma, 1)


def baseline_text(floor: Noise) -> str:
    """Return the baseline's mean with its noise, such as "3.846 ± 0.011 (4 seeds)"."""
    d = decimals(floor.sigma)
    return f"{format_number(Rounded(floor.mean, d))} ± {format_number(Rounded(floor.sigma, d))} ({floor.n} seeds)"
