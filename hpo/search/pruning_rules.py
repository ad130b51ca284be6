"""The comparisons that pruners make, as numbers: a value of the trial, and the threshold it was compared with.

Optuna's pruners return only yes or no. This module repeats their comparisons, so that a pruned trial can store the
numbers, and `hpo why` can check them against the stored learning curves. A test checks that both agree. This module
does not import Optuna, so that `hpo why` starts quickly.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hpo.search.direction import Direction

Curve = Mapping[int, float]  # rung -> value

# Largest rounding error of a percentage of a number of trials: 28 % of 25 trials is 7.000000000000001.
RANK_TOLERANCE = 1e-9


class Comparison(NamedTuple):
    """A value of the trial, the threshold it was compared with, and whether the trial is pruned."""

    value: float
    threshold: float
    prunes: bool


def compare_at_last_rung(
    rule: Mapping[str, Any], own: Curve, peers: Sequence[Curve], direction: Direction = Direction.MINIMIZE
) -> Comparison:
    """Return the comparison that a pruner makes at the last rung of a learning curve, in the unit of the objective.

    rule: the keys of `pruner` of the study. peers: the curves of the trials it is compared with. Each has a value at
    that rung, except with `peers: all`, where a curve that ends before counts as worse than any.
    """
    own, *peers = ({rung: direction.loss(value) for rung, value in curve.items()} for curve in (own, *peers))
    compared = _compare_losses(rule_for_losses(rule, direction), own, peers)
    if rule["name"] == "wilcoxon":  # compares p-values
        return compared
    return Comparison(direction.loss(compared.value), direction.loss(compared.threshold), compared.prunes)


def rule_for_losses(rule: Mapping[str, Any], direction: Direction) -> dict[str, Any]:
    """Return the keys of a pruner that decides by losses as the given one decides by values of the objective."""
    if direction is Direction.MINIMIZE or rule["name"] != "threshold":
        return dict(rule)
    ends = {"lower": rule["upper"], "upper": rule["lower"]}
    return {**rule, **{key: None if end is None else -end for key, end in ends.items()}}


def _compare_losses(rule: Mapping[str, Any], own: Curve, peers: Sequence[Curve]) -> Comparison:
    rung = max(own)
    match rule["name"]:
        case "median" | "percentile" if compares_all(rule):
            losses = [peer.get(rung, math.inf) for peer in peers]
            return _rank_of_all(own, losses, float(rule.get("percentile", 50)))
        case "median" | "percentile":
            return _rank(own, [peer[rung] for peer in peers], float(rule.get("percentile", 50)))
        case "halving" | "hyperband":
            return _above(own[rung], _kept(own[rung], [peer[rung] for peer in peers], int(rule["factor"])))
        case "patient":
            return _patient(own, int(rule["patience"]), float(rule["min_delta"]))
        case "threshold":
            return _interval(own[rung], rule["lower"], rule["upper"])
        case "wilcoxon":
            return _signed_ranks(own, peers[0], float(rule["p_threshold"]))
    raise AssertionError(rule["name"])


def n_promoted(n: int, factor: int) -> int:
    """Return the number of the n trials at a mark that continue, at least one."""
    return max(1, n // factor)


def compares_all(rule: Mapping[str, Any]) -> bool:
    """Return whether a rule compares a trial with all trials, and not only with finished ones."""
    return rule.get("peers", "finished") == "all"


def n_continuing(n: int, percentile: float) -> int:
    """Return how many of n trials are in the best percentile, rounded up: a trial is pruned if as many are better."""
    return math.ceil(n * percentile / 100 - RANK_TOLERANCE)


def _above(value: float, threshold: float) -> Comparison:
    return Comparison(value, threshold, value > threshold)


def _best(values: Iterable[float]) -> float:
    return min((v for v in values if not math.isnan(v)), default=math.nan)


def _rank(own: Curve, peers: Sequence[float], percentile: float) -> Comparison:
    import numpy as np

    known = [value for value in peers if not math.isnan(value)]
    return _above(_best(own.values()), float(np.percentile(known, percentile)) if known else math.nan)


def _rank_of_all(own: Curve, losses: Sequence[float], percentile: float) -> Comparison:
    ordered = sorted(loss if math.isfinite(loss) else math.inf for loss in losses)
    last = n_continuing(len(ordered) + 1, percentile) - 1
    return _above(_best(own.values()), ordered[last] if last < len(ordered) else math.inf)


def _kept(value: float, rivals: Sequence[float], factor: int) -> float:
    return sorted([*rivals, value])[n_promoted(len(rivals) + 1, factor) - 1]


def _patient(own: Curve, patience: int, min_delta: float) -> Comparison:
    values = [own[rung] for rung in sorted(own)]
    return _above(_best(values[-patience - 1 :]), _best(values[: -patience - 1]) + min_delta)


def _interval(value: float, lower: float | None, upper: float | None) -> Comparison:
    if upper is None or (lower is not None and value < lower):
        assert lower is not None, "a threshold has lower or upper"
        return Comparison(value, lower, value < lower)
    return _above(value, upper)


def _signed_ranks(own: Curve, best: Curve, p_threshold: float) -> Comparison:
    """Return the p-value of the hypothesis that a trial is no worse than the best trial.

    The trial is pruned only if its mean is worse too.
    """
    from scipy import stats

    differences = [own[rung] - best[rung] for rung in sorted(own.keys() & best.keys())]
    p = float(stats.wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)
    # Sum in the order of the rungs, as Optuna does, because rounding could change the decision.
    mean, best_mean = (sum(c[r] for r in sorted(c)) / len(c) for c in (own, best))
    return Comparison(p, p_threshold, p < p_threshold and mean > best_mean)


def format_spans(numbers: Iterable[int]) -> str:
    """Return numbers as text such as "0, 2-4", which is much shorter than a list and is read with every trial."""
    ordered = sorted(numbers)
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1]
    runs = [ordered[i:j] for i, j in pairwise([0, *breaks, len(ordered)])] if ordered else []
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parse_spans(text: str) -> list[int]:
    """Return the numbers that `format_spans` wrote as text."""
    ends = [[int(end) for end in span.split("-")] for span in text.split(", ") if span]
    return [number for span in ends for number in range(span[0], span[-1] + 1)]
