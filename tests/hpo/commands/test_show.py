"""`hpo status` and `hpo show` report the events of a study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.show import show_status, trial_record
from hpo.console import Format
from hpo.queue.heartbeat import free_leases_of
from hpo.queue.registry import register_study
from hpo.storage.attributes import STUDY_STATE
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import have_reported, start_launch, until, worker_processes
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


def test_status_names_what_happened_and_to_whom(
    here: Path, storage_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = planted(here, budget={"trials": 2}, pruner={"name": "none"})
    with open_store(storage_url, create=True) as store:
        stored = register_study(store, load_study(str(path)), None, {})
        worker = Worker(stored, Path("runs"), 1, lambda event: None)
        worker.listener = lambda event: (
            worker.signals.request_stop(signal.SIGTERM) if event["event"] == "rung" else None
        )
        assert worker.work() == 143
        claim = stored.slots.claim("machine:7:abc", 60)
        assert claim is not None
        free_leases_of(store, "machine:7:abc", "worker 1 ended with signal 9:\nlast words")
        stored.optuna.set_user_attr(STUDY_STATE, "paused")
        show_status(store, "planted", Format.table, watch=False)
        told = capsys.readouterr().out
        assert "; paused: `hpo resume` continues the study" in told
        assert "interrupted, the next worker resumes them: trials 0" in told
        assert "events: 1 lost, 1 preempted; the latest:" in told
        assert "lost (trial 0, attempt 2, machine:7): last words" in told
        assert trial_counts(read_snapshot(store, "planted")) == {
            "complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 2
        }  # fmt: skip
        stored.optuna.set_user_attr(STUDY_STATE, "active")
        assert Worker(stored, Path("runs"), 1, lambda event: None).work() == 0
        shown = trial_record(read_snapshot(store, "planted"), 0)
    assert (shown["state"], shown["attempt"]) == ("complete", 3)
    assert shown["interruptions"] == ["attempt 1: preempted", "attempt 2: lost"]


def test_crashed_worker_is_started_again_and_its_trial_continues_at_once(here: Path) -> None:
    path = planted(here, base={"pause": 1.0}, budget={"trials": 5}, pruner={"name": "none"})
    process = start_launch("--study", str(path), "--workers", "2", "--plain")
    assert until(lambda: have_reported(here, 2) and len(worker_processes(here)) == 2, 60)
    before = worker_processes(here)
    os.kill(before[0], signal.SIGKILL)
    assert until(lambda: set(worker_processes(here)) - set(before), 60)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "ended with signal 9; it is restarted" in said
    with open_readonly("runs/hpo.db") as store:
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot)["complete"] == len(snapshot.trials) == 5
        assert [h.event_type for h in snapshot.events] == ["restarted", "lost"], "a function of one's own starts again"
        assert "signal 9" in (snapshot.events[1].text or "")


def test_worker_that_crashes_three_times_in_a_row_is_not_started_again(here: Path) -> None:
    path = planted(here, budget={"trials": 2})
    module = here / "curves.py"
    crash = "\nimport os\nif os.environ.get('HPO_EVENTS'):\n    os.kill(os.getpid(), 9)\n"
    module.write_text(module.read_text() + crash)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "launch", "--study", str(path), "--workers", "1", "--plain"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("it is restarted") == 2
    assert "ended with signal 9, 3 times in a row; it is not restarted" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began > 3, "with a pause that grows in between"
