"""Copy the trials of a study from the storage to a tracker, and continue while the study runs.

It reads what workers have stored, so no tracker can slow down or stop a training, and what an interrupted copy has left
out follows with the next one.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot, trial_status
from hpo.config.importer import error_location
from hpo.errors import StorageError
from hpo.runs.run_dir import study_folder
from hpo.storage.engine import Reader
from hpo.storage.studies import study_ids
from hpo.storage.trials import Trial, load_details
from hpo.study.trackers import TrackerName
from hpo.trackers.lock import TrackerLock
from hpo.trackers.runs import ENDED, TrackedRun, has_configuration, tracked_run
from hpo.trackers.tracker import Tracker

POLL_S = 2.0  # seconds between two reads of the study, which take at most a tenth of the time
RETRY_S, LONGEST_RETRY_S = 5.0, 60.0  # pause after an error; it doubles with each one
MOST_FAILURES = 3  # trials in a row that cannot be written, after which a pass ends

# What decides whether a trial has something new: status and last rung.
_Seen = tuple[str, int | None]


class StudyCopier:
    """Copies the trials of one study to one tracker."""

    def __init__(self, reader: Reader, study: str, name: str, out: Path, note: Callable[[str], None]) -> None:
        """name: of the tracker. out: folder of the runs. note: shows a message to the user."""
        self._reader, self._study, self._name, self._out = reader, study, name, out
        self._note, self._last_note = note, ""
        self._tracker: Tracker | None = None
        self._ended: set[int] = set()
        self._seen: dict[int, _Seen] = {}
        self._incomplete: dict[int, _Seen] = {}
        self._lock: TrackerLock | None = None
        self.busy_since: float | None = None  # when the current pass started, by time.monotonic()
        self.left = 0  # trials that the last pass could not write

    def follow(self, finish: threading.Event) -> bool:
        """Copy until the study has ended or `finish` is set; return whether everything is written."""
        retry_s = RETRY_S
        while True:
            last, started_at = finish.is_set(), time.monotonic()
            done, over = self.copy(last)
            if last or (done and over):
                return done
            retry_s = RETRY_S if done else min(LONGEST_RETRY_S, 2 * retry_s)
            finish.wait(max(POLL_S, 9 * (time.monotonic() - started_at)) if done else retry_s)

    def copy(self, last: bool) -> tuple[bool, bool]:
        """Write what is new; return whether everything is written, and whether the study has ended.

        last: whether no other pass follows.
        """
        self.busy_since = time.monotonic()
        try:
            snapshot = read_snapshot(self._reader, self._study)
            if not self._is_mine(snapshot):
                self._say(f"another process writes {snapshot.name} to {self._name}; this one waits until it has ended")
                return True, has_ended(snapshot)
            tracker = self._opened(snapshot)
            folder = study_folder(self._out, snapshot.first_name, snapshot.uid)
            trials = [trial for trial in snapshot.own if self._is_new(snapshot, trial)]
            self.left = len(trials)
            load_details(trials)
            self._write_all(tracker, snapshot, trials, folder, last)
            return self.left == 0, has_ended(snapshot) and self.left == 0
        except Exception as error:  # of the client or of the storage: the next pass may succeed
            self.left = max(1, self.left)
            self._say(_error_text(error))
            return False, False
        finally:
            self.busy_since = None

    def _is_mine(self, snapshot: Snapshot) -> bool:
        if self._lock is None:
            study_id = study_ids(self._reader)[snapshot.name]
            self._lock = TrackerLock(self._reader, study_id, get_args(TrackerName).index(self._name))
        return self._lock.is_held()

    def _opened(self, snapshot: Snapshot) -> Tracker:
        if self._tracker is None:
            tracker = _open_tracker(self._name, snapshot, self._out)
            self._ended = set(tracker.ended())
            self._note(f"writes to {tracker.place}")
            self._tracker = tracker
        return self._tracker

    def _is_new(self, snapshot: Snapshot, trial: Trial) -> bool:
        return trial.number not in self._ended and self._seen.get(trial.number) != _seen(snapshot, trial)

    def _write_all(self, tracker: Tracker, snapshot: Snapshot, trials: list[Trial], folder: Path, last: bool) -> None:
        """Write trials; after some failures in a row, leave the others to the next pass."""
        failures, error = 0, None
        for trial in sorted(trials, key=lambda trial: trial.number):
            if not has_configuration(trial):
                self.left -= 1
                continue
            seen = _seen(snapshot, trial)
            run, is_complete = tracked_run(snapshot, trial, folder)
            waits = not (is_complete or run.has_ended or last) and self._incomplete.get(trial.number) != seen
            try:
                tracker.write(_without_last(run) if waits else run)
            except Exception as raised:
                failures, error = failures + 1, raised
                if failures >= MOST_FAILURES:
                    break
                continue
            failures = 0
            self.left -= 1
            self._incomplete[trial.number] = seen
            if not waits:
                self._seen[trial.number] = seen
            if trial.state in ENDED:
                self._ended.add(trial.number)
        if error is not None:
            self._say(_error_text(error))
        elif self._last_note:
            self._last_note = ""

    def close(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            self._tracker.close()
        if self._lock is not None:
            self._lock.release()

    def _say(self, text: str) -> None:
        """Show a message, once in a row."""
        if text != self._last_note:
            self._note(text)
        self._last_note = text


def _seen(snapshot: Snapshot, trial: Trial) -> _Seen:
    return trial_status(snapshot, trial), trial.last_step


def _without_last(run: TrackedRun) -> TrackedRun:
    """Return a run without its last point, whose other metrics the worker is about to write."""
    return replace(run, curve={step: row for step, row in run.curve.items() if step < run.last_step})


def _error_text(error: Exception) -> str:
    if isinstance(error, StorageError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]:.300}{error_location(error)}"


def _open_tracker(name: str, snapshot: Snapshot, out: Path) -> Tracker:
    """Import the client of a tracker and connect to it."""
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    if name == "mlflow":
        from hpo.trackers.to_mlflow import MlflowTracker

        return MlflowTracker(snapshot.name, snapshot.uid)
    if name == "wandb":
        from hpo.trackers.to_wandb import WandbTracker

        return WandbTracker(folder)
    from hpo.trackers.to_tensorboard import TensorboardTracker

    return TensorboardTracker(folder)
