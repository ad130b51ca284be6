"""Compare two trials, or the best trials of two studies, wherever runs with several seeds exist for both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL, all_equal, paired
from hpo.evidence.run_sets import Runs, RunSet, comparable_runs
from hpo.study.engines import engines_of


@dataclass(frozen=True)
class TwoSided:
    """The difference of two configurations, B minus A.

    n: runs of A and of B; of a paired test, the number of pairs for both. test: how p was computed.
    """

    n: tuple[int, int]
    mean: float
    low: float
    high: float
    p: float
    test: str


def compare_runs(a: Runs, b: Runs) -> TwoSided | None:
    """Return the difference of two configurations, None where one of them has fewer than two runs.

    Runs with the same seed of the same engine form pairs, as everywhere. Without two pairs, Welch's t test compares the
    means (Welch 1947).
    """
    if min(len(a), len(b)) < 2:
        return None
    pairs = [s for s in sorted(a.keys() & b.keys()) if engines_of(a[s].user_attrs) == engines_of(b[s].user_attrs)]
    if len(pairs) > 1:
        found = paired([b[s].values[0] - a[s].values[0] for s in pairs])
        return TwoSided((found.n, found.n), found.mean, found.low, found.high, found.p, "paired t")
    return welch([run.values[0] for run in a.values()], [run.values[0] for run in b.values()])


def welch(a: Sequence[float], b: Sequence[float]) -> TwoSided:
    """Return the difference of two means with Welch's interval and p-value."""
    difference = float(np.mean(b) - np.mean(a))
    if all_equal(np.asarray(a)) and all_equal(np.asarray(b)):  # no variance: the seed causes no noise
        return TwoSided((len(a), len(b)), difference, difference, difference, float(difference == 0), "Welch's t")
    result = stats.ttest_ind(b, a, equal_var=False)
    ends = result.confidence_interval(LEVEL)
    p = float(result.pvalue)
    return TwoSided((len(a), len(b)), difference, float(ends.low), float(ends.high), p, "Welch's t")


def verdict_text(snapshot: Snapshot, a: Sequence[RunSet], b: Sequence[RunSet]) -> str:
    """Return what the runs show about B against A, in one line.

    a, b: the runs of each side, as `runs_of` returns them.
    """
    chosen = comparable_runs(a, b)
    found = chosen and compare_runs(chosen[0].runs, chosen[1].runs)
    if chosen is None or found is None:
        return _refusal(a, b)
    significant = found.p < 1 - LEVEL and math.isfinite(found.mean)
    better = snapshot.direction.loss(found.mean) < 0
    word = ("B is better" if better else "B is worse") if significant else "no difference shown"
    n = f"{found.n[0]} pairs" if found.test.startswith("paired") else f"{found.n[0]} and {found.n[1]} runs"
    interval = f"{found.mean:+.4g} ({found.low:+.4g} to {found.high:+.4g})"
    return f"{word}: B - A {interval}, p {found.p:.2g}, {found.test} test, {n}{_origin(*chosen)}"


def _origin(a: RunSet, b: RunSet) -> str:
    """Return where the compared runs come from, as a clause; "" for the runs of the studies themselves."""
    studies = dict.fromkeys(side.study for side in (a, b) if side.is_confirmation)
    text = f" ({' and '.join(studies)}, {a.length})" if studies else ""
    sequential = next((side.study for side in (a, b) if side.is_sequential), None)
    if sequential is not None:
        text += (
            f"; {sequential} stopped as soon as its results decided, so p is too small: "
            f"`hpo status --study {sequential}` shows the decisions"
        )
    return text


def _refusal(a: Sequence[RunSet], b: Sequence[RunSet]) -> str:
    """Return why there is no verdict: too few runs, or no runs of both sides that can be compared."""
    most = [max(side, key=lambda runs: len(runs.runs)) for side in (a, b)]
    n = [_n_runs(len(runs.runs)) for runs in most]
    if min(len(runs.runs) for runs in most) < 2:
        return f"no verdict: A has {n[0]} and B has {n[1]}, and both need runs of at least two seeds"
    rules = [f", with values of the rule {runs.rule}" if runs.rule != "copy" else "" for runs in most]
    sides = [f"{n[i]} of {most[i].length} in {most[i].study}{rules[i]}" for i in (0, 1)]
    return (
        f"no verdict: A has {sides[0]}; B has {sides[1]}. Only runs of the same length can be compared, and only with "
        "the values of the trials"
    )


def _n_runs(n: int) -> str:
    return f"{n} complete run{'' if n == 1 else 's'}"
