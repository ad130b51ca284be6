"""The bounds of sequential confirmations: group sequential t tests of paired differences, with a look at each pair.

After k of at most n pairs, the one-sided p-value of Student's t test is compared with c k / n. Such nominal levels,
which grow with the number of pairs, lie between those of Pocock (1977, equal levels) and of O'Brien and Fleming (1979).
The constant c makes the probability that a difference of 0 crosses the bound at any look equal to the level. Tables of
these constants assume a known variance, and with a few pairs they do not hold (Rom and McTague 2020, Exact critical
values for group sequential designs with small sample sizes, J. Biopharm. Stat. 30). So c is the quantile of the
smallest p_k n / k in simulated pairs without effect. t does not depend on the scale, so one simulation serves all
noise levels. A test compares the bounds with numerical integration and with published tables.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from hpo.analysis.statistics import LEVEL
from hpo.study.sequential import MIN_PAIRS, Bounds

ONE_SIDED = (1 - LEVEL) / 2  # as strict about "better" as the two-sided test of a fixed number of pairs
N_SIMULATED, CHUNK = 400_000, 20_000  # the level is exact to 0.03 percentage points
SEED = 0
DEFAULT_PAIRS = 12  # at most; a gain of two sigma is then found in 97 % of studies, after 7 pairs on average


@functools.cache
def _smallest_scores(n: int) -> np.ndarray:
    """Return the sorted smallest score p_k n / k over the looks of n pairs, for simulated pairs without effect."""
    rng = np.random.default_rng(SEED)
    k = np.arange(1, n + 1)
    smallest = []
    for _ in range(0, N_SIMULATED, CHUNK):
        x = rng.standard_normal((CHUNK, n))
        mean = np.cumsum(x, 1) / k
        variance = (np.cumsum(x * x, 1) - k * mean**2)[:, MIN_PAIRS - 1 :] / (k[MIN_PAIRS - 1 :] - 1)
        t = mean[:, MIN_PAIRS - 1 :] / np.sqrt(variance / k[MIN_PAIRS - 1 :])
        smallest.append((special.stdtr(k[MIN_PAIRS - 1 :] - 1, -t) * n / k[MIN_PAIRS - 1 :]).min(1))
    return np.sort(np.concatenate(smallest))


def sequential_bounds(n: int, arms: int) -> Bounds:
    """Return the bounds of t for at most n pairs: bounds[m - 1][k - 3] after k pairs, at level alpha / m.

    arms: number of configurations that are compared with the reference; m goes from 1 to this number.
    """
    bounds = []
    for m in range(1, arms + 1):
        c = float(np.quantile(_smallest_scores(n), ONE_SIDED / m))
        t = [stats.t.isf(c * k / n, k - 1) for k in range(MIN_PAIRS, n + 1)]
        bounds.append([math.ceil(float(value) * 1e4) / 1e4 for value in t])
    return bounds


def sequential_p(t: Sequence[float], n: int) -> float:
    """Return the p-value of the looks so far, valid wherever the comparison stops: twice the one-sided one.

    t: the statistic after 3, 4, ... of at most n pairs.
    """
    k = np.arange(MIN_PAIRS, MIN_PAIRS + len(t))
    score = float((special.stdtr(k - 1, -np.asarray(t, float)) * n / k).min())
    below = np.searchsorted(_smallest_scores(n), score, side="right")
    return min(1.0, 2 * (float(below) + 1) / (N_SIMULATED + 1))
