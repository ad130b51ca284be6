"""Trials that a user adds: retries of failed trials, and chosen configurations."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.analysis.snapshot import read_snapshot
from hpo.commands.control import set_study_state
from hpo.commands.enqueue import enqueue_trial, retry_trials
from hpo.errors import Problem
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import END_REASON
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.command import until
from tests.support.control import (
    create_study,
    ends,
    gpt,
    interrupt_trial,
    refused,
    run_control,
    run_worker,
    rungs,
    states,
    working,
)
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


FAILING = """
def fails_once(config):
    from pathlib import Path
    mark = Path(f"failed-{config.x}")
    if config.x > 0.5 and not mark.exists():
        mark.touch()
        raise RuntimeError("planted")
    yield from train(config)
"""


def failing(store: Store, here: Path, **keys: Any) -> StoredStudy:
    path = planted(here, train="curves:fails_once", **{"pruner": {"name": "none"}, **keys})
    with (here / "curves.py").open("a") as file:
        file.write(FAILING)
    return register_study(store, load_study(str(path)), None, {})


def test_retry_runs_the_parameters_again_as_a_new_trial_beside_the_budget(here: Path, store: Store) -> None:
    at = failing(store, here, baseline=[{"x": 0.9}], budget={"trials": 6})
    assert run_worker(at) == 0
    failed = [t.number for t in read_snapshot(store, "planted").in_state(State.FAIL)]
    assert 0 in failed
    assert len(failed) > 1
    told = run_control(store.url, "retry", "0")
    assert "trial 0: runs again as a new trial" in told
    assert "hpo worker --study planted" in told
    assert "trial 0: must have no unfinished retry" in refused(store.url, "retry", "0")
    assert len(run_control(store.url, "retry", "--failed").splitlines()) == len(
        failed
    )  # one a trial, and that none trains
    assert run_worker(at) == 0
    trials = read_snapshot(store, "planted").trials
    assert states(store) == {State.COMPLETE: 6, State.FAIL: len(failed)}
    tries = {t.user_attrs["retry_of"]: t for t in trials if t.user_attrs["kind"] == "retry"}
    assert sorted(tries) == failed
    assert all(tries[n].params == trials[n].params and tries[n].state == State.COMPLETE for n in failed)
    assert "no failed trial is left to retry" in run_control(store.url, "retry", "--failed")


def test_retry_of_a_baseline_is_pruned_as_little_as_the_baseline_itself(here: Path, store: Store) -> None:
    """Of a threshold that all curves pass, search trials are pruned; the baseline is what they are measured against."""
    pruner = {"name": "threshold", "upper": 0.0}
    at = failing(store, here, baseline=[{"x": 0.9}], budget={"trials": 3}, pruner=pruner)
    assert run_worker(at) == 0
    snapshot = read_snapshot(store, "planted")
    assert snapshot.trials[0].state == State.FAIL
    assert {t.state for t in snapshot.trials[1:]} <= {State.PRUNED, State.FAIL}
    run_control(store.url, "retry", "0")
    assert run_worker(at) == 0
    again = next(t for t in read_snapshot(store, "planted").trials if t.user_attrs["kind"] == "retry")
    assert (again.user_attrs["retry_of"], again.state) == (0, State.COMPLETE)


def test_retry_takes_what_failed_and_nothing_whose_result_stands(here: Path, store: Store) -> None:
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 4})
    ids = []
    for state, ended, values in (
        (TrialState.PRUNED, "timeout", {}),
        (TrialState.PRUNED, "pruned", {}),
        (TrialState.COMPLETE, "complete", {"values": [1.0]}),
    ):
        claim = stored.slots.claim("planted", 60.0)
        assert claim is not None
        trial = stored.optuna.ask({"x": stored.study.file.space["x"].distribution(float)})
        ids.append(trial.number)
        store.optuna.set_trial_user_attr(trial._trial_id, "slot", claim.slot)
        store.optuna.set_trial_user_attr(trial._trial_id, END_REASON, ended)
        store.optuna.set_trial_state_values(trial._trial_id, state, **values)
        stored.slots.done(claim, "planted", 1, ended)
    assert "trial 0: runs again" in retry_trials(store, None, 0, False)[0]
    with pytest.raises(Problem, match="trial 1: must have failed to be retried; it is pruned, and its result is val"):
        retry_trials(store, None, 1, False)
    with pytest.raises(Problem, match="trial 2: must have failed to be retried; it is complete, and"):
        retry_trials(store, None, 2, False)
    interrupt_trial(stored)
    running = len(read_snapshot(store, "planted").trials) - 1
    with pytest.raises(Problem, match=f"trial {running}: must have ended to be retried"):
        retry_trials(store, None, running, False)
    with pytest.raises(Problem, match="retry: must have either the number of a trial or --failed"):
        retry_trials(store, None, None, False)
    with pytest.raises(Problem, match="either"):
        retry_trials(store, None, 0, True)


def test_enqueued_configuration_runs_next_and_beside_the_budget(here: Path, store: Store) -> None:
    stored = create_study(store, here, base={"pause": 0.15}, pruner={"name": "none"}, budget={"trials": 8})
    with working(store.url) as workers:
        assert until(lambda: rungs(store) > 0)
        told = run_control(store.url, "enqueue", "--set", "x=0.125")
        assert "enqueued x=0.1250, in addition to the budget; it runs next" in told
        assert "no worker is training" not in told
        assert ends(workers) == [(0, ""), (0, "")]
    trials = read_snapshot(store, "planted").trials
    (mine,) = [t for t in trials if t.user_attrs["kind"] == "enqueued"]
    assert mine.params == {"x": 0.125}
    assert mine.number < 8, "it came before the rest of the search"
    assert states(store) == {State.COMPLETE: 9}
    # after the end, the same again
    assert "no worker is training" in run_control(store.url, "enqueue", "--set", "x=0.125")
    assert "is enqueued and has not ended" in refused(store.url, "enqueue", "--set", "x=0.125")
    assert "it runs after 1 other added trials" in run_control(store.url, "enqueue", "--set", "x=0.25")
    assert run_worker(stored) == 0
    assert states(store) == {State.COMPLETE: 11}


def test_enqueue_says_what_keeps_it_from_being_run(here: Path, store: Store) -> None:
    stored = create_study(store, here, budget={"hours": 1}, space={"x": {"low": 0.2, "high": 0.4}})
    set_study_state(store, None, "paused")
    stored.optuna.set_user_attr("hpo:started", stored.slots.now() - 3600)
    told = "\n".join(enqueue_trial(store, None, ["x=0.75"]))
    assert "x=0.7500 is outside the range of the space; the trial runs, but the sampler does not use" in told
    assert "the study is paused; to continue: hpo resume --study planted" in told
    assert "the budget of 1 hours is used up" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "--set: must be given at least once"),
        (["x"], "--set: must be path=value"),
        (["y=1"], "--set y: "),
        (["x=2"], "--set x: "),
        (["x=low"], "--set x: "),
    ],
)
def test_enqueue_refuses_what_is_no_configuration(
    here: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with open_store(f"sqlite:///{tmp_path}/c.db", create=True) as store:
        stored = create_study(store, here)
        with pytest.raises(Problem) as error:
            enqueue_trial(store, None, overrides)
        assert message in str(error.value)
        assert stored.slots.n_unfinished() == 12


def test_enqueue_refuses_a_trial_that_could_not_be_compared_with_the_others(here: Path) -> None:
    with open_store(f"sqlite:///{here}/c.db", create=True) as store:
        stored = register_study(store, load_study(str(gpt(here, "a", 1e-3, {}))), None, {})
        for override, why in (
            ("run.tokens=999", "lengths"),
            ("run.rungs=7", "rungs"),
            ("tokenizer.name=chars", "tokenizers"),
            ("data.split_seed=1", "data"),
        ):
            with pytest.raises(Problem, match=f"trials with different {why} cannot be compared"):
                enqueue_trial(store, "a", [override])
        with pytest.raises(Problem, match="--set optimizer: must be a dotted field, such as"):
            enqueue_trial(store, "a", ["optimizer={name: sgd}"])
        searched = {"space": {"tokenizer.name": {"choices": ["bytes", "chars"]}}, "objective": "val_bpb"}
        register_study(store, load_study(str(gpt(here, "b", 1e-3, {}, **searched))), None, {})
        assert "b: enqueued tokenizer.name=chars" in enqueue_trial(store, "b", ["tokenizer.name=chars"])[0]
        assert stored.slots.n_unfinished() == 4
        tokens = stored.study.base.model_dump()["run"]["tokens"]
        assert "enqueued" in enqueue_trial(store, "a", [f"run.tokens={tokens}", "optimizer.lr=0.5"])[0]
        assert stored.slots.n_unfinished() == 5
