"""How a worker classifies failures, and what each of them costs."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.exc
import sqlalchemy.orm
from optuna.trial import TrialState, create_trial

import hpo.worker.signals
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.errors import CommandFailed, error_summary
from hpo.queue.heartbeat import free_expired_leases, free_leases_of
from hpo.queue.inspect import SlotTable
from hpo.queue.registry import register_study
from hpo.queue.slots import Slots
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import END_REASON, ERROR
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.trial import open_trial
from hpo.worker.worker import Worker
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def store(here: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{here}/executor.db", create=True) as store:
        yield store


def create_study(store: Store, folder: Path, code: str = "", **keys: Any) -> StoredStudy:
    """Register a planted study without baseline and pruning; `code` is appended to its module."""
    path = planted(folder, **{"pruner": {"name": "none"}, "baseline": [], **keys})
    with (folder / "curves.py").open("a") as module:
        module.write(code)
    return register_study(store, load_study(str(path)), None, {})


def work(stored: StoredStudy, pack: int = 1) -> int:
    return Worker(stored, Path("runs"), pack, lambda event: None).work()


# pydantic does not turn ZeroDivisionError into a ValidationError, as any error that a user's class may raise.
ODD = """
from pydantic import field_validator


class Odd(Config):
    @field_validator("x")
    @classmethod
    def check(cls, x):
        return x / 0 if 0.2 < x < 0.3 else x


class Fussy:
    def __init__(self, configs):
        self.lanes = {}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane, config):
        if config.x == 0.7:
            raise RuntimeError("not this one")
        self.lanes[lane] = iter(train(config))

    def stop(self, lane):
        del self.lanes[lane]

    def save(self, lane, folder): ...

    def resume(self, lane, folder):
        raise ValueError("nothing was saved")

    def __iter__(self):
        while self.lanes:
            found = {}
            for lane in list(self.lanes):
                try:
                    rung, value = next(self.lanes[lane])
                except StopIteration:
                    del self.lanes[lane]
                    continue
                found[lane] = {"rung": rung, "val_loss": value}
            if found:
                yield rung, found
"""
POINTS = {"space": {"x": {"choices": [0.1, 0.35, 0.5, 0.7, 0.9]}}, "sampler": {"name": "grid"}, "budget": {"trials": 5}}


@pytest.mark.parametrize("pack", [1, 2, 5])
def test_failure_to_configure_is_of_that_trial_alone(store: Store, here: Path, pack: int) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}}
    stored = create_study(store, here, ODD, config="curves:Odd", **POINTS | {"space": space})
    assert work(stored, pack) == 0
    snapshot = read_snapshot(store, "planted")
    bad = [t for t in snapshot.trials if t.state == State.FAIL]
    assert len(bad) == 1
    assert "ZeroDivisionError" in bad[0].user_attrs[ERROR]
    values = {t.values[0] for t in snapshot.trials if t.state == State.COMPLETE}
    assert values == {1.0 + x for x in (0.0, 0.5, 0.75, 1.0)}


@pytest.mark.parametrize("pack", [1, 2, 5])
def test_failure_to_start_is_of_that_trial_alone(store: Store, here: Path, pack: int) -> None:
    stored = create_study(store, here, ODD, train="curves:Fussy", **POINTS)
    assert work(stored, pack) == 0
    snapshot = read_snapshot(store, "planted")
    assert {t.values[0] for t in snapshot.trials if t.state == State.COMPLETE} == {
        1.0 + x for x in (0.1, 0.35, 0.5, 0.9)
    }
    assert ["not this one" in t.user_attrs[ERROR] for t in snapshot.trials if t.state == State.FAIL] == [True]


def test_trial_that_lost_its_worker_before_its_parameters_is_suggested_by_a_new_process(
    store: Store, here: Path
) -> None:
    stored = create_study(store, here, budget={"trials": 1}, sampler={"name": "random"})
    claim = stored.slots.claim("gone", 60)
    assert claim is not None
    assert open_trial(stored, claim, "gone", 1).params == {}
    free_leases_of(store, "gone")
    with open_store(store.url) as fresh:  # a cache without trials
        again = register_study(fresh, load_study(str(here / "planted.yaml")), None, {})
        assert work(again) == 0
    assert [t.state for t in read_snapshot(store, "planted").trials] == [State.COMPLETE]


def test_lost_answer_to_a_commit_makes_a_trial_once(store: Store, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna retries inside its own method."""
    stored = create_study(store, here, budget={"trials": 2})
    commit, broken = sqlalchemy.orm.Session.commit, []

    def commit_and_break(session: Any) -> None:
        making = any(type(row).__name__ == "TrialModel" for row in session.new) or any(
            type(row).__name__ == "TrialModel" for row in session.identity_map.values()
        )
        commit(session)
        if making and not broken:
            broken.append(1)
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, ConnectionError("connection reset"))

    monkeypatch.setattr(sqlalchemy.orm.Session, "commit", commit_and_break)
    assert work(stored) == 0
    assert broken
    snapshot = read_snapshot(store, "planted")
    assert [(t.state, t.user_attrs.get(ERROR)) for t in snapshot.trials] == [(State.COMPLETE, None)] * 2
    assert [t.user_attrs["slot"] for t in snapshot.trials] == [0, 1]


def test_rung_that_was_reported_before_is_no_progress(store: Store, here: Path) -> None:
    slots = create_study(store, here, budget={"trials": 1}).slots
    for failures in range(3):
        claim = slots.claim(f"owner {failures}", 60)
        assert claim is not None
        assert claim.failures == failures
        assert slots.renew_at_rung(claim, f"owner {failures}", 60, 1) == ""
        free_leases_of(store, f"owner {failures}")


def test_lease_that_expired_after_the_given_time_is_not_freed(store: Store, here: Path) -> None:
    slots = create_study(store, here, budget={"trials": 1}).slots
    before = slots.now()
    assert slots.claim("frozen with the server", 0.01)
    time.sleep(0.05)
    assert free_expired_leases(store, before=before) == []
    assert [lease.slot for lease in free_expired_leases(store)] == [0]


def test_trial_whose_workers_end_five_times_without_a_rung_fails(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 2})
    for i in range(5):
        assert stored.slots.claim(f"owner {i}", 60)
        free_leases_of(store, f"owner {i}")
    assert work(stored) == 0
    snapshot = read_snapshot(store, "planted")
    assert [(t.state, t.user_attrs[END_REASON]) for t in snapshot.trials] == [
        (State.FAIL, "lost"),
        (State.COMPLETE, "complete"),
    ]
    assert "5 attempts in a row ended without a new rung" in snapshot.trials[0].user_attrs[ERROR]


def test_worker_exits_with_its_signal_though_requeueing_takes_longer_than_the_grace_period(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.worker.signals, "GRACE_S", 0.3)
    stored = create_study(store, here, budget={"trials": 3})
    worker = Worker(stored, Path("runs"), 3, lambda event: None)
    worker.listener = lambda event: worker.signals.request_stop(signal.SIGTERM) if event["event"] == "rung" else None
    release = stored.slots.release

    def slowly(*arguments: Any, **keys: Any) -> bool:
        time.sleep(0.4)
        return release(*arguments, **keys)

    monkeypatch.setattr(stored.slots, "release", slowly)
    assert worker.work() == 143
    assert stored.slots.counts() == {"free": 3, "leased": 0, "done": 0, "expired": 0}


def test_quarantined_worker_exits_when_others_have_ended_the_study(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.worker.PROBE_S", 0.05)
    (here / "runs").write_text("a file, so that no folder of a run can be created")
    stored = create_study(store, here, budget={"trials": 1})
    other = Slots(store, stored.optuna._study_id)

    def end_elsewhere(event: dict[str, Any]) -> None:
        if "quarantined" in event.get("text", ""):
            claim = other.claim("elsewhere", 60)
            assert claim is not None
            assert claim.failures == 0, "a trial cannot cause a full disk"
            other.done(claim, "elsewhere")

    assert Worker(stored, Path("runs"), 1, end_elsewhere).work() == 0
    assert [word for _, word, _ in stored.slots.attempts(0)] == ["disk", "complete"]


def test_trial_of_another_program_in_our_study_is_not_counted(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 2})
    store.optuna.create_new_trial(stored.optuna._study_id, create_trial(state=TrialState.WAITING))
    assert trial_counts(read_snapshot(store, "planted"))["waiting"] == 2
    assert work(stored) == 0
    assert trial_counts(read_snapshot(store, "planted")) == {
        "complete": 2, "pruned": 0, "failed": 0, "running": 0, "waiting": 0
    }  # fmt: skip


def test_slots_of_a_deleted_study_are_not_those_of_the_next(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 3})
    assert work(stored) == 0
    store.optuna.delete_study(stored.optuna._study_id)
    again = register_study(store, load_study(str(here / "planted.yaml")), None, {})
    assert again.slots.counts() == {"free": 3, "leased": 0, "done": 0, "expired": 0}
    with store.engine.begin() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(SLOT)).scalar() == 3


def test_first_line_of_an_error_is_shown_and_each_attempt_keeps_its_whole_traceback(store: Store, here: Path) -> None:
    failing = """

def failing(config):
    import pathlib

    if not pathlib.Path("tried").exists():
        pathlib.Path("tried").touch()
        raise RuntimeError("CUDA error: device-side assert triggered\\nCompile with `TORCH_USE_CUDA_DSA`")
    raise ValueError("boom\\n" + "\\n".join(f"line {i}" for i in range(60)))
    yield
"""
    stored = create_study(store, here, failing, train="curves:failing", budget={"trials": 1})
    events: list[dict[str, Any]] = []
    assert Worker(stored, Path("runs"), 1, events.append).work() == 0
    assert [event["error"] for event in events if event["event"] == "error"] == ["ValueError: boom"]
    texts = [event.text for event in SlotTable(store, stored.optuna._study_id).events()]
    assert {"RuntimeError: CUDA error: device-side assert triggered", "ValueError: boom"} <= set(texts)
    log = (here / "runs" / "planted" / "trials" / "0000" / "stderr.log").read_text()
    for part in ("attempt 1:\nTraceback", "Compile with", "attempt 2:\nTraceback", "line 0\n", "line 59\n"):
        assert part in log
    trial = stored.optuna.get_trials()[0]
    assert error_summary(trial.user_attrs[ERROR]) == "ValueError: boom"


def test_command_that_ends_while_its_worker_is_stopping_has_not_failed(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 1})
    executor = (worker := Worker(stored, Path("runs"), 1, lambda event: None)).executor
    for signal_number, reason, failures in ((None, "signal", 1), (signal.SIGTERM, "preempted", 1)):
        worker.signals.signal = signal_number
        assert executor.claim_trial(1)
        executor.handle_failure(CommandFailed("the command was ended by SIGTERM", by_signal=True), executor.trials)
        assert read_snapshot(store, "planted").events[0].event_type == reason
        claim = stored.slots.claim("looker", 60)
        assert claim is not None
        assert claim.failures == failures  # the second end is not counted
        free_leases_of(store, "looker", event_type="interrupted")
