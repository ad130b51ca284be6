"""hpo worker: join an existing study, from any machine that can reach its storage."""

import contextlib
import ctypes
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpo.config.importer import error_location
from hpo.console import say
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.queue.compatibility import check_data_hash
from hpo.queue.heartbeat import lease_seconds
from hpo.queue.registry import load_stored_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.memory import dry_run_baseline
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.storage.connections import check_connections
from hpo.storage.file_guard import rescued
from hpo.storage.retry import QUICK
from hpo.storage.store import open_store
from hpo.study.command import placeholders
from hpo.study.command_checks import missing_script
from hpo.study.places import at_places
from hpo.study.spec import DEFAULT_TRAIN, Study
from hpo.worker.arithmetic import settle_arithmetic, settle_pack
from hpo.worker.events import EVENTS, event_printer, event_writer
from model.config import TrainConfig

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def join_study(storage: str, name: str | None, pack: int, out: Path, overrides: Sequence[str] = ()) -> int:
    """Run trials of a study until its budget is spent; return the exit status.

    name: the study, or None for the only study of the storage. pack: number of trials to train side by side, or
    AUTO_PACK.
    out: folder of the runs. overrides: path=value, where the files of the study are on this machine.

    Raises:
        Problem: the study does not exist, the data on this machine differs from the study's data, or this machine
            lacks the device with which the study trains.
        WorkFailed: this machine cannot train the study's baseline.
    """
    # A launcher divides the cores among its workers and sets these variables. A worker alone uses all cores.
    set_thread_environment(available_cores())
    lease_seconds()  # refuses a wrong value before anything is claimed
    from hpo.worker.worker import Worker  # after the variables are set, because torch reads them at its import

    launched = os.environ.get(EVENTS) == "json"
    emit = event_writer() if launched else None
    with open_store(storage, patience=math.inf if launched else QUICK) as store, contextlib.ExitStack() as stack:
        if not launched:  # otherwise the launcher saves the storage
            check_connections(store, 1)
            stack.enter_context(rescued(store.guard, "`hpo worker` again"))
        stored = load_stored_study(store, name)
        stored = replace(stored, study=at_places(stored.study, overrides))
        for note in stored.notes:
            say(note)
        state = stored.read_state().state
        if state != "active":
            say(f"study {stored.study.name} is {state}; `hpo resume` resumes it")
        emit = emit or event_printer(stored.study.rungs)
        stored = settle_arithmetic(stored, emit)
        preflight(stored, PreparedDatasets())
        pack = settle_pack(stored, pack, emit)
        stored.raise_protocol()
        store.patience = math.inf  # from now on an unreachable storage is waited for
        parent = _stop_with_parent() if launched else None
        return Worker(stored, out.absolute(), pack, emit, parent).work()


def _stop_with_parent() -> int:
    """Ask Linux to send SIGTERM to this process when its parent ends; return the parent's process id.

    On other systems the worker checks for its parent at each rung.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return parent


def _check_program(study: Study) -> None:
    """Check that this machine has the program and the script of a command.

    Raises:
        WorkFailed: it lacks one.
    """
    program = (study.file.command or ("",))[0]
    if program and not placeholders([program]) and shutil.which(program) is None:
        raise WorkFailed(f"command: there is no program {program} on this machine; `command -v {program}` must find it")
    if (script := missing_script(study.file)) is not None:
        raise WorkFailed(f"command: no such file in the current folder: {script}; start the worker where the script is")


def preflight(stored: StoredStudy, datasets: PreparedDatasets) -> None:
    """Check that this machine has the study's data and can train the first two updates of its baseline.

    Without this check every trial could fail in the same way. A user's own training function is not called, because a
    call may have other effects than training.

    Raises:
        Problem: the data differs from the study's data.
        WorkFailed: the first updates of the baseline fail; the message contains the cause.
    """
    check_data_hash(stored.optuna, datasets.data_hash(stored.study.base))
    _check_program(stored.study)
    if stored.study.file.train != DEFAULT_TRAIN or not isinstance(stored.study.base, TrainConfig):
        return
    try:
        dry_run_baseline(stored.study, datasets)
    except (Problem, StorageError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}{error_location(error)}"
        raise WorkFailed(f"pre-flight: the first two updates of the baseline failed on this machine: {cause}") from None
