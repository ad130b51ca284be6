"""What Optuna's samplers see of a study: its best and latest trials, pruned trials, and their own stored state."""

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import Problem
from hpo.search.complement_log import ComplementLogSampler
from hpo.search.optuna_samplers import _as_complete
from hpo.search.sampler_config import Seeds
from hpo.search.samplers import build_sampler
from hpo.search.space import suggest_values
from tests.support.sampling import BASE, TWO, loss, sampler, search


class _Opens:
    """An object whose pickle runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_cmaes_runs_no_code_that_another_program_put_into_its_stored_state(tmp_path: Path) -> None:
    study = optuna.create_study()
    search(study, sampler("cmaes", population=4), TWO, 12)
    stored = [t for t in study.get_trials() if any(":optimizer:" in key for key in t.system_attrs)]
    assert len(stored) >= 2, "the state is stored after each generation, and read again by the next one"
    planted = pickle.dumps(_Opens(tmp_path / "ran")).hex()
    for key in stored[-1].system_attrs:  # the state is split into several attributes
        if ":optimizer:" in key:
            stored[-1].system_attrs[key] = planted if key.endswith(":0") else ""
    with pytest.raises(Problem, match=r"cannot be used \(it must not contain (io|_io).open\)"):
        sampler("cmaes").build(Seeds(0, 0))._restore_optimizer(stored)
    assert not (tmp_path / "ran").exists()


def crowd(n: int) -> optuna.Study:
    """Complete and pruned trials of all qualities, in no order."""
    study = optuna.create_study()
    kind = FloatDistribution(0.0, 1.0)
    for i in range(n):
        x = (i * 0.618034) % 1
        state = TrialState.PRUNED if i % 2 else TrialState.COMPLETE
        value = {"value": x} if state == TrialState.COMPLETE else {"intermediate_values": {1 + i % 3: x}}
        study.add_trial(create_trial(state=state, params={"x": x}, distributions={"x": kind}, **value))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    return study


def shown(study: optuna.Study, history: int | None) -> list[FrozenTrial]:
    mirror = ComplementLogSampler(optuna.samplers.TPESampler(seed=0), {}, frozenset(), history)
    return mirror.view(study, {"x": FloatDistribution(0.0, 1.0)}).get_trials(deepcopy=False)


def test_history_shows_the_best_and_the_latest_and_all_that_run() -> None:
    study = crowd(400)
    found = shown(study, 100)
    numbers = [t.number for t in found]
    assert numbers == sorted(numbers)
    assert [t.number for t in found if t.state == TrialState.RUNNING] == [401]
    assert len(found) == 100 + 1
    complete = sorted((t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda t: t.values[0])
    assert {t.number for t in complete[:50]} <= set(numbers)
    assert set(range(400 - 25, 400)) <= set(numbers)
    assert len(shown(study, None)) == len(shown(study, 400)) == 400 + 1


@pytest.mark.parametrize("n_complete", [400, 0])
def test_history_leaves_the_trials_that_tpe_takes_as_good_unchanged(n_complete: int) -> None:
    study = crowd(400)
    keep = [t for t in study.trials if n_complete or t.state == TrialState.PRUNED]
    study = optuna.create_study()
    study.add_trials(keep)
    whole, part = shown(study, None), shown(study, 100)
    n_good = default_gamma(len(whole))
    good, _ = _split_trials(study, [t for t in whole if t.state != TrialState.FAIL], n_good)
    still, rest = _split_trials(study, part, n_good)
    assert {t.number for t in good} == {t.number for t in still}
    assert rest


def test_cmaes_draws_the_same_whether_it_is_shown_all_trials_or_the_last_ones() -> None:
    def drawn(history: int | None) -> list[dict[str, Any]]:
        study, found, opened = optuna.create_study(study_name="s"), [], []
        for slot in range(150):
            mirror = build_sampler(sampler("cmaes"), BASE, TWO, slot, 0)
            assert isinstance(mirror, ComplementLogSampler)
            mirror.history = history
            study.sampler = mirror
            opened.append(study.ask())
            found.append(suggest_values(opened[-1], BASE, TWO))
            if len(opened) > 4:
                study.tell(trial := opened.pop(slot % 3), loss(trial.params))
        return found

    assert drawn(None) == drawn(60)
    assert sampler("cmaes", population=80).recall() == 800


@pytest.mark.parametrize(("ours", "stays"), [(True, False), (False, True)], ids=["ours", "optuna's own"])
def test_process_goes_away_from_where_a_trial_was_pruned(ours: bool, stays: bool) -> None:
    study = optuna.create_study()
    kind = {"x": FloatDistribution(0.0, 1.0)}
    for x in (0.1, 0.3, 0.5):
        study.add_trial(create_trial(value=-x, params={"x": x}, distributions=kind))
    found = []
    for seed in range(4):
        inner = sampler("gp", startup_trials=2).build(Seeds(seed, 0))
        if not ours:
            inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=2)
        study.sampler = ComplementLogSampler(inner, kind, frozenset())
        trial = study.ask()
        found.append(trial.suggest_float("x", 0.0, 1.0))
        trial.report(1.0, 1)
        study.tell(trial, state=TrialState.PRUNED)
    assert all(abs(x - found[0]) < 1e-3 for x in found[1:]) == stays


def test_process_reads_the_worst_value_of_a_trial_pruned_without_one() -> None:
    study = optuna.create_study()
    for values in (1.0, 3.0):
        study.add_trial(create_trial(value=values))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=2.0))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    told = _as_complete(study.get_trials())
    assert [t.values and t.values[0] for t in told] == [1.0, 3.0, 2.0, 3.0, None, None]
    assert [t.state for t in told] == [TrialState.COMPLETE] * 4 + [TrialState.FAIL, TrialState.RUNNING]
    assert [t.state for t in study.trials][2:4] == [TrialState.PRUNED] * 2
