"""Compare two trials, or the best trials of two studies, wherever runs with several seeds exist for both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import LEVEL, all_equal, paired
from hpo.evidence.paired import final_score
from hpo.storage.attributes import ARM, FIXED_VALUES, SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import Trial
from hpo.study.engines import engines_of
from model.section import flatten

Runs = Mapping[int, Trial]  # seed -> complete run of one configuration


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


def runs_of(store: OpenStorage, snapshot: Snapshot, trial: Trial) -> Runs:
    """Return the complete runs of a trial's configuration by seed.

    The runs are those of its arm, the repeats of the baseline, or the runs of the confirmation with the most seeds.
    Otherwise the trial is its only run.
    """
    if snapshot.spec.get("arms"):
        return _complete(snapshot, runs_by_arm(snapshot).get(str(trial.user_attrs.get(ARM)), {}))
    same = [trial]
    if trial in snapshot.baseline_runs:
        same = snapshot.baseline_runs
    runs = _complete(snapshot, {_seed(snapshot, run): run for run in same})
    return max([runs, *_confirmed(store, snapshot, trial.number)], key=len)


def _confirmed(store: OpenStorage, snapshot: Snapshot, number: int) -> list[Runs]:
    """Return the runs of a trial in each confirmation of its study."""
    found = []
    for name, study_id in study_ids(store).items():
        about = (study_attrs(store, study_id).get(SPEC) or {}).get("about") or {}
        arms = [arm for arm, trial in (about.get("trials") or {}).items() if trial == number]
        if about.get("confirms") in snapshot.names and arms:
            confirmation = read_snapshot(store, name)
            found.append(_complete(confirmation, runs_by_arm(confirmation).get(arms[0], {})))
    return found


def _complete(snapshot: Snapshot, runs: Runs) -> Runs:
    return {seed: run for seed, run in runs.items() if final_score(snapshot, run) is not None}


def _seed(snapshot: Snapshot, trial: Trial) -> int:
    values: dict[str, Any] = flatten(snapshot.spec["base"]) | (trial.user_attrs.get(FIXED_VALUES) or trial.params)
    return int(values.get("run.seed", values.get("seed", 0)))


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


def verdict_text(snapshot: Snapshot, a: Runs, b: Runs) -> str:
    """Return what the runs show about B against A, in one line."""
    found = compare_runs(a, b)
    if found is None:
        return (
            f"no verdict: A has {_n_runs(len(a))} and B has {_n_runs(len(b))}, and both need runs of at least two seeds"
        )
    significant = found.p < 1 - LEVEL and math.isfinite(found.mean)
    better = snapshot.direction.loss(found.mean) < 0
    word = ("B is better" if better else "B is worse") if significant else "no difference shown"
    n = f"{found.n[0]} pairs" if found.test.startswith("paired") else f"{found.n[0]} and {found.n[1]} runs"
    interval = f"{found.mean:+.4g} ({found.low:+.4g} to {found.high:+.4g})"
    return f"{word}: B - A {interval}, p {found.p:.2g}, {found.test} test, {n}"


def _n_runs(n: int) -> str:
    return f"{n} complete run{'' if n == 1 else 's'}"
