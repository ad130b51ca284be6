"""Compare each arm of a study with its first arm, by paired differences between runs with the same seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.analysis.looks import RunsByArm, progress_of_arms, runs_by_arm
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL, Paired, Test, holm, min_pairs, paired
from hpo.evidence.sequential import sequential_p
from hpo.storage.attributes import METRICS
from hpo.storage.trials import State, Trial
from hpo.study.engines import engines_of
from hpo.study.sequential import MIN_PAIRS, Progress, plan_of

Scores = Mapping[int, float | None]  # seed -> result of its run


@dataclass(frozen=True)
class ArmComparison:
    """One arm of a study: its runs, their mean, and the paired difference from the first arm, the reference.

    n: runs that have a value. lost: runs that diverged or failed. mean, sd: over the runs that have a value.
    difference: this arm minus the reference; None for the reference itself and for fewer than two pairs.
    p: corrected for the number of arms compared (Holm).
    at_most: the most pairs of a sequential comparison, None for a fixed number of pairs.
    """

    arm: str
    n: int
    lost: int
    mean: float | None
    sd: float | None
    difference: Paired | None
    p: float | None
    verdict: str
    at_most: int | None = None


def final_score(snapshot: Snapshot, trial: Trial, metric: str | None = None) -> float | None:
    """Return the result of a complete run, or None if the run is not complete or its result is not finite.

    metric: a metric of the last rung instead of the objective.
    """
    if trial.state != State.COMPLETE:
        return None
    metrics = trial.user_attrs.get(METRICS, {})
    score = trial.values[0] if metric in (None, snapshot.objective) else metrics.get(metric)
    return None if score is None or not math.isfinite(score) else float(score)


def compare_arms(snapshot: Snapshot, metric: str | None = None) -> list[ArmComparison]:
    """Compare each arm with the first one, by the objective in the direction of the study, or by a metric.

    An arm is better or worse if its paired test is significant after Holm's correction for the number of arms
    (Holm 1979). The test is the one that the study was created with, else Student's t test of paired differences
    (Student 1908); the alternative is Wilcoxon's signed-rank test (Wilcoxon 1945). Confidence intervals are
    bias-corrected and accelerated bootstrap intervals (BCa, Efron 1987).
    A run that diverged or failed has no value. An arm that loses more runs than the first one is worse, regardless of
    its other runs. The verdicts of a sequential comparison are those of `hpo.study.sequential`.

    metric: a metric of the last rung instead of the objective. Its direction is that of the study.
    """
    test: Test = snapshot.spec.get("about", {}).get("test", "t")
    trials, progress = runs_by_arm(snapshot), progress_of_arms(snapshot)
    scores = {name: {s: final_score(snapshot, t, metric) for s, t in runs.items()} for name, runs in trials.items()}
    pairs = _pairs_of_one_engine(trials, scores)
    reference, *others = scores
    if progress is None:
        differences = {name: _paired_difference(pairs[name], scores[reference], test) for name in others}
    else:
        differences = {n: _difference_so_far(snapshot, progress[n], scores[n], scores[reference]) for n in others}
    corrected = dict(zip(differences, holm([d.p if d else 1.0 for d in differences.values()]), strict=True))
    lost = {name: sum(ended_without_value(snapshot, t) for t in trials[name].values()) for name in trials}
    required = min_pairs(test, max(1, len(others)))

    def verdict(name: str) -> str:
        if name == reference:
            return "reference"
        if progress is not None:
            return _sequential_verdict(progress[name])
        difference = differences[name]
        better = difference is not None and snapshot.direction.loss(difference.mean) < 0
        return _verdict(difference, corrected[name], better, lost[name] - lost[reference], required)

    at_most = None if progress is None else len(snapshot.spec["seeds"])
    return [
        _summarized(name, values, lost[name], differences.get(name), corrected.get(name), verdict(name), at_most)
        for name, values in scores.items()
    ]


def _pairs_of_one_engine(trials: RunsByArm, scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return the scores of the runs that form a pair with a run of the first arm, trained by the same engine."""
    reference = next(iter(trials.values()), {})
    return {
        name: {
            seed: score
            for seed, score in scores[name].items()
            if seed in reference and engines_of(runs[seed].user_attrs) == engines_of(reference[seed].user_attrs)
        }
        for name, runs in trials.items()
    }


def _summarized(
    name: str,
    scores: Scores,
    lost: int,
    difference: Paired | None,
    p: float | None,
    verdict: str,
    at_most: int | None,
) -> ArmComparison:
    known = [score for score in scores.values() if score is not None]
    mean = float(np.mean(known)) if known else None
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return ArmComparison(name, len(known), lost, mean, sd, difference, p if difference else None, verdict, at_most)


def _paired_difference(scores: Scores, reference: Scores, test: Test) -> Paired | None:
    """Return the paired difference over the seeds on which both arms have a value, None for fewer than two."""
    differences = _differences(scores, reference, sorted(scores.keys() & reference.keys()))
    return paired(differences, test) if len(differences) > 1 else None


def _differences(scores: Scores, reference: Scores, seeds: Sequence[int]) -> list[float]:
    pairs = [(scores.get(seed), reference.get(seed)) for seed in seeds]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _difference_so_far(snapshot: Snapshot, progress: Progress, scores: Scores, reference: Scores) -> Paired | None:
    """Return the paired difference over the pairs that the verdict of a sequential comparison uses.

    The interval is the repeated confidence interval, which holds at every look (Jennison and Turnbull 1984): the mean
    plus and minus the bound of one arm in standard errors. The p-value holds wherever the comparison stops.
    """
    bounds, seeds = plan_of(snapshot.spec["about"]), snapshot.spec["seeds"]
    differences = _differences(scores, reference, [seeds[i] for i in progress.seeds])
    if bounds is None or len(differences) < MIN_PAIRS:
        return None
    n, mean = len(differences), float(np.mean(differences))
    margin = bounds[0][n - MIN_PAIRS] * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return Paired(n, mean, mean - margin, mean + margin, sequential_p(progress.t, len(seeds)))


def _sequential_verdict(progress: Progress) -> str:
    match progress.outcome:
        case None:
            return "undecided"
        case "lost":
            return "worse: runs lost"
        case "better":
            return "better"
    return "no gain shown" if progress.t else f"too few pairs, {MIN_PAIRS} needed"


def ended_without_value(snapshot: Snapshot, trial: Trial) -> bool:
    """Return whether a run has ended without a value, because it diverged, failed or exceeded a limit."""
    return trial.state in (State.PRUNED, State.FAIL) or (
        trial.state == State.COMPLETE and final_score(snapshot, trial) is None
    )


def _verdict(difference: Paired | None, p: float | None, better: bool, lost: int, required: int) -> str:
    """Return the verdict on an arm.

    better: whether its mean is better than that of the reference.
    lost: lost runs of the arm minus lost runs of the reference.
    required: the fewest pairs with which the test can be significant.
    """
    if lost > 0:
        return "worse: runs lost"
    if difference is None or p is None or difference.n < required:
        return "better: the reference lost runs" if lost < 0 else f"too few pairs, {required} needed"
    if p >= 1 - LEVEL:
        return "no difference shown"
    return "better" if better else "worse"


def scope_note(snapshot: Snapshot) -> str:
    """Return what the p-values and intervals of a comparison cover: the seeds, because all runs score the same text."""
    note = "p-values and intervals cover the seeds of the runs, not the choice of the validation data"
    tokens, documents = (snapshot.rows.get(key) for key in ("val_tokens", "val_documents"))
    return note if tokens is None else f"{note} ({tokens:,} tokens in {documents:,} documents)"


def comparison_record(comparison: ArmComparison) -> dict[str, Any]:
    """Return a comparison as one row of the printed table."""
    difference = comparison.difference
    return {
        "arm": comparison.arm,
        "runs": comparison.n,
        **({} if comparison.at_most is None else {"pairs": difference and difference.n, "at_most": comparison.at_most}),
        **({"lost": comparison.lost} if comparison.lost else {}),
        "mean": comparison.mean,
        "sd": comparison.sd,
        "difference": difference and difference.mean,
        "low": difference and difference.low,
        "high": difference and difference.high,
        "p": comparison.p,
        "verdict": comparison.verdict,
    }
