"""The worker after interruptions: killed, without its lease, without an answer of the storage."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from optuna.trial import TrialState

import hpo.worker.reporter
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.errors import StorageError
from hpo.queue.heartbeat import free_expired_leases, free_leases_of
from hpo.queue.registry import register_study
from hpo.queue.slots import Claim
from hpo.runs.metrics import read_metrics
from hpo.storage.attributes import END_REASON, STARTED
from hpo.storage.store import open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.control import register_gpt
from tests.support.planted import gpt_study
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


def test_interrupted_trial_resumes_as_the_same_trial_with_the_same_curve(here: Path) -> None:
    path = gpt_study(here / "broken.yaml", budget={"trials": 2})
    whole, parts = f"sqlite:///{here}/whole.db", f"sqlite:///{here}/parts.db"
    with open_store(whole, create=True) as store:
        Worker(register_gpt(store, path), Path("whole"), 1, lambda event: None).work()
    with open_store(parts, create=True) as store:
        stored = register_gpt(store, path)
        worker = Worker(stored, Path("parts"), 1, lambda event: None)

        def stop_at_first_rung(event: dict[str, Any]) -> None:
            if event["event"] == "rung":
                worker.signals.request_stop(2)

        worker.listener = stop_at_first_rung
        assert worker.work() == 130
        assert trial_counts(read_snapshot(store, "broken")) == {
            "complete": 0,
            "pruned": 0,
            "failed": 0,
            "running": 0,
            "waiting": 2,
        }
        assert stored.slots.counts()["leased"] == 0
        assert Worker(stored, Path("parts"), 1, lambda event: None).work() == 0
        assert len(read_snapshot(store, "broken").trials) == 2
    clock = ("seconds", "tokens_per_second")
    for number in ("0000", "0001"):
        curves = [
            [
                {k: v for k, v in line.items() if k not in clock}
                for line in read_metrics(here / out / "broken/trials" / number / "metrics.jsonl")
            ]
            for out in ("whole", "parts")
        ]
        assert len(curves[0]) == 3
        assert curves[0] == curves[1]


def test_trial_of_a_killed_worker_is_resumed_when_its_lease_expires(here: Path, storage_url: str) -> None:
    path = planted(here, budget={"trials": 3}, pruner={"name": "none"}, base={"pause": 0.05})
    with open_store(storage_url, create=True) as store:
        register_study(store, load_study(str(path)), None, {})
        stored = register_study(store, load_study(str(path)), None, {})
        env = {**os.environ, "HPO_STORAGE": storage_url, "HPO_LEASE_S": "2"}
        command = [sys.executable, "-c", KILLED]
        assert subprocess.run(command, env=env, timeout=60, check=False).returncode == -9
        assert stored.slots.counts()["leased"] == 1
        deadline = time.monotonic() + 30
        while not free_expired_leases(store) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot) == {"complete": 3, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
        assert len(snapshot.trials) == 3


@pytest.mark.parametrize("when", ["after the report", "after the last report"])
def test_trial_killed_between_report_and_checkpoint_or_end_has_the_same_curve(here: Path, when: str) -> None:
    path = gpt_study(here / "torn.yaml", budget={"trials": 1})
    whole = f"sqlite:///{here}/whole.db"
    with open_store(whole, create=True) as store:
        Worker(register_gpt(store, path), Path("whole"), 1, lambda event: None).work()
    with open_store(f"sqlite:///{here}/torn.db", create=True) as store:
        stored = register_gpt(store, path)
        worker = Worker(stored, Path("torn"), 1, lambda event: None)

        def die(event: dict[str, Any]) -> None:
            if event["event"] == "rung" and event["rung"] == (2 if when == "after the report" else 3):
                raise KeyboardInterrupt  # like SIGKILL: nothing is saved after it

        worker.listener = die
        with pytest.raises(KeyboardInterrupt):
            worker.work()
        assert Worker(stored, Path("torn"), 1, lambda event: None).work() == 0
        trial = read_snapshot(store, "torn").trials[0]
        assert (trial.state, len(read_snapshot(store, "torn").trials)) == (State.COMPLETE, 1)
    curves = [
        [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in read_metrics(file)]
        for file in (Path("whole/torn/trials/0000/metrics.jsonl"), Path("torn/torn/trials/0000/metrics.jsonl"))
    ]
    assert [row["rung"] for row in curves[0]] == [1, 2, 3]
    assert curves[0] == curves[1]


KILLED = """
import os
from pathlib import Path
from hpo.queue.registry import load_stored_study
from hpo.storage.store import open_store
from hpo.worker.worker import Worker
with open_store(os.environ["HPO_STORAGE"]) as store:
    def die(event):
        if event["event"] == "rung":
            os.kill(os.getpid(), 9)
    Worker(load_stored_study(store, None), Path("runs"), 1, die).work()
"""


def test_worker_that_lost_its_lease_writes_nothing_more_and_takes_other_work(here: Path, storage_url: str) -> None:
    path = planted(here, budget={"trials": 3}, pruner={"name": "none"})
    with open_store(storage_url, create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        events: list[dict[str, Any]] = []
        taken: list[Claim | None] = []
        worker = Worker(stored, Path("runs"), 1, events.append)

        def lose_the_first(event: dict[str, Any]) -> None:
            events.append(event)
            if event["event"] == "rung" and event["trial"] == 0 and not taken:
                free_leases_of(store, worker.owner)
                taken.append(stored.slots.claim("thief", 600))
            elif event["event"] == "complete" and event["trial"] == 2:
                assert taken[0]
                stored.slots.done(taken[0], "thief")  # so that no trial is left to wait for

        worker.listener = lose_the_first
        assert worker.work() == 0
        first = read_snapshot(store, "planted").trials[0]
        assert first.state == State.RUNNING, "the other owner still holds the trial"
        assert list(first.intermediate_values) == [1]
        assert trial_counts(read_snapshot(store, "planted"))["complete"] == 2
        assert [word for _, word, _ in stored.slots.attempts(0)] == ["lost", "complete"]
    assert {"event": "taken", "trial": 0} in events


@pytest.mark.parametrize("write", ["value", "end", "parameter"])
def test_no_write_of_a_lost_attempt_reaches_the_study(here: Path, storage_url: str, write: str) -> None:
    """The lease is lost between its check and the write."""
    path = planted(here, budget={"trials": 1}, pruner={"name": "none"}, baseline=[])
    with open_store(storage_url, create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        worker = Worker(stored, Path("runs"), 1, lambda event: None)
        calls = {
            "value": "set_trial_intermediate_value",
            "end": "set_trial_state_values",
            "parameter": "set_trial_param",
        }
        real = getattr(store.optuna, calls[write])
        taken: list[Claim | None] = []

        def rob(*arguments: Any) -> Any:
            if not taken:
                thread = threading.Thread(target=steal)  # another thread has no fence
                thread.start()
                thread.join()
            return real(*arguments)

        def steal() -> None:
            free_leases_of(store, worker.owner)
            taken.append(stored.slots.claim("thief", 600))

        setattr(store.optuna, calls[write], rob)
        worker.work(max_trials=1)
        found = read_snapshot(store, "planted").trials[0]
        assert taken[0] is not None
        assert found.state == State.RUNNING
        assert len(found.intermediate_values) == {"value": 0, "end": 4, "parameter": 0}[write]
        assert list(found.params) == ([] if write == "parameter" else ["x"])


def test_lost_answer_to_the_creation_of_a_trial_creates_it_once(here: Path, storage_url: str) -> None:
    """The row is committed, but the connection breaks before the worker receives the answer."""
    path = planted(here, budget={"trials": 3}, pruner={"name": "none"})
    with open_store(storage_url, create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        make, broken = store.rdb._create_new_trial, []

        def make_and_break(*arguments: Any) -> Any:
            made = make(*arguments)
            if not broken:
                broken.append(made)
                raise sqlalchemy.exc.OperationalError("INSERT", {}, ConnectionError("connection reset"))
            return made

        store.rdb._create_new_trial = make_and_break  # type: ignore[method-assign]
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        snapshot = read_snapshot(store, "planted")
        assert broken
        assert [t.state for t in snapshot.trials] == [State.COMPLETE] * 3


def test_trial_that_another_program_finished_is_dropped_and_its_pack_continues(here: Path) -> None:
    path = planted(here, budget={"trials": 2}, pruner={"name": "none"})
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})

        def end_the_second(event: dict[str, Any]) -> None:
            if event["event"] == "rung" and (event["trial"], event["rung"]) == (1, 1):
                other = stored.optuna.get_trials(deepcopy=False)[1]
                store.optuna.set_trial_state_values(other._trial_id, TrialState.PRUNED)

        assert Worker(stored, Path("runs"), 2, end_the_second).work() == 0
        assert [t.state for t in read_snapshot(store, "planted").trials] == [State.COMPLETE, State.PRUNED]


def test_interrupted_trial_is_finished_though_the_hours_are_over(here: Path) -> None:
    path = planted(here, budget={"hours": 1})
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        worker = Worker(stored, Path("runs"), 1, lambda event: None)

        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "rung":
                worker.signals.request_stop(2)

        worker.listener = stop
        assert worker.work() == 130
        stored.optuna.set_user_attr(STARTED, stored.slots.now() - 3600)
        assert stored.read_state().hours_over
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        assert [t.state for t in read_snapshot(store, "planted").trials] == [State.COMPLETE]


def test_trial_that_diverges_while_the_storage_is_unreachable_has_its_whole_curve(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = planted(here, baseline=[], budget={"trials": 1}, pruner={"name": "none"})
    module = here / "curves.py"
    module.write_text(module.read_text().replace("yield rung, 1.0", "yield rung, float('nan') if rung == 3 else 1.0"))
    monkeypatch.setattr(hpo.worker.reporter, "UNREACHABLE_WAIT_S", 0.1)
    with open_store(f"sqlite:///{here}/w.db", create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        real, calls = store.optuna.set_trial_intermediate_value, []

        def unreachable(*arguments: Any) -> Any:
            calls.append(arguments[1])
            if len(calls) <= 3:  # at each of three rungs
                raise StorageError("unreachable", passing=True)
            return real(*arguments)

        monkeypatch.setattr(store.optuna, "set_trial_intermediate_value", unreachable)
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        found = read_snapshot(store, "planted").trials[0]
        assert found.user_attrs[END_REASON] == "diverged"
        assert list(found.intermediate_values) == [1, 2, 3]
        assert calls == [1, 1, 1, 1, 2, 3], "each rung first writes the unreported values"
