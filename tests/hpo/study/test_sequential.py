"""The rules of a sequential comparison: which pairs count, and when an arm is better, lost or without a gain."""

import math
import random

import pytest
from scipy import stats

from hpo.search.direction import Direction
from hpo.study.sequential import Results, follow_pairs, t_statistic

# Bounds of one arm and of two arms after 3, 4, ... 8 pairs
BOUNDS = [[10.0, 6.0, 4.0, 3.5, 3.2, 3.0], [14.0, 8.0, 5.0, 4.0, 3.6, 3.4]]
PENDING = None


def decided(results: Results, direction: Direction = Direction.MINIMIZE) -> dict[str, tuple[str | None, int]]:
    """Return arm -> its outcome and the number of its pairs."""
    bounds = BOUNDS[: len(results) - 1]
    return {name: (arm.outcome, len(arm.gains)) for name, arm in follow_pairs(bounds, results, direction).items()}


def baseline(n: int = 8) -> list[float]:
    return [1.0] * n


def arm(mean: float, spread: float, n: int = 8) -> list[float]:
    """Return values that alternate around a mean."""
    return [mean + spread * (-1) ** i for i in range(n)]


def test_an_arm_is_better_at_the_first_pair_after_which_t_crosses_its_bound() -> None:
    values = arm(0.5, 0.1)
    gains = [1.0 - v for v in values]
    first = next(k for k in range(3, 9) if t_statistic(gains[:k]) >= BOUNDS[0][k - 3])
    assert decided({"b": baseline(), "a": values}) == {"a": ("better", first)}
    assert 3 < first < 8


def test_t_is_students_statistic() -> None:
    draw = random.Random(0)
    gains = [draw.gauss(0.3, 1.0) for _ in range(7)]
    assert t_statistic(gains) == pytest.approx(stats.ttest_1samp(gains, 0.0).statistic)
    assert [t_statistic(g) for g in ([0.2] * 3, [-0.2] * 3, [0.0] * 3)] == [math.inf, -math.inf, 0.0]


def test_a_larger_value_is_better_where_the_study_maximizes() -> None:
    results = {"b": baseline(), "a": arm(1.5, 0.01)}
    assert decided(results, Direction.MAXIMIZE) == {"a": ("better", 3)}
    assert decided(results) == {"a": ("no gain", 4)}


def test_pairs_count_in_the_order_of_their_seeds_and_only_when_both_runs_have_ended() -> None:
    values: list[float | None] = [0.5, 0.51, PENDING, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert decided({"b": baseline(), "a": values}) == {"a": (None, 2)}
    values[2] = 0.49
    assert decided({"b": baseline(), "a": values}) == {"a": ("better", 3)}


def test_results_after_the_decision_change_nothing() -> None:
    values = arm(0.5, 0.01, 3) + [9.0] * 5
    assert decided({"b": baseline(), "a": values}) == {"a": ("better", 3)}


def test_an_arm_without_gain_ends_early_and_never_continues() -> None:
    values = arm(1.1, 0.2, 4) + [0.0] * 4
    assert decided({"b": baseline(), "a": values}) == {"a": ("no gain", 4)}


def test_a_small_gain_uses_all_pairs() -> None:
    assert decided({"b": baseline(), "a": arm(0.85, 0.25)}) == {"a": ("no gain", 8)}


def test_an_arm_that_loses_more_runs_than_the_baseline_is_lost() -> None:
    lost = [0.5, 0.51, 0.5, math.nan, PENDING, PENDING, PENDING, PENDING]
    assert decided({"b": baseline(), "a": [math.nan, *lost[1:]]}) == {"a": ("lost", 0)}
    both = [math.nan, *[1.0] * 7]
    assert decided({"b": both, "a": [math.nan, 0.5, 0.51, 0.49, *lost[4:]]}) == {"a": ("better", 3)}


def test_the_first_of_two_arms_must_cross_the_bound_of_two() -> None:
    """The second arm then needs the bound of one, also where it crossed that bound at an earlier look (Holm)."""
    base = baseline()
    between = [0.5, 0.55, 0.42, *[1.0 - 0.5 * (i % 2) for i in range(5)]]  # t after 3 pairs is 13.5
    assert 10.0 < t_statistic([1.0 - v for v in between[:3]]) < 14.0
    pending = [*between[:3], *[PENDING] * 5]
    useless = arm(1.1, 0.2, 3) + [PENDING] * 5
    assert decided({"b": base, "a": pending, "c": useless})["a"] == (None, 3)
    assert decided({"b": base, "a": pending}) == {"a": ("better", 3)}
    late = [*arm(0.5, 0.25, 3), 0.5, 0.5, 0.5, 0.5, 0.5]  # crosses the bound of two after some more pairs
    outcomes = decided({"b": base, "a": between, "c": late})
    assert {outcome for outcome, _ in outcomes.values()} == {"better"}
    assert outcomes["a"][1] == outcomes["c"][1] > 3
