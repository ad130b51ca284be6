"""The improvements of the best value during a search in units of the noise, and which of them are no evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpo.analysis.noise import Noise, decimals
from hpo.analysis.snapshot import Snapshot
from hpo.console import Rounded, format_number

CLEAR_SIGMAS = 2.0  # a smaller gain may be noise
LEVEL = 0.95  # of the interval of sigma


@dataclass(frozen=True)
class Improvement:
    """A trial that became the best: its value, its gain on the best before it, and the gain in sigmas."""

    trial: int
    value: float
    gain: float
    sigmas: float


def improvements(snapshot: Snapshot) -> list[Improvement]:
    """Return the improvements of the best value, in the order in which the trials ended.

    The trials are the complete ones that compete for the best. The first of them starts the sequence. The list is empty
    without a noise floor, because sigma is then unknown.
    """
    floor = snapshot.noise
    if floor is None or floor.sigma == 0:
        return []
    steps, best = [], math.nan
    for trial in sorted((t for t in snapshot.feasible if t.ended), key=lambda t: (t.ended, t.number)):
        loss = snapshot.loss(trial)
        if loss < best:
            steps.append(Improvement(trial.number, trial.values[0], best - loss, (best - loss) / floor.sigma))
        best = loss if math.isnan(best) else min(best, loss)
    return steps


def improvements_within_noise(steps: Sequence[Improvement]) -> list[Improvement]:
    """Return the improvements below two sigma."""
    return [step for step in steps if step.sigmas < CLEAR_SIGMAS]


def improvement_lines(snapshot: Snapshot) -> list[str]:
    """Return a line that says which improvements of the best are below two sigma, no line without a noise floor."""
    steps, floor = improvements(snapshot), snapshot.noise
    if floor is None or not steps:
        return []
    small, n = improvements_within_noise(steps), len(steps)
    low, high = (format_number(Rounded(end, decimals(floor.sigma))) for end in sigma_interval(floor))
    sigma = format_number(Rounded(floor.sigma, decimals(floor.sigma)))
    known = f"sigma {sigma} from {floor.n} seeds, between {low} and {high} with 95 % confidence"
    at_most = sum(step.gain < CLEAR_SIGMAS * sigma_interval(floor)[1] for step in steps)
    more = f"; with the largest of these sigmas, {at_most} of {n}" if at_most > len(small) else ""
    noun = "improvement" if n == 1 else "improvements"
    if not small:
        return [f"0 of {n} {noun} of the best are below two sigma ({known}){more}"]
    trials = f"trial{'s' if len(small) > 1 else ''} {', '.join(str(step.trial) for step in small)}"
    advice = "do not read it as a gain" if len(small) == 1 else "do not read them as gains"
    return [f"{len(small)} of {n} {noun} of the best are below two sigma: {advice} ({trials}; {known}){more}"]


def improvement_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one record per improvement, for `--format json`."""
    return [{"trial": s.trial, "value": s.value, "gain": s.gain, "sigmas": s.sigmas} for s in improvements(snapshot)]


def sigma_interval(floor: Noise) -> tuple[float, float]:
    """Return the ends of the 95 % confidence interval of sigma: s sqrt((n - 1) / chi2), with chi2 of n - 1 degrees."""
    degrees, s = floor.n - 1, floor.sample_sigma
    low, high = (chi2_quantile(p, degrees) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return s * math.sqrt(degrees / low), s * math.sqrt(degrees / high)


def chi2_quantile(p: float, degrees: int) -> float:
    """Return the quantile of the chi-squared distribution, by bisection.

    It needs the standard library alone, because scipy takes longer to load than `hpo status` takes to run.
    """
    low, high = 0.0, 10.0 * degrees + 50.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _chi2_cdf(middle, degrees) < p else (low, middle)
    return high


def _chi2_cdf(x: float, degrees: int) -> float:
    """Return the regularized lower incomplete gamma function P(degrees / 2, x / 2), by its power series."""
    a, x = degrees / 2, x / 2
    term = total = 1 / a
    k = a
    while term > 1e-16 * total:
        k += 1
        term *= x / k
        total += term
    return total * math.exp(a * math.log(x) - x - math.lgamma(a)) if x > 0 else 0.0
