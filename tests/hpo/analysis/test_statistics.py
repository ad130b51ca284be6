"""Statistics of paired runs, against formulas written out and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from hpo.analysis.statistics import holm, interval, min_pairs, p_value, paired, required_pairs

PAIRS = [-0.11, -0.02, -0.09, -0.05, 0.01, -0.07, -0.04, -0.06]


def test_p_value_of_pairs_is_that_of_student_written_out() -> None:
    n, mean, sd = len(PAIRS), np.mean(PAIRS), np.std(PAIRS, ddof=1)
    t = mean / (sd / math.sqrt(n))
    wanted = 2 * stats.t.sf(abs(t), n - 1)
    assert paired(PAIRS).p == pytest.approx(wanted)
    assert p_value(PAIRS) == pytest.approx(wanted)
    half = stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
    assert interval(PAIRS) == pytest.approx((mean, mean - half, mean + half))


def test_signed_rank_test_of_pairs_counts_all_sign_patterns() -> None:
    """The exact null distribution: every pattern of signs on the ranks is equally likely."""
    ranks = stats.rankdata(np.abs(PAIRS))
    seen = min(sum(r for r, d in zip(ranks, PAIRS, strict=True) if (d > 0) == up) for up in (True, False))
    patterns = range(2 ** len(PAIRS))
    smaller = [sum(r for i, r in enumerate(ranks) if pattern >> i & 1) for pattern in patterns]
    total = ranks.sum()
    wanted = sum(min(s, total - s) <= seen for s in smaller) / len(smaller)
    assert paired(PAIRS, "wilcoxon").p == pytest.approx(wanted)


def test_bootstrap_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    first, again = paired(PAIRS), paired(PAIRS)
    assert first == again
    assert first.low < first.mean < first.high
    draws = np.random.default_rng(1).choice(PAIRS, (20_000, len(PAIRS))).mean(axis=1)
    assert (first.low, first.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.01)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.0, 0.0]])
def test_pairs_that_differ_by_the_same_have_an_interval_of_no_width(values: list[float]) -> None:
    found = paired(values)
    assert (found.mean, found.low, found.high) == (values[0], values[0], values[0])
    assert found.p == (1.0 if values[0] == 0 else 0.0)


@pytest.mark.filterwarnings("error")
def test_pairs_that_differ_by_the_same_but_for_rounding_have_an_interval_of_no_width() -> None:
    values = [0.04 + seed / 1000 - (0.005 + seed / 1000) for seed in range(7)]
    assert len(set(values)) > 1
    found = paired(values)
    assert found.low == found.high == found.mean == pytest.approx(0.035)
    assert (found.p, p_value(values), interval(values)[1]) == (0.0, 0.0, interval(values)[2])


def test_pairs_of_which_all_but_one_are_equal_have_an_interval() -> None:
    found = paired([0.0, 0.0, 0.0, 0.1])
    assert found.low < found.mean < found.high


def test_one_pair_is_none() -> None:
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        paired([0.1])
    assert interval([0.1]) == (0.1, -math.inf, math.inf)


def test_correction_for_several_comparisons_is_that_of_holm() -> None:
    # in order 0.01 x 3, then max(0.03, 0.02 x 2), then max(0.04, 0.04 x 1)
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []
    drawn = np.random.default_rng(0).beta(0.3, 3, 40).round(2)  # with ties
    assert holm(list(drawn)) == pytest.approx(list(multipletests(drawn, method="holm")[1]))


@pytest.mark.parametrize("comparisons", [1, 3, 10])
def test_fewest_pairs_of_a_signed_rank_test_are_those_that_can_be_significant(comparisons: int) -> None:
    n = min_pairs("wilcoxon", comparisons)
    best = [paired([-1.0 - i / 10 for i in range(m)], "wilcoxon").p * comparisons for m in (n - 1, n)]
    assert best[1] < 0.05 <= best[0]


def test_seeds_to_show_a_gain_do_so_as_often_as_was_asked() -> None:
    n = required_pairs(gain=0.2, sigma=0.1, power=0.9)
    draws = np.random.default_rng(0).normal(0.0, 0.1, (4_000, 2, n))
    shown = stats.ttest_1samp(draws[:, 0] - 0.2 - draws[:, 1], 0.0, axis=1).pvalue < 0.05
    fewer = stats.ttest_1samp((draws[:, 0] - 0.2 - draws[:, 1])[:, :-1], 0.0, axis=1).pvalue < 0.05
    assert fewer.mean() < 0.9 <= shown.mean() + 0.01
