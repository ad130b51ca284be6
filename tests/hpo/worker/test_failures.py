"""What ends a trial, what only interrupts it, and how often: exceptions of training code, and files that cannot be
written."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.errors import WorkFailed
from hpo.queue.heartbeat import free_leases_of
from hpo.queue.registry import register_study
from hpo.queue.slots import MAX_FAILURES, MAX_INTERRUPTIONS
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import END_REASON, ERROR, STARTED
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import ROOT, hpo
from tests.support.disk import small_disk
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

# A training function that does something else where x is 0.5, the value of the second grid point
RAISES = """
import argparse, asyncio, errno, os, sys, subprocess


def raising(config):
    if config.x == 0.5:
        {code}
    yield from train(config)


class Saving:
    def __init__(self, configs):
        self.lanes = {{}}
        for lane, config in enumerate(configs):
            self.start(lane, config)

    def start(self, lane, config):
        self.lanes[lane] = config, train(config)

    def stop(self, lane):
        del self.lanes[lane]

    def save(self, lane, folder):
        if self.lanes[lane][0].x == 0.5:
            {code}

    def resume(self, lane, folder):
        raise ValueError("nothing was saved")

    def __iter__(self):
        while self.lanes:
            yield 0, {{lane: dict(zip(("rung", "val_loss"), next(runs))) for lane, (_, runs) in self.lanes.items()}}
"""
GRID = {"space": {"x": {"choices": [0.1, 0.5, 0.9]}}, "sampler": {"name": "grid"}, "budget": {"trials": 3}}


@pytest.fixture
def store(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("hpo.worker.executor.PAUSE_S", 0.0)
    monkeypatch.setattr("hpo.worker.worker.PROBE_S", 0.02)
    with open_store(f"sqlite:///{here}/failures.db", create=True) as store:
        yield store


def create_study(store: Store, folder: Path, code: str = "", **keys: Any) -> StoredStudy:
    path = planted(folder, **{"pruner": {"name": "none"}, "baseline": [], **GRID, **keys})
    with (folder / "curves.py").open("a") as module:
        module.write(code)
    return register_study(store, load_study(str(path)), None, {})


def work(stored: StoredStudy, pack: int = 1, out: str = "runs") -> int:
    return Worker(stored, Path(out), pack, lambda event: None).work()


def ends(store: Store) -> list[tuple[Any, str]]:
    return [(t.params.get("x"), t.user_attrs[END_REASON]) for t in read_snapshot(store, "planted").trials]


RAISED = {
    "raise PermissionError(13, 'Permission denied', '/etc/shadow')": "PermissionError",
    "raise OSError(30, 'Read-only file system')": "OSError: [Errno 30]",
    "raise OSError(errno.ENOSPC, 'No space left on device')": "OSError: [Errno 28]",
    "sys.exit(2)": "SystemExit: 2",
    "argparse.ArgumentParser().parse_args(['--no-such-option'])": "SystemExit: 2",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise asyncio.CancelledError": "CancelledError",
    "raise GeneratorExit": "GeneratorExit",
}


@pytest.mark.parametrize(("code", "pack"), [(code, (1, 3)[n % 2]) for n, code in enumerate(RAISED)])
def test_whatever_training_code_raises_is_the_error_of_its_trial_alone(
    store: Store, here: Path, code: str, pack: int
) -> None:
    stored = create_study(store, here, RAISES.format(code=code), train="curves:raising")
    assert work(stored, pack) == 0
    assert sorted(ends(store)) == [(0.1, "complete"), (0.5, "error"), (0.9, "complete")]
    failed = next(t for t in read_snapshot(store, "planted").trials if t.state == State.FAIL)
    text = (here / f"runs/planted/trials/{failed.number:04d}/stderr.log").read_text()
    assert text.startswith("attempt 1:\nTraceback")
    assert 'curves.py", line' in text
    for shown in (text, failed.user_attrs[ERROR]):
        assert RAISED[code] in shown
    assert stored.slots.attempts(failed.user_attrs["slot"]) == [[1, "error", failed.user_attrs["worker"]]]


@pytest.mark.parametrize("code", ["raise PermissionError(13, 'Permission denied', '/etc/shadow')", "sys.exit('no')"])
def test_training_class_that_cannot_save_elsewhere_is_the_error_of_its_trial(
    store: Store, here: Path, code: str
) -> None:
    stored = create_study(store, here, RAISES.format(code=code), train="curves:Saving")
    assert work(stored, 3) == 0
    assert sorted(ends(store)) == [(0.1, "complete"), (0.5, "error"), (0.9, "complete")]


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(3)", "raise KeyboardInterrupt", "import asyncio; raise asyncio.CancelledError"]
)
def test_exit_of_a_configuration_class_is_the_error_of_its_trial(store: Store, here: Path, code: str) -> None:
    odd = f"""
from pydantic import field_validator


class Odd(Config):
    @field_validator("x")
    @classmethod
    def check(cls, x):
        if x == 0.25:
            {code}
        return x
"""
    stored = create_study(
        store, here, odd, config="curves:Odd", space={"x": {"low": 0.0, "high": 1.0}}, budget={"trials": 5}
    )
    assert work(stored) == 0
    assert sorted(reason for _, reason in ends(store)) == ["complete"] * 4 + ["error"]


def test_signal_still_interrupts_training_code_that_catches_every_exception(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.signals.GRACE_S", 0.1)
    code = """
import os, signal, time


def stubborn(config):
    yield 1, 1.0
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except Exception:
        yield 2, 1.0
"""
    stored = create_study(store, here, code, train="curves:stubborn", budget={"trials": 1})
    assert work(stored) == 143
    assert [word for _, word, _ in stored.slots.attempts(0)] == ["preempted"]


@pytest.mark.parametrize("pack", [1, 3])
def test_trial_folder_that_cannot_be_written_costs_its_trial_and_no_other(store: Store, here: Path, pack: int) -> None:
    stored = create_study(store, here)
    (here / "runs/planted/trials").mkdir(parents=True)
    (here / "runs/planted/trials/0001").write_text("a file in place of the folder")
    events: list[str] = []
    worker = Worker(stored, here / "runs", pack, lambda event: events.append(str(event.get("text"))))
    assert worker.work() == 0
    assert [reason for _, reason in ends(store)] == ["complete", "disk", "complete"]
    assert [word for _, word, _ in stored.slots.attempts(1)] == ["disk"] * (MAX_FAILURES + 1)
    assert not [text for text in events if "quarantined" in text or "writable again" in text]
    error = read_snapshot(store, "planted").trials[1].user_attrs[ERROR]
    assert error.startswith("5 attempts in a row ended without a new rung (5 disk); repair")


def test_disk_that_fills_again_and_again_ends_the_worker_and_costs_no_trial(store: Store, here: Path) -> None:
    stored = create_study(store, here)
    with small_disk(here / "small", "64k") as disk:
        quarantines: list[str] = []

        def fill_or_free(event: dict[str, Any]) -> None:
            if event.get("text", "").startswith("quarantined"):
                quarantines.append(event["text"])
                (disk / "ballast").unlink()
            elif event.get("text", "").startswith("released") or event["event"] == "joined":
                with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass

        with pytest.raises(WorkFailed, match="No space left on device, 5 times although there was space in between"):
            Worker(stored, disk, 1, fill_or_free).work()
    assert len(quarantines) == 6
    assert stored.slots.counts() == {"free": 3, "leased": 0, "done": 0, "expired": 0}


def test_quarantined_worker_ends_when_the_hours_are_over(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"hours": 1}, sampler={"name": "random"})
    (here / "runs").write_text("a file, so that no folder of a run can be created")
    worker = Worker(stored, here / "runs", 1, lambda event: None)

    def end_the_hour(event: dict[str, Any]) -> None:
        if "quarantined" in event.get("text", ""):
            stored.optuna.set_user_attr(STARTED, stored.slots.now() - 3600)

    worker.listener = end_the_hour
    with pytest.raises(WorkFailed, match="the budget is spent, and interrupted trials cannot be continued"):
        worker.work()


def test_trial_that_is_interrupted_again_and_again_without_a_rung_fails(store: Store, here: Path) -> None:
    stored = create_study(store, here)
    for n in range(MAX_INTERRUPTIONS):
        claim = stored.slots.claim("owner", 60)
        assert claim is not None
        assert (claim.slot, claim.interruptions, claim.failures) == (0, n, 0)
        stored.slots.release(claim, "owner", "preempted")
    assert work(stored) == 0
    assert [reason for _, reason in ends(store)] == ["lost", "complete", "complete"]
    error = read_snapshot(store, "planted").trials[0].user_attrs[ERROR]
    assert error.startswith("20 attempts in a row ended without a new rung (20 preempted)")


def test_new_rung_sets_the_count_of_interruptions_to_zero(store: Store, here: Path) -> None:
    stored = create_study(store, here)
    worker = Worker(stored, Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: worker.signals.request_stop(signal.SIGTERM) if event["event"] == "rung" else None
    for _ in range(3):
        claim = stored.slots.claim("owner", 60)
        assert claim is not None
        free_leases_of(store, "owner")
    assert stored.slots.stalled() == {0: 3}
    assert worker.work() == 143
    claim = stored.slots.claim("owner", 60)
    assert claim is not None
    assert (claim.slot, claim.failures, claim.interruptions) == (0, 0, 1)


def test_launch_ends_with_status_1_if_a_trial_was_given_up_because_of_the_disk(here: Path) -> None:
    with open_store(f"sqlite:///{here}/runs/hpo.db", create=True) as store:
        create_study(store, here)
    patch = "import sys\nif 'worker' in sys.orig_argv:\n    import hpo.worker.executor as e\n    e.PAUSE_S = 0.0\n"
    (here / "sitecustomize.py").write_text(patch)
    (here / "runs/planted/trials").mkdir(parents=True)
    (here / "runs/planted/trials/0001").write_text("a file in place of the folder")
    done = hpo("launch", "--study", "planted.yaml", cwd=here, status=1, PYTHONPATH=f"{here}:{ROOT}")
    assert "trials were given up, because their files could not be written: 1" in done.stderr
    assert "2 complete" in done.stderr
    again = hpo("launch", "--study", "planted", cwd=here, PYTHONPATH=f"{here}:{ROOT}")
    assert "given up" not in again.stderr


TAIL = """
import time


def tailed(config):
    try:
        yield from train(config)
        {code}
    finally:
        open(f"closed-{{config.x}}", "w").close()
"""


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("open(f'after-{config.x}', 'w').close()", ""),
        ("raise RuntimeError('too late')", "the training function failed after its last rung: RuntimeError: too late"),
        ("raise SystemExit(4)", "the training function failed after its last rung: SystemExit: 4"),
    ],
)
def test_code_after_the_last_yield_runs_and_changes_no_result(store: Store, here: Path, code: str, note: str) -> None:
    stored = create_study(store, here, TAIL.format(code=code), train="curves:tailed")
    assert work(stored) == 0
    assert [reason for _, reason in ends(store)] == ["complete"] * 3
    assert sorted(t.values[0] for t in read_snapshot(store, "planted").trials) == [1.1, 1.5, 1.9]
    notes = [event.text or "" for event in read_snapshot(store, "planted").events if event.event_type == "rungs"]
    assert len(notes) == (3 if note else 0)
    assert all(note in text for text in notes)
    assert len(list(here.glob("after-*"))) == (0 if note else 3)
    assert len(list(here.glob("closed-*"))) == 3


def test_code_after_the_last_yield_is_bounded_by_the_time_limit(store: Store, here: Path) -> None:
    stored = create_study(
        store, here, TAIL.format(code="time.sleep(60)"), train="curves:tailed", limits={"seconds": 1.5}
    )
    assert work(stored) == 0
    assert [reason for _, reason in ends(store)] == ["complete"] * 3
    notes = [event.text or "" for event in read_snapshot(store, "planted").events if event.event_type == "rungs"]
    assert len(notes) == 3
    assert all("the code after its last rung was stopped by limits.seconds: 1.5" in text for text in notes)
