"""Classify failures of a training run, and decide when a machine is no longer trusted."""

import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hpo.errors import CommandFailed, Problem, StorageError, Unwritable
from hpo.queue.slots import MAX_FAILURES, MAX_INTERRUPTIONS, Claim
from hpo.runs.run_dir import can_write
from model.errors import is_device_fault, is_out_of_memory

FailureKind = Literal["external", "disk", "device", "oom", "signal", "error"]

MAX_FAILURES_IN_A_ROW = 3  # failures of the device after which a worker is quarantined


def classify_failure(error: BaseException) -> FailureKind:
    """Return the kind of a failure.

    external: a failure of the storage or a mistake of the user. No trial caused it.
    disk: a file of hpo could not be written. An OSError out of the training code is an error of that code, because
        the worker cannot test whether its cause has gone.
    device: a failure of the machine. Another attempt may succeed.
    signal: someone, or the system, has ended a command by a signal. Another attempt may succeed.
    oom, error: a failure of the configuration. Another attempt would fail in the same way.
    """
    if isinstance(error, Unwritable):
        return "disk"
    if isinstance(error, StorageError | Problem):
        return "external"
    if isinstance(error, CommandFailed) and error.by_signal:
        return "signal"
    if is_out_of_memory(error):
        return "oom"
    return "device" if is_device_fault(error) else "error"


def failure_text(error: BaseException) -> str:
    """Return the message of a command that failed, which quotes its output, or the traceback of an exception."""
    if isinstance(error, CommandFailed):
        return str(error)
    return "".join(traceback.format_exception(error))


class Quarantine(NamedTuple):
    """Why a worker claims no trial.

    kind: disk or device. text: the last failure. unwritable: of a disk, the file that could not be written.
    """

    kind: str
    text: str
    unwritable: Unwritable | None = None


class CircuitBreaker:
    """Counts what has failed on this machine since the last trial that finished without a failure.

    n_quarantines: how often the disk was quarantined.
    """

    def __init__(self) -> None:
        self.n_quarantines = self._n_device_failures = 0

    def record_device_failure(self) -> bool:
        """Count a failure of the device; return whether the worker must be quarantined."""
        self._n_device_failures += 1
        return self._n_device_failures >= MAX_FAILURES_IN_A_ROW

    def reset(self) -> None:
        """Set the counts to zero, because a trial finished without a failure."""
        self.n_quarantines = self._n_device_failures = 0


def disk_is_full(error: Unwritable, folder: Path) -> bool:
    """Return whether this machine cannot write a file at all, so that no trial caused the failure.

    A trial's own folder may be the reason, for example if another user owns it. The test therefore writes a file of the
    same size beside the folders of the trials.

    folder: of the study.
    """
    beside = folder / "probe" if error.path.absolute().is_relative_to(folder.absolute()) else error.path
    return not can_write(beside, error.n_bytes)


def is_given_up(claim: Claim) -> bool:
    """Return whether too many attempts at a trial have ended without a new rung."""
    return claim.failures >= MAX_FAILURES or claim.interruptions >= MAX_INTERRUPTIONS


def give_up_reason(claim: Claim, attempts: Sequence[Sequence[Any]]) -> tuple[str, str]:
    """Return the end reason and the message of a trial that is given up.

    attempts: [attempt, event type, owner] of each attempt.
    """
    ends = [str(event_type) for _, event_type, _ in attempts]
    n = max(claim.failures, claim.interruptions)
    counts = ", ".join(f"{n_ends} {event_type}" for event_type, n_ends in Counter(ends[-n:]).items())
    message = f"{n} attempts in a row ended without a new rung ({counts}); "
    if ends[-1:] == ["disk"]:
        return "disk", message + "repair the disk or the folder of the trial, then use hpo retry"
    if claim.failures >= MAX_FAILURES:
        return "lost", message + "the trial may crash its workers"
    return "lost", message + "a rung may take longer than workers run"
