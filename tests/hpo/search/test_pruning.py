"""The list of trials that a pruner reads, and the record of its decisions."""

import math
import random

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.halving import HalvingPruner
from hpo.search.pruning import CachedPruner
from hpo.search.pruning_rules import compare_at_last_rung, parse_spans
from hpo.storage.attributes import FIXED_VALUES
from tests.support.cases import sparse
from tests.support.pruning import LOOSE, NAMES, R, curve, end, finished, loose, pruner, running


def test_list_of_trials_is_read_once_in_the_refresh_time(study: optuna.Study) -> None:
    lazy = CachedPruner(study, pruner("median").build(R), R, refresh_s=math.inf)
    eager = CachedPruner(study, pruner("median").build(R), R, refresh_s=0)
    bad = dict.fromkeys(range(1, R + 1), 99.0)
    assert end(lazy, bad) == end(eager, bad) == ("continue", R)
    for i in range(8):
        study.add_trial(finished(curve(2.0 + i / 10)))
    assert end(lazy, bad) == ("continue", R)
    assert end(eager, bad) == ("prune", 4)


def test_judging_reads_no_table_between_refreshes(crowd: optuna.Study) -> None:
    cached = CachedPruner(crowd, pruner("wilcoxon").build(R), R, refresh_s=math.inf)
    cached.prune(running(curve(3.0, 2)))
    statements: list[str] = []
    engine = crowd._storage._backend.engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for name in NAMES:
        cached.pruner = pruner(name).build(R)
        end(cached, curve(3.0))
        if name != "none":
            cached.describe(pruner(name), running(curve(3.0, 4)))
    assert statements == []
    crowd.get_trials(deepcopy=False)
    assert statements != []


@pytest.mark.filterwarnings("error")
def test_an_imported_trial_without_a_curve_does_not_switch_wilcoxon_off(study: optuna.Study) -> None:
    study.add_trial(create_trial(value=0.1))  # better than all others, but it cannot be compared rung by rung
    cached = CachedPruner(study, pruner("wilcoxon").build(R), R, refresh_s=0)
    assert end(cached, curve(3.0)) == ("continue", R)
    study.add_trial(finished(curve(1.0)))
    decision, rung = end(cached, curve(3.0))
    assert (decision, rung < R) == ("prune", True)


def odd_curve(chance: random.Random, rungs: int, with_nan: bool) -> dict[int, float]:
    """Values in steps of a tenth, so that many are equal; now and then one that is no number, but no end of a curve."""
    values = {rung: round(chance.gauss(1.5, 0.5), 1) for rung in range(1, rungs + 1)}
    lost = [rung for rung in range(2, rungs) if with_nan and chance.random() < 0.2]
    return values | dict.fromkeys(lost, math.nan)


@pytest.mark.parametrize("name", sparse(LOOSE, 9))
def test_the_recorded_comparison_is_that_of_the_pruner_with_ties_and_values_that_are_no_numbers(name: str) -> None:
    rule, chance = pruner(**loose(name)), random.Random(name)
    decisions, parted = [], 0
    for _ in range(120):
        study = optuna.create_study(study_name="s")
        for i in range(chance.randint(1, 9)):
            state = TrialState.COMPLETE if i == 0 else chance.choice([*TrialState][1:4])
            study.add_trial(finished(odd_curve(chance, R, with_nan=name != "wilcoxon" and i > 0), state))
        cached = CachedPruner(study, rule.build(R), R, refresh_s=0)
        own = running(odd_curve(chance, chance.choice((4, 5, 7, 8, 8, 8)), with_nan=name != "wilcoxon"))
        decision = cached.prune(own)
        record = cached.describe(rule, own) if decision or decides(cached, own) else None
        if record is None:
            continue
        held = study.get_trials(deepcopy=False)
        peers = [held[number].intermediate_values for number in parse_spans(record["peers"])]
        again = compare_at_last_rung(rule.model_dump(), own.intermediate_values, peers)
        assert again.prunes == decision
        assert (record["value"], record["threshold"], record["n"]) == (again.value, again.threshold, len(peers))
        decisions.append(decision)
        parted += not math.isclose(again.value, again.threshold)
    assert 0.05 < sum(decisions) / len(decisions) < 0.95
    assert parted > 5


def decides(cached: CachedPruner, trial: FrozenTrial) -> bool:
    """Tell whether a rung is one at which the pruner compares at all."""
    brackets = cached.pruner
    return not isinstance(brackets, HalvingPruner) or brackets.is_mark(
        trial.last_step or 0, brackets.bracket(cached._study, trial.number)
    )


def test_the_record_is_of_the_list_that_the_pruner_read_though_a_trial_has_ended_since(crowd: optuna.Study) -> None:
    rule = pruner("median")
    cached = CachedPruner(crowd, rule.build(R), R, refresh_s=0)
    bad = running(dict.fromkeys(range(1, 5), 5.0))
    assert cached.prune(bad)
    crowd.add_trial(finished(curve(1.0)))
    assert cached.describe(rule, bad)["peers"] == "0-7"


def test_trials_of_a_ladder_are_compared_within_their_cell(study: optuna.Study) -> None:
    for cell, n, end_value in ((1_000, 3, 3.0), (4_000, 5, 1.0)):
        for _ in range(n):
            trial = finished(curve(end_value))
            trial.user_attrs = {FIXED_VALUES: {"run.tokens": cell}}
            study.add_trial(trial)
    own = running({1: curve(2.9)[1]})
    own.user_attrs = {FIXED_VALUES: {"run.tokens": 1_000}}
    of_all = CachedPruner(study, pruner("median", **LOOSE["median"]).build(R), R)
    of_cell = CachedPruner(study, pruner("median", **LOOSE["median"]).build(R), R, within=("run.tokens",))
    assert of_all.prune(own)
    assert not of_cell.prune(own)
    worse = running({1: curve(3.1)[1]})
    worse.user_attrs = own.user_attrs
    assert of_cell.prune(worse)
    assert of_cell.describe(pruner("median", **LOOSE["median"]), worse)["n"] == 3
