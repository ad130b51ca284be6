"""hpo worker: join a study that is there, from any machine that reaches its storage."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from hpo.config.importer import place
from hpo.console import say
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.queue.registry import StoredStudy, check_data_hash, load_stored_study
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.memory import calibrate_estimate
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.storage.retry import PATIENCE
from hpo.storage.store import open_store
from hpo.study.spec import DEFAULT_TRAIN
from hpo.worker.events import EVENTS, event_printer
from model.config import TrainConfig

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def join_study(storage: str, name: str | None, pack: int, out: Path) -> int:
    """Work on a study until its budget is spent; return the exit status.

    Raises:
        Problem: there is no such study, or the data here are not its own.
        WorkFailed: this machine cannot train the study's baseline.
    """
    # A worker by itself has the whole machine; a launcher divides it up beforehand.
    set_thread_environment(available_cores())
    from hpo.worker.worker import Worker

    with open_store(storage, patience=PATIENCE) as store:
        stored = load_stored_study(store, name)
        if stored.read_state().state != "active":
            say(f"study {stored.study.name} is {stored.read_state().state}; `hpo resume` lets its workers go on")
        preflight(stored, PreparedDatasets())
        stored.raise_protocol()
        launched = os.environ.get(EVENTS) == "json"
        parent = _with_parent() if launched else None
        return Worker(stored, out.absolute(), pack, event_printer(stored.study.rungs), parent).work()


def _with_parent() -> int:
    """Have this process asked to leave when its parent dies, at once and not only at its next rung; return the parent.

    Linux has a call for it; elsewhere the worker looks for its parent at each rung.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return parent


def preflight(stored: StoredStudy, corpora: PreparedDatasets) -> None:
    """Check that this machine has the study's data and can train its baseline: the first two updates are tried.

    Otherwise every trial would fail in the same way. A training function of the user's own is not tried, since a
    call of it may do more than train.

    Raises:
        Problem: the data are others.
        WorkFailed: the baseline's first updates fail, with the cause.
    """
    check_data_hash(stored.optuna, corpora.data_hash(stored.study.base))
    if stored.study.file.train != DEFAULT_TRAIN or not isinstance(stored.study.base, TrainConfig):
        return
    from model.memory.dry_run import dry_run

    config = stored.study.configured(stored.study.file.first_baseline)
    assert isinstance(config, TrainConfig)
    try:
        calibrate_estimate(stored.study, corpora, dry_run(config, **corpora.training_arguments(config)).peak_bytes)
    except (Problem, StorageError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}{place(error)}"
        raise WorkFailed(f"pre-flight: the first two updates of the baseline failed here: {cause}") from None
