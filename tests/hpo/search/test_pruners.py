"""Pruners: which trial is stopped, and when."""

import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from hpo.config.validation import explain_errors
from hpo.search.pruners import Pruner
from hpo.search.pruning import CachedPruner
from model.section import Section
from tests.support.cases import covering
from tests.support.pruning import NAMES, R, curve, end, finished, pruner, running


@pytest.mark.parametrize("name", ["median", "percentile", "halving", "threshold", "wilcoxon"])
def test_planted_bad_trial_is_pruned_and_the_planted_best_never(crowd: optuna.Study, name: str) -> None:
    cached = CachedPruner(crowd, pruner(name).build(R), R)
    bad, best = dict.fromkeys(range(1, R + 1), 5.0), curve(1.0)
    decision, rung = end(cached, bad)
    assert decision == "prune"
    assert rung < R
    assert end(cached, best) == ("continue", R)


def test_hyperband_prunes_a_bad_trial_in_every_bracket_that_has_rivals(study: optuna.Study) -> None:
    for i in range(60):
        study.add_trial(finished(curve(2.0 + i / 100)))
    cached = CachedPruner(study, pruner("hyperband").build(R), R)
    ends = {end(cached, dict.fromkeys(range(1, R + 1), 5.0), number) for number in range(100, 140)}
    assert ends == {("prune", 1), ("prune", 3), ("prune", 9)}
    assert {end(cached, curve(1.0), number) for number in range(100, 140)} == {("continue", R)}


def test_patient_stops_a_trial_that_no_longer_improves(study: optuna.Study) -> None:
    cached = CachedPruner(study, pruner("patient", patience=2).build(R), R)
    assert end(cached, {1: 3.0, 2: 2.0} | dict.fromkeys(range(3, R + 1), 2.5)) == ("prune", 5)
    assert end(cached, curve(1.0)) == ("continue", R)


def test_none_prunes_nothing(crowd: optuna.Study) -> None:
    cached = CachedPruner(crowd, pruner("none").build(R), R)
    assert end(cached, dict.fromkeys(range(1, R + 1), 99.0)) == ("continue", R)


@pytest.mark.parametrize(("name", "warmup"), covering(["median", "percentile", "threshold", "wilcoxon"], [0, 1, 2, 5]))
def test_warmup_of_w_rungs_prunes_first_at_rung_w_plus_1(crowd: optuna.Study, name: str, warmup: int) -> None:
    cached = CachedPruner(crowd, pruner(name, warmup_rungs=warmup).build(R), R)
    first = end(cached, {rung: 5.0 + rung for rung in range(1, R + 1)})
    # The signed-rank test has p < 0.1 from its fourth pair on.
    assert first == ("prune", max(warmup + 1, 4) if name == "wilcoxon" else warmup + 1)


@pytest.mark.parametrize(("rungs", "warmup"), [(1, 0), (2, 1), (4, 1), (6, 2), (8, 2), (10, 3), (20, 5)])
def test_warmup_left_out_is_a_quarter_of_the_rungs(rungs: int, warmup: int) -> None:
    assert pruner("median").first_rung(rungs) == warmup + 1


def test_interval_decides_at_every_second_rung_after_warmup(crowd: optuna.Study) -> None:
    cached = CachedPruner(crowd, pruner("median", warmup_rungs=2, interval=3).build(R), R)
    late = {rung: (0.5 if rung < 4 else 9.0) for rung in range(1, R + 1)}
    asked = [r for r in range(1, R) if cached.pruner.prune(cached._view, running(dict.fromkeys(range(1, r + 1), 9.0)))]
    assert asked == [3, 6, 9]
    assert end(cached, late) == ("continue", R)


@pytest.mark.parametrize("name", NAMES)
def test_no_trial_is_pruned_at_the_last_rung(crowd: optuna.Study, name: str) -> None:
    cached = CachedPruner(crowd, pruner(name).build(1), 1)
    assert end(cached, {1: 99.0}) == ("continue", 1)


@pytest.mark.parametrize("name", NAMES)
def test_baseline_is_never_pruned(crowd: optuna.Study, name: str) -> None:
    cached = CachedPruner(crowd, pruner(name).build(R), R)
    assert end(cached, {rung: 5.0 + rung for rung in range(1, R + 1)}, baseline=True) == ("continue", R)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("baseline", [False, True])
def test_value_that_is_not_finite_is_diverged_whatever_the_pruner_says(
    crowd: optuna.Study, value: float, baseline: bool
) -> None:
    cached = CachedPruner(crowd, pruner("median").build(R), R)
    assert end(cached, {1: 1.0, 2: 50.0, 3: value}, baseline=baseline) == ("diverged", 3)
    assert end(cached, curve(1.0) | {R: value}) == ("diverged", R)
    assert not cached.prune(running({1: value}))


def test_too_few_finished_trials_are_no_measure(study: optuna.Study) -> None:
    cached = CachedPruner(study, pruner("median", startup_trials=0).build(R), R, refresh_s=0)
    bad = dict.fromkeys(range(1, R + 1), 99.0)
    for i in range(5):
        assert end(cached, bad) == ("continue", R), i
        study.add_trial(finished(curve(2.0)))
    assert end(cached, bad) == ("prune", 4)


def random_curves(seed: int, n: int) -> list[dict[int, float]]:
    chance = random.Random(seed)
    return [{r: v + chance.gauss(0, 0.1) for r, v in curve(chance.uniform(1, 3)).items()} for _ in range(n)]


@pytest.mark.parametrize(
    "stock",
    [
        optuna.pruners.MedianPruner(5, 4, n_min_trials=5),
        optuna.pruners.PercentilePruner(75.0, 5, 4, n_min_trials=5),
    ],
)
def test_decisions_equal_should_prune_on_the_same_trials(study: optuna.Study, stock: Any) -> None:
    name = "median" if isinstance(stock, optuna.pruners.MedianPruner) else "percentile"
    study.pruner = stock
    cached = CachedPruner(study, pruner(name, peers="finished").build(R), R, refresh_s=0)
    decisions = []
    for values in random_curves(0, 14):
        trial = study.ask()
        own = running({}, trial.number)
        for rung, value in values.items():
            trial.report(value, rung)
            own.intermediate_values[rung] = value
            decisions.append(cached.prune(own))
            assert decisions[-1] == (trial.should_prune() and rung < R)
            if decisions[-1]:
                break
        state = TrialState.PRUNED if decisions[-1] else TrialState.COMPLETE
        study.tell(trial, None if decisions[-1] else values[R], state=state)
    assert 0 < sum(decisions) < 14


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("halving", lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)),
        ("hyperband", lambda: optuna.pruners.HyperbandPruner(1, R, 3)),
    ],
)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_halving_decides_as_optunas_without_writing(name: str, stock: Callable[[], Any], direction: str) -> None:
    theirs = optuna.create_study(study_name="s", pruner=stock(), direction=direction)
    ours = optuna.create_study(study_name="s", direction=direction)
    cached = CachedPruner(ours, pruner(name).build(R), R, refresh_s=0)
    n_pruned = 0
    for values in random_curves(1, 60):
        trial, own = theirs.ask(), ours.ask()
        copy = running({}, own.number)
        pruned = False
        for rung, value in values.items():
            trial.report(value, rung)
            own.report(value, rung)
            copy.intermediate_values[rung] = value
            pruned = cached.prune(copy)
            assert pruned == (trial.should_prune() and rung < R)
            if pruned:
                break
        n_pruned += pruned
        for study, one in (theirs, trial), (ours, own):
            study.tell(one, state=TrialState.PRUNED) if pruned else study.tell(one, values[R])
    assert 20 < n_pruned < 60
    assert not any(t.system_attrs for t in ours.get_trials())


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_best_trial_of_the_judges_list_is_the_studys(direction: str) -> None:
    study = optuna.create_study(direction=direction)
    for last in 2.0, 1.0, 3.0:
        study.add_trial(finished(curve(last)))
    cached = CachedPruner(study, pruner("none").build(R), R)
    assert cached._view.best_trial.number == study.best_trial.number


def test_failed_trials_are_no_rivals_in_halving(study: optuna.Study) -> None:
    for _ in range(9):
        study.add_trial(finished({1: 0.1}, TrialState.FAIL))
    cached = CachedPruner(study, pruner("halving").build(R), R)
    assert end(cached, curve(2.0)) == ("continue", R)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"name": "threshold"}, "must have lower or upper; add one of them"),
        ({"name": "threshold", "lower": 2, "upper": 1}, "lower must be less than upper, got lower 2.0 and upper 1.0"),
        ({"name": "percentile", "percentile": 100}, "must be less than 100, got 100"),
        ({"name": "halving", "factor": 1}, "must be at least 2, got 1"),
        ({"name": "median", "warmup": 1}, "no such field; did you mean pruner.warmup_rungs?"),
    ],
)
def test_pruner_that_cannot_be_is_refused(given: dict[str, Any], rule: str) -> None:
    class File(Section):
        pruner: Pruner

    with pytest.raises(ValidationError) as caught:
        File.model_validate({"pruner": given})
    assert [r for _, r in explain_errors(caught.value, File)] == [rule]


def test_a_rival_whose_value_is_no_number_changes_no_decision_in_halving(study: optuna.Study) -> None:
    cached = CachedPruner(study, pruner("halving").build(R), R, refresh_s=0)
    for value in (3.0, 1.0, 2.0, 4.0):
        study.add_trial(finished({1: value}, TrialState.PRUNED))
    alone = [cached.prune(running({1: value})) for value in (0.5, 1.5, 2.5)]
    for _ in range(3):
        study.add_trial(finished({1: math.nan}, TrialState.PRUNED))
    assert [cached.prune(running({1: value})) for value in (0.5, 1.5, 2.5)] == alone == [False, True, True]
