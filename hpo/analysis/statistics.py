"""Statistics of paired runs: mean differences, confidence intervals, tests, and the number of pairs they need.

The functions of scipy and statsmodels do the computation.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Test = Literal["t", "wilcoxon"]

LEVEL = 0.95  # confidence level of every interval; a test is significant at a p-value below 1 - LEVEL
N_RESAMPLES = 9_999  # of a bootstrap interval
ROUNDING = 1e-12  # relative difference of two results of the same calculation
SEED = 0  # of the bootstrap, so that the same runs always give the same interval


@dataclass(frozen=True)
class Paired:
    """The differences of n pairs of runs: mean, ends of its confidence interval, and p-value of no difference."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def paired(differences: Sequence[float], test: Test = "t") -> Paired:
    """Return mean, bootstrap interval and p-value of paired differences.

    The interval is bias-corrected and accelerated (Efron 1987). For few pairs it is slightly too narrow, so verdicts
    use the p-value.

    Raises:
        ValueError: fewer than two differences.
    """
    d = np.asarray(differences, float)
    if len(d) < 2:
        raise ValueError(f"must be at least two pairs, got {len(d)}")
    mean = float(d.mean())
    if all_equal(d):  # so there is no variance to resample
        return Paired(len(d), mean, mean, mean, 1.0 if mean == 0 else 0.0)
    p = stats.wilcoxon(d).pvalue if test == "wilcoxon" else p_value(differences)
    low, high = _bootstrap(d)
    return Paired(len(d), mean, low, high, float(p))


def all_equal(values: np.ndarray) -> bool:
    """Return whether values differ by rounding at most: their differences are not noise of the seed."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _bootstrap(d: np.ndarray) -> tuple[float, float]:
    options = {"n_resamples": N_RESAMPLES, "confidence_level": LEVEL, "method": "BCa"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        ends = stats.bootstrap((d,), np.mean, rng=np.random.default_rng(SEED), **options).confidence_interval
    if not math.isfinite(ends.low + ends.high):  # all values but one are equal
        ends = stats.ttest_1samp(d, 0.0).confidence_interval(LEVEL)
    return float(ends.low), float(ends.high)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its Student confidence interval; the ends are infinite for one value."""
    v = np.asarray(values, float)
    mean = float(v.mean())
    if len(v) < 2:
        return mean, -math.inf, math.inf
    if all_equal(v):
        return mean, mean, mean
    ends = stats.ttest_1samp(v, 0.0).confidence_interval(LEVEL)
    return mean, float(ends.low), float(ends.high)


def p_value(values: Sequence[float]) -> float:
    """Return the p-value of Student's t-test that the mean is 0."""
    v = np.asarray(values, float)
    if all_equal(v):
        return 1.0 if v[0] == 0 else 0.0
    return float(stats.ttest_1samp(v, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm 1979, A simple sequentially rejective procedure)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


def min_pairs(test: Test, comparisons: int = 1) -> int:
    """Return the smallest number of pairs with which a test can be significant.

    comparisons: number of tests that the p-value is corrected for. A signed-rank test of n pairs has no p-value below
    2 / 2^n. A t-test needs three pairs, because the standard deviation of two is too uncertain.
    """
    level = (1 - LEVEL) / comparisons
    return 3 if test == "t" else math.floor(1 + math.log2(1 / level)) + 1


def required_pairs(gain: float, sigma: float, power: float = 0.9, comparisons: int = 1) -> int:
    """Return the number of pairs with which a t-test detects a gain with this probability.

    gain, sigma: in the same unit. sigma: standard deviation of one run; that of a difference is sqrt(2) times as large.
    """
    from statsmodels.stats.power import TTestPower

    effect = abs(gain) / (math.sqrt(2) * sigma)
    needed = TTestPower().solve_power(effect_size=effect, alpha=(1 - LEVEL) / comparisons, power=power)
    return math.ceil(float(np.atleast_1d(needed)[0]))
