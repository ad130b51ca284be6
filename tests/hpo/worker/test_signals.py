"""Signals to a worker: the first stops it at the end of its rung, the second at once, and no lease is left behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo.analysis.snapshot import read_snapshot
from hpo.queue.registry import register_study
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from hpo.worker.events import Event
from hpo.worker.signals import SecondSignal, SignalHandler
from hpo.worker.worker import Worker
from tests.support.control import events
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


def stopped(store: Store, path: Path, listener: Callable[[Worker, Event], None]) -> Worker:
    """Run a worker until a signal stops it. The listener may send the signal."""
    worker = Worker(register_study(store, load_study(str(path)), None, {}), Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: listener(worker, event)
    assert worker.work() == 128 + signal.SIGINT
    return worker


def send(n: int) -> None:
    for _ in range(n):
        os.kill(os.getpid(), signal.SIGINT)


def leased(store: Store) -> int:
    return int(read_snapshot(store, "planted").slots["leased"])


def test_signal_that_follows_the_end_of_the_launcher_is_the_first() -> None:
    with SignalHandler() as signals:
        signals.request_stop(signal.SIGTERM)  # a closed pipe
        send(1)
        assert signals.signal == signal.SIGTERM
        with pytest.raises(SecondSignal):
            send(1)


def test_warning_of_a_scheduler_leaves_a_rung_the_time_that_the_scheduler_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPO_WARNING_GRACE_S", "300")
    for number, seconds in ((signal.SIGUSR1, 300.0), (signal.SIGTERM, 10.0)):
        with SignalHandler() as signals:
            os.kill(os.getpid(), number)
            assert signals.signal == number
            assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(seconds, abs=1.0)


def test_two_signals_while_a_trial_is_created_leave_no_lease(here: Path) -> None:
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:

        def interrupt(_: Any, __: Any, statement: str, *___: Any) -> None:
            if statement.startswith("INSERT INTO trials"):
                send(2)

        sa.event.listen(store.engine, "before_cursor_execute", interrupt)
        stopped(store, planted(here), lambda worker, event: None)
        assert leased(store) == 0


def test_signals_while_a_trial_is_requeued_leave_no_lease(here: Path) -> None:
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:
        written: list[str] = []

        def interrupt(_: Any, __: Any, statement: str, *___: Any) -> None:
            if written and statement.startswith("UPDATE"):
                written.append(statement)
                send(2)

        def stop(_: Worker, event: Event) -> None:
            if event["event"] == "rung" and not written:
                written.append("the first rung")
                send(1)

        sa.event.listen(store.engine, "before_cursor_execute", interrupt)
        stopped(store, planted(here), stop)
        assert len(written) > 1
        assert leased(store) == 0


def test_lease_of_a_claim_whose_answer_was_lost_is_freed_when_the_worker_ends(here: Path) -> None:
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_study(store, load_study(str(planted(here))), None, {})
        worker = Worker(stored, Path("runs"), 1, lambda event: None)
        assert stored.slots.claim(worker.owner, 60.0)
        assert worker.work(max_trials=1) == 0
        assert leased(store) == 0
        assert events(store, "lost", "interrupted", "active") == [("interrupted", None)]
