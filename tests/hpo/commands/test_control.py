"""`hpo pause`, `resume`, `stop` and `kill` act on a running study through the storage alone."""

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo.analysis.snapshot import read_snapshot, trial_status
from hpo.commands.control import kill_trial, set_study_state
from hpo.storage.attributes import END_REASON, STUDY_STATE
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.worker.trial import open_trial
from hpo.worker.worker import Worker
from tests.support.command import hpo, until
from tests.support.control import (
    LONG,
    create_study,
    ends,
    events,
    get_trial,
    interrupt_trial,
    refused,
    run_control,
    run_worker,
    rungs,
    states,
    working,
)

pytestmark = pytest.mark.usefixtures("here")


def test_commands_act_through_the_storage_from_any_folder_and_their_status_says_how_it_went(here: Path) -> None:
    url = f"sqlite:///{here}/hpo.db"
    away = here / "away"
    away.mkdir()
    with open_store(url, create=True) as store:
        stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 2})
        interrupt_trial(stored)
        for command in ("pause", "resume", "stop"):
            assert "planted: " in hpo(command, "--storage", url, cwd=away).stderr
        assert "trial 0: failed as killed" in hpo("kill", "0", "--storage", url, cwd=away).stderr
        assert "the study is stopped" in hpo("retry", "0", "--storage", url, cwd=away).stderr
        asked = hpo("retry", "--storage", url, cwd=away, status=2)
        assert asked.stderr == "hpo: retry: must have either the number of a trial or --failed\n"
        assert "no study 'x'" in hpo("pause", "--study", "x", "--storage", url, cwd=away, status=2).stderr
        assert "no storage at" in hpo("pause", "--storage", "none.db", cwd=away, status=4).stderr
        asked = hpo("enqueue", "--set", "x=0.5", "--storage", url, cwd=away, status=2)
        assert asked.stderr.endswith("add --allow-train curves:train\n")
        assert stored.slots.n_unfinished() == 2


def test_paused_study_trains_nothing_and_continues_to_the_exact_total(here: Path, store: Store) -> None:
    stored = create_study(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        assert until(lambda: stored.slots.counts()["leased"] == 2 and rungs(store) > 0)
        told = set_study_state(store, None, "paused", "the machine is needed")
        before = rungs(store)
        assert told.startswith("planted: paused; its workers requeue ")
        assert until(lambda: stored.slots.counts()["leased"] == 0)
        held = rungs(store)
        assert held - before <= 2, "each worker ends the rung that it is in"
        given_back = states(store)[State.WAITING]
        assert given_back > 0
        assert states(store)[State.RUNNING] == 0
        assert "is already paused" in run_control(store.url, "pause")
        time.sleep(1.5)  # longer than a worker waits between looks
        assert rungs(store) == held
        assert stored.slots.counts()["leased"] == 0
        assert all(worker.poll() is None for worker in workers)
        assert "active" in run_control(store.url, "resume")
        assert ends(workers) == [(0, ""), (0, "")]
    assert states(store) == {State.COMPLETE: 3}
    assert all(sorted(t.intermediate_values) == list(range(1, 13)) for t in read_snapshot(store, "planted").trials)
    assert events(store, "paused", "resumed")[0] == ("paused", "the machine is needed")
    words = [word for word, _ in events(store, "paused", "resumed")]
    assert words == ["paused"] * (1 + given_back) + ["resumed"]


def test_worker_that_has_other_studies_does_not_wait_at_a_paused_one(
    here: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.reporter.STATE_REFRESH_S", 0.0)  # these rungs take no time
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 2})
    worker = Worker(stored, Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: set_study_state(store, None, "paused") if event["event"] == "rung" else None
    assert worker.work(max_trials=1) == 0
    assert states(store) == {State.WAITING: 1}
    assert get_trial(store, 0).last_step == 1


def test_workers_of_a_paused_study_end_when_nothing_is_left_to_wait_for(here: Path, store: Store) -> None:
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 1})
    interrupt_trial(stored)
    set_study_state(store, None, "paused")
    with working(store.url, n=1) as workers:
        kill_trial(store, None, 0)
        assert ends(workers) == [(0, "study planted is paused; `hpo resume` resumes it\n")]
    assert "all of its trials have ended" in set_study_state(store, None, "stopped")


def test_stopped_workers_leave_with_0_and_another_worker_continues_after_resume(here: Path, store: Store) -> None:
    stored = create_study(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        assert until(lambda: stored.slots.counts()["leased"] == 2)
        assert "planted: stopped; its workers requeue " in run_control(store.url, "stop")
        assert ends(workers) == [(0, ""), (0, "")]
    assert stored.slots.counts()["leased"] == 0
    assert states(store)[State.RUNNING] == 0
    assert run_worker(stored) == 0
    assert stored.slots.counts()["done"] < 3, "a worker that joins a stopped study leaves"
    assert "is already stopped" in run_control(store.url, "stop")
    assert "hpo worker --study planted" in run_control(store.url, "resume")
    assert run_worker(stored) == 0
    assert states(store) == {State.COMPLETE: 3}
    assert "all of its trials have ended" in run_control(store.url, "pause")


@pytest.mark.parametrize("when", ["before a trial is complete", "after"])
def test_stopped_launcher_ends_and_says_what_was_found(here: Path, store: Store, when: str) -> None:
    done = 0 if when == "before a trial is complete" else 1
    base = {"rungs": 12, "pause": 0.12 if done else 0.4}
    stored = create_study(store, here, **LONG | {"base": base}, budget={"trials": 5})
    with working(store.url, "launch", "--workers", "2", n=1) as launchers:
        assert until(lambda: rungs(store) > 0 and stored.slots.counts()["done"] >= done)
        run_control(store.url, "stop")
        stdout, stderr = launchers[0].communicate(timeout=60)
    assert "planted was stopped" in stderr
    assert launchers[0].returncode == (0 if done else 3), stderr
    assert ("best: trial" in stdout) == bool(done)
    assert stored.slots.counts()["leased"] == 0
    with working(store.url, "launch", "--workers", "2", n=1) as launchers:  # launching goes on
        assert ends(launchers)[0][0] == 0
    assert states(store) == {State.COMPLETE: 5}
    assert store.optuna.get_study_user_attrs(stored.slots.study_id)[STUDY_STATE] == "active"


def test_killed_trial_that_runs_ends_within_one_rung_and_its_neighbours_go_on(here: Path, store: Store) -> None:
    stored = create_study(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        assert until(lambda: any(t.number == 1 and t.last_step for t in read_snapshot(store, "planted").trials))
        told = kill_trial(store, None, 1)
        seen = get_trial(store, 1).last_step or 0
        assert told == "trial 1: its worker stops it within one rung"
        assert ends(workers) == [(0, ""), (0, "")]
    trial = get_trial(store, 1)
    assert (trial.state, trial.user_attrs[END_REASON]) == (State.FAIL, "killed")
    assert trial.last_step in (seen, seen + 1)
    assert states(store) == {State.COMPLETE: 2, State.FAIL: 1}
    assert stored.slots.counts()["done"] == 3


def test_killed_trial_that_nobody_holds_ends_at_once(here: Path, store: Store) -> None:
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 2})
    interrupt_trial(stored)
    assert "it was interrupted at rung 1 of 4" in run_control(store.url, "kill", "0")
    assert (get_trial(store, 0).state, get_trial(store, 0).user_attrs[END_REASON]) == (State.FAIL, "killed")
    assert stored.slots.n_unfinished() == 1
    assert run_worker(stored) == 0
    assert states(store) == {State.COMPLETE: 1, State.FAIL: 1}


def test_killed_trial_of_a_worker_that_died_ends_at_once(here: Path, store: Store) -> None:
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 2})
    claim = stored.slots.claim("dead", 60.0)
    assert claim is not None
    open_trial(stored, claim, "dead", 1)
    with store.engine.begin() as connection:
        connection.execute(sa.update(SLOT).where(SLOT.c.owner == "dead").values(lease_until=1.0))
    assert trial_status(read_snapshot(store, "planted"), get_trial(store, 0)) == "interrupted"
    assert "failed as killed" in kill_trial(store, "planted", 0)
    assert get_trial(store, 0).state == State.FAIL
    assert run_worker(stored) == 0
    assert states(store) == {State.COMPLETE: 1, State.FAIL: 1}


def test_killed_trial_whose_worker_gives_it_back_first_is_not_gone_on_with(here: Path, store: Store) -> None:
    stored = create_study(store, here, pruner={"name": "none"}, budget={"trials": 2})
    told: list[str] = []

    def kill_and_leave(event: dict[str, Any]) -> bool:
        if event["event"] == "rung":
            told.append(kill_trial(store, "planted", 0))
        return event["event"] == "rung"

    assert run_worker(stored, kill_and_leave) == 130
    assert "within one rung" in told[0]
    assert run_worker(stored) == 0
    assert get_trial(store, 0).user_attrs[END_REASON] == "killed"
    assert get_trial(store, 0).last_step == 1


def test_kill_refuses_a_trial_that_has_ended_or_is_not_there(here: Path, store: Store) -> None:
    stored = create_study(store, here, budget={"trials": 1})
    assert run_worker(stored) == 0
    assert "trial 0: must be running, interrupted or paused to be killed; in study planted it is complete" in refused(
        store.url, "kill", "0"
    )
    assert "has no trial 7; it has trials 0 to 0" in refused(store.url, "kill", "7")
    assert "no study 'other'" in refused(store.url, "kill", "0", "--study", "other")
