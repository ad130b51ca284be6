"""Statistics of paired runs: differences, intervals, tests, and what a search's best value is worth.

All of it is scipy's and statsmodels'; only which of their functions answers which question is decided here.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Test = Literal["t", "wilcoxon"]

LEVEL = 0.95  # of every interval; a test is called significant below 1 - LEVEL
RESAMPLES = 9_999  # of a bootstrap interval
SEED = 0  # of its draws, so that the same runs always give the same interval


@dataclass(frozen=True)
class Paired:
    """n differences of paired runs: their mean, its interval, and the p-value of no difference."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def paired(differences: Sequence[float], test: Test = "t") -> Paired:
    """Return mean, bootstrap interval and p-value of paired differences.

    The interval is bias-corrected and accelerated (Efron 1987); of few pairs it is somewhat too narrow, so the
    p-value decides.

    Raises:
        ValueError: fewer than two.
    """
    d = np.asarray(differences, float)
    if len(d) < 2:
        raise ValueError(f"must be two pairs at least, got {len(d)}")
    mean = float(d.mean())
    if np.all(d == d[0]):  # the same to the last bit: no spread to draw from
        return Paired(len(d), mean, mean, mean, 1.0 if mean == 0 else 0.0)
    p = stats.wilcoxon(d).pvalue if test == "wilcoxon" else p_value(differences)
    low, high = _bootstrap(d)
    return Paired(len(d), mean, low, high, float(p))


def _bootstrap(d: np.ndarray) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (d,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(SEED)
        ).confidence_interval
    if not math.isfinite(found.low + found.high):  # all but one value equal
        found = stats.ttest_1samp(d, 0.0).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of Student's interval about it; the ends are infinite for one value."""
    v = np.asarray(values, float)
    mean = float(v.mean())
    if len(v) < 2:
        return mean, -math.inf, math.inf
    if np.all(v == v[0]):
        return mean, mean, mean
    found = stats.ttest_1samp(v, 0.0).confidence_interval(LEVEL)
    return mean, float(found.low), float(found.high)


def p_value(values: Sequence[float]) -> float:
    """Return the p-value of Student's test that the mean is 0."""
    v = np.asarray(values, float)
    if np.all(v == v[0]):
        return 1.0 if v[0] == 0 else 0.0
    return float(stats.ttest_1samp(v, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def min_pairs(test: Test, comparisons: int = 1) -> int:
    """Return the fewest pairs with which a test can call anything significant, corrected for several comparisons.

    A signed-rank test of n pairs has no p-value below 2 / 2^n. A t test needs a spread; of two pairs that is worth
    nothing, so three.
    """
    level = (1 - LEVEL) / comparisons
    return 3 if test == "t" else math.floor(1 + math.log2(1 / level)) + 1


def required_pairs(gain: float, sigma: float, power: float = 0.9, comparisons: int = 1) -> int:
    """Return the pairs that a t test needs to show a gain with this probability.

    gain and sigma are in the same unit; sigma is that of one run, of a difference it is sqrt(2) times as large.
    """
    from statsmodels.stats.power import TTestPower

    effect = abs(gain) / (math.sqrt(2) * sigma)
    needed = TTestPower().solve_power(effect_size=effect, alpha=(1 - LEVEL) / comparisons, power=power)
    return math.ceil(float(np.atleast_1d(needed)[0]))
