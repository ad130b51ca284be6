"""The rules of the pruners as numbers: what of a trial is compared, with what, from the curves of which peers.

Optuna's pruners decide; here the same comparison is made again, to be stored with the trial that it ended and to be
checked from the stored curves. A test holds the two together. No Optuna, so that `hpo why` answers at once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Curve = Mapping[int, float]  # rung -> value; the smaller, the better


class Comparison(NamedTuple):
    """A value of the trial, what it was compared with, and whether that ends the trial."""

    value: float
    threshold: float
    prunes: bool


def compare_at_last_rung(rule: Mapping[str, Any], own: Curve, peers: Sequence[Curve]) -> Comparison:
    """Return the comparison that a pruner makes at the last rung of a curve.

    rule: the keys of a study's `pruner`. peers: the curves that it looks at, each with a value at that rung.
    """
    rung = max(own)
    match rule["name"]:
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
    """Return which of n values at a mark, counted from the best, is the last that goes on."""
    return max(1, n // factor)


def _above(value: float, threshold: float) -> Comparison:
    return Comparison(value, threshold, value > threshold)


def _best(values: Iterable[float]) -> float:
    return min((v for v in values if not math.isnan(v)), default=math.nan)


def _rank(own: Curve, peers: Sequence[float], percentile: float) -> Comparison:
    import numpy as np

    known = [value for value in peers if not math.isnan(value)]
    return _above(_best(own.values()), float(np.percentile(known, percentile)) if known else math.nan)


def _kept(value: float, rivals: Sequence[float], factor: int) -> float:
    return sorted([*rivals, value])[n_promoted(len(rivals) + 1, factor) - 1]


def _patient(own: Curve, patience: int, min_delta: float) -> Comparison:
    values = [own[rung] for rung in sorted(own)]
    return _above(_best(values[-patience - 1 :]), _best(values[: -patience - 1]) + min_delta)


def _interval(value: float, lower: float | None, upper: float | None) -> Comparison:
    if upper is None or (lower is not None and value < lower):
        assert lower is not None, "a threshold has an end"
        return Comparison(value, lower, value < lower)
    return _above(value, upper)


def _signed_ranks(own: Curve, best: Curve, p_threshold: float) -> Comparison:
    """Return the p-value of a trial that is no worse than the best one; it must be worse on average too."""
    from scipy import stats

    differences = [own[rung] - best[rung] for rung in sorted(own.keys() & best.keys())]
    p = float(stats.wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue)
    # Summed in the order of the rungs, as Optuna does, or the last bit may decide otherwise.
    mean, best_mean = (sum(c[r] for r in sorted(c)) / len(c) for c in (own, best))
    return Comparison(p, p_threshold, p < p_threshold and mean > best_mean)


def format_spans(numbers: Iterable[int]) -> str:
    """Return numbers as text, such as "0, 2-4": a list of a thousand of them would be read with every trial."""
    found = sorted(numbers)
    breaks = [i for i, (a, b) in enumerate(pairwise(found), 1) if b != a + 1]
    runs = [found[i:j] for i, j in pairwise([0, *breaks, len(found)])] if found else []
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parse_spans(text: str) -> list[int]:
    """Return the numbers that `spans` wrote."""
    ends = [[int(end) for end in span.split("-")] for span in text.split(", ") if span]
    return [number for span in ends for number in range(span[0], span[-1] + 1)]
