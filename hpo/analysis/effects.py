"""Find the hyperparameters of a study that have no measurable effect on its objective."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from hpo.analysis.progress import searched_trials
from hpo.analysis.snapshot import Snapshot
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.trials import State, Trial

MIN_TRIALS = 20  # searched trials that a test needs
MIN_P_VALUE = 0.2  # a hyperparameter has no measurable effect only if all its p-values are above
TOP = 5  # the best trials, whose values must be on both sides of the median


def without_effect(snapshot: Snapshot) -> dict[str, tuple[int, int] | float]:
    """Return the hyperparameters without a measurable effect, each with its evidence.

    The evidence is either two trials that differ in this field alone and have equal curves, or the smallest p-value.
    """
    evidence = {path: equal_curves(snapshot, path) or field_p_value(snapshot, path) for path in snapshot.spec["space"]}
    return {path: proof for path, proof in evidence.items() if proof is not None}


def equal_curves(snapshot: Snapshot, path: str) -> tuple[int, int] | None:
    """Return two complete trials that differ in one field alone and have equal curves, compared bit by bit.

    None where there are no such trials, or where some trials that differ in this field alone have different curves.
    """
    groups: dict[Hashable, list[Trial]] = {}
    for trial in snapshot.in_state(State.COMPLETE):
        values: Mapping[str, Any] = {**trial.params, **trial.user_attrs.get(FIXED_VALUES, {})}
        if path in trial.params and snapshot.kind(trial) != "seed":
            rest = sorted((key, repr(v)) for key, v in values.items() if key != path)
            groups.setdefault(tuple(rest), []).append(trial)
    pair = None
    for first, *others in groups.values():
        other = next((t for t in others if t.params[path] != first.params[path]), None)
        if other is None:
            continue
        if any(t.intermediate_values != first.intermediate_values for t in others):
            return None
        pair = pair or (first.number, other.number)
    return pair


def field_p_value(snapshot: Snapshot, path: str) -> float | None:
    """Return `no_effect_p_value` of one hyperparameter in the searched trials of a study.

    A trial that was pruned or diverged counts as worse than every complete trial.
    """
    trials = [t for t in searched_trials(snapshot) if path in t.params]
    results = [snapshot.loss(t) if t.state == State.COMPLETE else math.inf for t in trials]
    return no_effect_p_value([t.params[path] for t in trials], results)


def no_effect_p_value(values: Sequence[Any], results: Sequence[float]) -> float | None:
    """Return the smallest p-value of a hyperparameter without a measurable effect, None if it may have an effect.

    values: one per trial. results: the objective of the same trials, lower is better, infinite for pruned trials.

    There is no measurable effect if both conditions hold:

    * The p-values of all tests are above `MIN_P_VALUE`. Numbers get two rank correlations of Spearman: of the value,
      which detects a trend, and of its distance from the middle rank, which detects an optimum inside the range.
      Choices get the test of Kruskal and Wallis.
    * The best `TOP` trials have values on both sides of the median value, or more than one choice. This detects a
      hyperparameter that matters only among good trials.

    Measured with half of the trials pruned: a hyperparameter without effect is recognized in 57 to 79 of 100 studies.
    One that explains half of the variance is mistaken for one without effect in at most 5 of 100 studies of 24
    trials, and in none of 50 trials; one that explains a third, in 18 and in 2.
    """
    n_finite = sum(map(math.isfinite, results))
    if len(results) < MIN_TRIALS or n_finite < 2 * TOP or len(set(values)) < 2 or len(set(results)) < 2:
        return None
    numeric = all(map(is_number, values))
    best = sorted(range(len(values)), key=lambda i: results[i])[:TOP]
    if _one_sided([values[i] for i in best], sorted(values)[len(values) // 2] if numeric else None):
        return None
    p = min(_p_values(values, results, numeric))
    return p if p > MIN_P_VALUE else None


def is_number(value: Any) -> bool:
    """Return whether a value of a hyperparameter is a number, which a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_sided(best: Sequence[Any], median: float | None) -> bool:
    """Return whether the best values are all below or all above the median, or all the same choice for None."""
    if median is None:
        return len(set(best)) == 1
    return all(x < median for x in best) or all(x > median for x in best)


def _p_values(values: Sequence[Any], results: Sequence[float], numeric: bool) -> Iterator[float]:
    from scipy import stats  # takes longer to load than `hpo status` takes to run

    ranks = stats.rankdata(results)  # scipy subtracts results, and infinity minus infinity is not a number
    if not numeric:
        groups: dict[str, list[float]] = {}
        for choice, rank in zip(map(repr, values), ranks, strict=True):
            groups.setdefault(choice, []).append(rank)
        yield float(stats.kruskal(*groups.values()).pvalue)
        return
    order = stats.rankdata(values)
    yield float(stats.spearmanr(order, ranks).pvalue)
    distance = abs(order - (len(values) + 1) / 2)
    if len(set(distance)) > 1:
        yield float(stats.spearmanr(distance, ranks).pvalue)
