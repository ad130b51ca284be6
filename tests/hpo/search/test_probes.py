"""Cool-down probes: what `probe: auto` decides, and that pruners compare probes with probes at probed rungs only."""

import itertools
import math
import random
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import stats

from hpo.search.direction import Direction
from hpo.search.probes import (
    AUTO_LEVEL,
    AUTO_RUNS,
    AUTO_UPDATES,
    NO_PROBES,
    ProbePlan,
    compared_rungs,
    decide_now,
    plan_of,
    rank_correlation,
)
from hpo.search.pruners import Asha, Halving, Median, build_pruner, rule_for
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import PROBES

R = 8
MEDIAN: dict[str, Any] = {"name": "median", "warmup_rungs": None}


def trial(number: int, raw: list[float], probes: dict[int, float | None], state: TrialState) -> FrozenTrial:
    """Return a trial with raw values at the rungs 1, 2, ... and with probes."""
    value = raw[-1] if state.is_finished() else None
    found = create_trial(
        state=state,
        value=value,
        intermediate_values=dict(enumerate(raw, 1)),
        user_attrs={PROBES: {str(rung): own for rung, own in probes.items()}} if probes else {},
    )
    found.number = number
    return found


def judge(study: optuna.Study, rule: Any, rungs: tuple[int, ...], own: FrozenTrial) -> str:
    pruner = CachedPruner(study, build_pruner(rule, R, Direction.MINIMIZE), R, refresh_s=0)
    plan = ProbePlan(rungs, 0.05, "")
    pruner.set_probes(plan, build_pruner(rule_for(plan, rule), R, Direction.MINIMIZE))
    return pruner.decide(own)


@pytest.fixture
def study() -> optuna.Study:
    """A study of eight complete trials whose probes rank in the opposite order of their raw values."""
    study = optuna.create_study()
    for i in range(8):
        raw = [5.0 + i / 10] * R
        study.add_trial(trial(i, raw, {2: 4.0 - i / 10, 4: 3.0 - i / 10}, TrialState.COMPLETE))
    return study


def test_median_compares_probes_with_probes_at_probed_rungs_and_prunes_at_no_other(study: optuna.Study) -> None:
    bad_raw = [9.0] * 4
    assert judge(study, Median(), (2, 4), trial(8, bad_raw, {2: 3.2, 4: 2.2}, TrialState.RUNNING)) == "continue"
    good_raw = [1.0] * 4
    assert judge(study, Median(), (2, 4), trial(8, good_raw, {2: 3.9, 4: 2.9}, TrialState.RUNNING)) == "prune"
    assert judge(study, Median(), (2, 4), trial(8, bad_raw[:3], {2: 3.9}, TrialState.RUNNING)) == "continue"
    diverged = trial(8, [1.0, 1.0], {2: None}, TrialState.RUNNING)
    assert judge(study, Median(), (2, 4), diverged) == "prune"
    assert judge(study, Median(), (2, 4), trial(8, [1.0, math.nan], {}, TrialState.RUNNING)) == "diverged"


def test_the_default_warmup_is_for_raw_losses_and_a_stated_one_holds_for_probes(study: optuna.Study) -> None:
    weak = trial(8, [1.0, 1.0], {2: 3.9}, TrialState.RUNNING)
    assert judge(study, Median(), (2, 4), weak) == "prune"
    assert judge(study, Median(warmup_rungs=3), (2, 4), weak) == "continue"


def test_trials_without_a_probe_are_no_peers_and_pruned_ones_count_as_worse(study: optuna.Study) -> None:
    bare = optuna.create_study()
    for i in range(9):
        bare.add_trial(trial(i, [5.0] * R, {}, TrialState.COMPLETE))  # before auto has decided
    assert judge(bare, Median(), (2, 4), trial(9, [9.0, 9.0], {2: 9.0}, TrialState.RUNNING)) == "continue"
    for i in range(8, 20):
        study.add_trial(trial(i, [1.0, 1.0], {2: 9.0}, TrialState.PRUNED))
    worst_of_complete = trial(20, [9.0] * 4, {2: 4.0, 4: 3.5}, TrialState.RUNNING)
    assert judge(study, Median(), (2, 4), worst_of_complete) == "continue"


@pytest.mark.parametrize(("rule", "stops"), [(Asha(factor=2), "pause"), (Halving(factor=2), "prune")])
def test_successive_halving_stops_only_at_marks_that_are_probed(study: optuna.Study, rule: Any, stops: str) -> None:
    weak = {2: 3.9, 4: 2.9}
    assert judge(study, rule, (2, 4), trial(8, [1.0] * 2, {2: 3.9}, TrialState.RUNNING)) == stops
    assert judge(study, rule, (2, 4), trial(8, [1.0] * 4, weak, TrialState.RUNNING)) == stops
    assert judge(study, rule, (2, 4), trial(8, [9.0], {}, TrialState.RUNNING)) == "continue"
    assert judge(study, rule, (2, 4), trial(8, [9.0] * 4, {2: 3.0, 4: 1.9}, TrialState.RUNNING)) == "continue"


def test_a_record_of_asha_holds_the_probe_and_the_rank_among_probes(study: optuna.Study) -> None:
    pruner = CachedPruner(study, build_pruner(Asha(factor=2), R, Direction.MINIMIZE), R, refresh_s=0)
    pruner.set_probes(ProbePlan((2,), 0.05, ""), pruner.pruner)
    place, record = pruner.describe_mark(trial(8, [1.0, 1.0], {2: 3.35}, TrialState.RUNNING))
    assert (place.rank, place.n, record["value"], record["probe"]) == (2, 9, 3.35, True)


def curves(n: int, noise: float) -> list[dict[int, float]]:
    """Return curves whose raw values at rungs 1 to 7 rank as the end does, but for noise."""
    rng = random.Random(0)
    return [{r: i + (rng.gauss(0, noise) if r < R else 0) for r in range(1, R + 1)} for i in range(n)]


def test_auto_probes_long_runs_at_a_quarter_and_half_and_says_why() -> None:
    plan = decide_now(MEDIAN, R, AUTO_UPDATES, [])
    assert plan is not None
    assert (plan.rungs, f"{AUTO_UPDATES:,} updates" in plan.text()) == ((2, 4), True)
    short = decide_now(MEDIAN, R, AUTO_UPDATES - 1, [])
    assert short is None  # until enough runs have finished


def test_auto_decides_for_short_runs_by_the_rank_correlation_of_the_first_finished_runs() -> None:
    assert decide_now(MEDIAN, R, 500, curves(AUTO_RUNS - 1, 0)) is None
    calm = decide_now(MEDIAN, R, 500, curves(AUTO_RUNS, 0))
    assert calm is not None
    assert not calm.rungs
    assert "rank correlation 1.00" in calm.text()
    stormy = [{r: v if r == R else (v * 5) % 8 for r, v in curve.items()} for curve in curves(AUTO_RUNS, 0)]
    rho = stats.spearmanr([c[2] for c in stormy], [c[R] for c in stormy]).statistic
    plan = decide_now(MEDIAN, R, 500, stormy)
    assert plan is not None
    assert (plan.rungs, rho < AUTO_LEVEL) == ((2, 4), True)
    assert f"rank correlation {rho:.2f} with the end, below {AUTO_LEVEL:g}" in plan.text()


@pytest.mark.parametrize(
    ("rule", "updates", "rungs", "said"),
    [
        ({"name": "asha", "min_rungs": 1, "factor": 3}, 500, (), "500 updates, fewer than 2,000"),
        ({"name": "asha", "min_rungs": 1, "factor": 3}, 20_000, (1, 3), "20,000 updates"),
        ({"name": "wilcoxon", "warmup_rungs": None}, 20_000, (), "wilcoxon compares no trials"),
        ({"name": "none"}, 20_000, (), "none compares no trials"),
        ({"name": "median", "warmup_rungs": 6}, 20_000, (7,), "20,000 updates"),
    ],
)
def test_auto_follows_the_pruner(rule: dict[str, Any], updates: int, rungs: tuple[int, ...], said: str) -> None:
    plan = decide_now(rule, R, updates, [])
    assert plan is not None
    assert plan.rungs == rungs
    assert said in plan.text()
    assert plan.share <= 1 - max(rungs, default=0) / R


@pytest.mark.parametrize("name", ["median", "percentile", "asha", "halving", "hyperband"])
def test_a_plan_of_auto_fits_into_runs_of_any_number_of_rungs(name: str) -> None:
    for rungs, first, updates in itertools.product(range(1, 10), (1, 3, 9), (1, 500, 100_000)):
        rule = {"name": name, "warmup_rungs": first - 1, "min_rungs": first, "factor": 3}
        plan = decide_now(rule, rungs, updates, [])
        if plan is None:
            continue
        assert all(0 < rung < rungs for rung in plan.rungs)
        if plan.rungs:
            assert 0 < plan.share <= 1 - plan.rungs[-1] / rungs
        elif first >= rungs:
            assert f"compares no trials before the last of {rungs} rungs" in plan.text()


def test_plans_are_off_stated_undecided_or_what_was_decided() -> None:
    assert plan_of(None, None) == plan_of("off", {"rungs": [2]}) == NO_PROBES
    stated = plan_of({"rungs": [4, 2], "share": 0.1}, None)
    assert stated is not None
    assert stated[:2] == ((2, 4), 0.1)
    assert plan_of("auto", {}) is None
    assert plan_of("auto", stated.record()) == stated


def test_the_tokens_of_probes_count_in_whole_rungs() -> None:
    plan = ProbePlan((2, 4), 0.05, "")
    assert [plan.cost_until(rung, R) for rung in (1, 2, 4, R)] == [0, 1, 1, 1]  # 0.4 and 0.8 of a rung
    assert ProbePlan((1, 2), 0.125, "").cost_until(2, R) == 2


def test_rank_correlation_equals_that_of_scipy() -> None:
    rng = random.Random(1)
    a, b = ([float(rng.randrange(9)) for _ in range(20)] for _ in range(2))
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0


def test_the_marks_of_successive_halving_are_the_compared_rungs() -> None:
    assert compared_rungs({"name": "hyperband", "min_rungs": 1, "factor": 3}, 9) == [1, 3]
    assert compared_rungs({"name": "threshold", "warmup_rungs": 2}, 5) == [3, 4]
