"""What grows with the length of a study and what does not, in statements, rows and trials."""

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

import hpo.search.complement_log
import hpo.storage.trials
from bench.crowd import SPACE, plant
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.summary import summary, trial_rows
from hpo.queue.slots import Claim
from hpo.queue.stored_study import StoredStudy
from hpo.search.pruning import CachedPruner
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from hpo.worker.trial import trial_config
from tests.support.cases import exhaustive
from tests.support.statements import executed_statements

N_RUNNING = 4


def open_a_trial(stored: StoredStudy) -> int:
    return stored.store.optuna.create_new_trial(stored.optuna._study_id, create_trial(state=TrialState.RUNNING))


def ask(stored: StoredStudy) -> dict[str, Any]:
    """What a worker does to find out what to train, with its list of finished trials already read."""
    stored.optuna.get_trials(deepcopy=False)
    trial = stored.store.optuna.get_trial(open_a_trial(stored))
    return trial_config(stored, Claim(9999, 1, "search", None, None), trial).model_dump()


def rows_of_a_look(monkeypatch: pytest.MonkeyPatch, url: str) -> tuple[int, int]:
    """Rows and statements behind `hpo status`."""
    rows = 0
    read = hpo.storage.trials.query_rows

    def counting(*args: Any, **named: Any) -> Any:
        nonlocal rows
        found = read(*args, **named)
        rows += len(found)
        return found

    with open_readonly(url) as store, monkeypatch.context() as patch, executed_statements(store.engine) as statements:
        patch.setattr(hpo.storage.trials, "query_rows", counting)
        assert summary(read_snapshot(store, "crowd"))["trials"]["running"] == N_RUNNING
    return rows, len(statements)


@pytest.mark.parametrize("n_finished", [50, 100])
def test_status_counts_the_planted_trials(storage_url: str, n_finished: int) -> None:
    with open_store(storage_url, create=True) as store:
        at = plant(store, n_finished, N_RUNNING)
        theirs = at.optuna.get_trials(deepcopy=False)
    with open_readonly(storage_url) as reader:
        snapshot = read_snapshot(reader, "crowd")
        half = n_finished // 2
        assert trial_counts(snapshot) == {
            "complete": half,
            "pruned": half,
            "failed": 0,
            "running": N_RUNNING,
            "waiting": 100,
        }
        best = min((t for t in theirs if t.state == TrialState.COMPLETE), key=lambda t: t.values[0])
        assert summary(snapshot)["best"] == {"number": best.number, "value": best.values[0], "params": best.params}
        lines = trial_rows(snapshot)
        assert [line["rung"] for line in lines] == [t.last_step for t in theirs]
        assert [line["val_loss"] for line in lines] == [t.intermediate_values[t.last_step] for t in theirs]
        assert [{path: line[path] for path in SPACE} for line in lines] == [t.params for t in theirs]


def test_status_reads_six_short_rows_a_trial_and_no_curves(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for n_finished in (100, 160):
        with open_store(storage_url, create=True) as store:
            for study in store.optuna.get_all_studies():
                store.optuna.delete_study(study._study_id)
            plant(store, n_finished, N_RUNNING)
        found.append(rows_of_a_look(monkeypatch, storage_url))
    (few, statements), (many, as_many) = found
    # its row, its value, its last rung, slot, kind and how it ended
    assert many - few == 6 * (160 - 100)
    assert statements == as_many < 20


def test_details_of_a_few_trials_are_read_alone_and_of_many_at_once(storage_url: str) -> None:
    with open_store(storage_url, create=True) as store:
        at = plant(store, 30, N_RUNNING)
        theirs = at.optuna.get_trials(deepcopy=False)
    with open_readonly(storage_url) as reader:
        trials = read_snapshot(reader, "crowd").trials
        with executed_statements(reader.engine) as statements:
            for number in (3, 5, 3):
                assert trials[number].intermediate_values == theirs[number].intermediate_values
                assert trials[number].user_attrs["slot"] == number
            assert len(statements) == 2
            assert [t.intermediate_values for t in trials] == [t.intermediate_values for t in theirs]
            assert len(statements) <= hpo.storage.trials.N_SINGLE_READS + 1
            assert [dict(t.user_attrs) for t in trials] == [t.user_attrs for t in theirs]


@pytest.mark.parametrize("name", ["tpe", *map(exhaustive, ("cmaes", "nsga2", "random", "qmc"))])
def test_an_ask_costs_as_many_statements_and_reads_as_many_trials_in_a_long_study_as_in_a_short_one(
    storage_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = []
    for n_finished in (30, 100):
        with open_store(storage_url, create=True) as store:
            for study in store.optuna.get_all_studies():
                store.optuna.delete_study(study._study_id)
            at = plant(store, n_finished, N_RUNNING, {"name": name})
            ask(at)
            built = 0
            build = store.rdb._build_frozen_trial_from_trial_model

            def counting(model: Any, build: Any = build) -> Any:
                nonlocal built
                built += 1
                return build(model)

            monkeypatch.setattr(store.rdb, "_build_frozen_trial_from_trial_model", counting)
            with executed_statements(store.engine) as statements:
                ask(at)
            found.append((len(statements), built))
    assert found[0] == found[1]
    assert found[0][1] < 6 * N_RUNNING


@pytest.mark.parametrize("name", ["random", "qmc"])
def test_samplers_that_learn_nothing_read_no_trials(
    storage_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with open_store(storage_url, create=True) as store:
        at = plant(store, 20, N_RUNNING, {"name": name})
        trial = store.optuna.get_trial(open_a_trial(at))
        monkeypatch.setattr(store.optuna, "get_all_trials", None)
        assert trial_config(at, Claim(9999, 1, "search", None, None), trial).model_dump().keys() == SPACE.keys()


def test_judge_reads_only_unfinished_trials_and_not_at_every_rung(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(storage_url, create=True) as store:
        at = plant(store, 60, N_RUNNING)
        pruner = CachedPruner(at.optuna, at.study.file.pruner.build(at.study.rungs), at.study.rungs, refresh_s=1e9)
        own = create_trial(state=TrialState.RUNNING)
        at.optuna.get_trials(deepcopy=False)
        with executed_statements(store.engine) as statements:
            for rung in range(1, at.study.rungs):
                own.intermediate_values[rung] = 1.0
                pruner.decide(own)
            once = len(statements)
            pruner.refresh()
            pruner.decide(own)
        assert once > 0
        assert len(statements) == 2 * once
        assert len(pruner._trials) == 60 + N_RUNNING


def test_finished_trials_are_mirrored_once(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(storage_url, create=True) as store:
        at = plant(store, 40, N_RUNNING)
        ask(at)
        flipped: list[optuna.trial.FrozenTrial] = []
        flip = hpo.search.complement_log.ComplementLogSampler._complement

        def noting(self: Any, trial: optuna.trial.FrozenTrial) -> Any:
            flipped.append(trial)
            return flip(self, trial)

        monkeypatch.setattr(hpo.search.complement_log.ComplementLogSampler, "_complement", noting)
        ask(at)
        assert flipped
        assert not any(trial.state.is_finished() for trial in flipped)
