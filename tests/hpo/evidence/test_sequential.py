"""The bounds of sequential confirmations: their level, against numerical integration, tables and brute force."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from hpo.evidence.sequential import N_SIMULATED, ONE_SIDED, sequential_bounds, sequential_p
from hpo.study.sequential import MIN_PAIRS
from tests.support.sequential import simulated_verdicts

N_GRID, N_ANGLES = 401, 1001


def crossing_probability(bounds: Sequence[float]) -> float:
    """Return the probability that t crosses a bound at any look without an effect, by numerical integration.

    bounds: after 2, 3, ... pairs. With R = sum x / sqrt(sum x^2), a further difference turns R into
    R cos a + sin a, where sqrt(k) tan a has Student's distribution with k degrees of freedom. By Basu's theorem, it is
    independent of all R before. So R is a Markov chain, and the recursion of Armitage, McPherson and Rowe (1969) is
    exact for an unknown variance.
    """
    after = np.zeros(N_GRID)
    for k in range(len(bounds), 0, -1):  # from k to k + 1 pairs
        t = bounds[k - 1]
        bound = np.sqrt(k + 1) if np.isinf(t) else t * np.sqrt((k + 1) / (k + t**2))
        angles = np.arctan(stats.t.ppf((np.arange(N_ANGLES) + 0.5) / N_ANGLES, k) / np.sqrt(k))
        here = np.linspace(-np.sqrt(k), np.sqrt(k), N_GRID) if k > 1 else np.array([-1.0, 1.0])
        there = here[:, None] * np.cos(angles) + np.sin(angles)
        later = np.interp(there, np.linspace(-np.sqrt(k + 1), np.sqrt(k + 1), N_GRID), after)
        after = np.where(there >= bound, 1.0, later).mean(1)
    return float(after.mean())


def test_integration_agrees_with_published_constants() -> None:
    """Pocock (1977): five looks at the nominal two-sided level 0.0158 have the level 0.05. One look has its own."""
    looks = dict.fromkeys((12, 24, 36, 48, 60), 0.0158 / 2)
    bounds = [stats.t.isf(looks[k], k - 1) if k in looks else np.inf for k in range(2, 61)]
    assert crossing_probability(bounds) == pytest.approx(0.025, rel=0.05)  # slightly above, for few pairs
    assert crossing_probability([np.inf, np.inf, stats.t.isf(0.025, 3)]) == pytest.approx(0.025, rel=0.01)


@pytest.mark.parametrize(("n", "arms"), [(3, 1), (12, 2)])
def test_bounds_have_their_level_by_numerical_integration(n: int, arms: int) -> None:
    for m, bounds in enumerate(sequential_bounds(n, arms), 1):
        error = 4 * (ONE_SIDED / m / N_SIMULATED) ** 0.5
        assert crossing_probability([np.inf, *bounds]) == pytest.approx(ONE_SIDED / m, abs=error + 0.01 * ONE_SIDED / m)


def test_one_look_is_students_test() -> None:
    ((bound,),) = sequential_bounds(3, 1)
    assert bound == pytest.approx(stats.t.isf(0.025, 2), rel=0.01)
    assert sequential_p([2.0], 3) == pytest.approx(2 * stats.t.sf(2.0, 2), rel=0.02)


def test_p_value_is_below_the_level_where_the_bound_is_crossed() -> None:
    (bounds,) = sequential_bounds(8, 1)
    for look, bound in enumerate(bounds):
        before = [0.0] * look
        assert sequential_p([*before, bound * 1.01], 8) < 0.05 < sequential_p([*before, bound * 0.99], 8)
    assert sequential_p([bounds[0] * 1.01, 0.0], 8) == sequential_p([bounds[0] * 1.01], 8)


@pytest.mark.parametrize("arms", [1, 3])
def test_arms_without_effect_are_seldom_better(arms: int) -> None:
    """The level holds by brute force, futility and Holm's correction included; the arms share the baseline."""
    better, pairs = simulated_verdicts(arms, 0.0, 1500, arms)
    assert better <= ONE_SIDED + 3 * (ONE_SIDED / 1500) ** 0.5
    assert MIN_PAIRS < pairs < 9


def test_two_sigma_are_found_with_fewer_pairs() -> None:
    better, pairs = simulated_verdicts(1, 2.0, 400, 0)
    assert better > 0.93
    assert pairs < 7.6
