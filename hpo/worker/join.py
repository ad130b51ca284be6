"""hpo worker: join a study that is there, from any machine that reaches its storage."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpo.config.importer import place
from hpo.console import say
from hpo.errors import Problem, WorkFailed
from hpo.launcher.processes import EVENTS
from hpo.launcher.progress import line
from hpo.queue.registry import Registered, check_data, load
from hpo.runs import resources as cores
from hpo.runs.datasets import Corpora
from hpo.runs.memory import learn
from hpo.storage.retry import PATIENCE, StorageError
from hpo.storage.store import connect
from hpo.study.spec import DEFAULT_TRAIN
from model.config import TrainConfig

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def join(storage: str, name: str | None, pack: int, out: Path) -> int:
    """Work on a study until its budget is spent; return the exit status.

    Raises:
        Problem: there is no such study, or the data here are not its own.
        WorkFailed: this machine cannot train the study's baseline.
    """
    # A worker by itself has the whole machine; a launcher divides it up beforehand.
    cores.settle(cores.available())
    from hpo.worker.worker import Worker

    with connect(storage, patience=PATIENCE) as store:
        at = load(store, name)
        if at.now().state != "active":
            say(f"study {at.study.name} is {at.now().state}; `hpo resume` lets its workers go on")
        check(at, Corpora())
        launched = os.environ.get(EVENTS) == "json"
        parent = _with_parent() if launched else None
        return Worker(at, out.absolute(), pack, teller(at.study.rungs), parent).work()


def _with_parent() -> int:
    """Have this process asked to leave when its parent dies, at once and not only at its next rung; return the parent.

    Linux has a call for it; elsewhere the worker looks for its parent at each rung.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return parent


def teller(rungs: int, prefix: str = "") -> Callable[[dict[str, Any]], None]:
    """Return what prints a worker's events: as JSON to a launcher, as lines to a person."""

    def tell(event: dict[str, Any]) -> None:
        if os.environ.get(EVENTS) == "json":
            print(json.dumps(event), flush=True)
        elif text := line(event, rungs):
            print(f"{prefix}{text}", flush=True)

    return tell


def check(at: Registered, corpora: Corpora) -> None:
    """Check that this machine has the study's data and can train its baseline: the first two updates are tried.

    Otherwise every trial would fail in the same way. A training function of the user's own is not tried, since a
    call of it may do more than train.

    Raises:
        Problem: the data are others.
        WorkFailed: the baseline's first updates fail, with the cause.
    """
    check_data(at.optuna, corpora.hash(at.study.base))
    if at.study.file.train != DEFAULT_TRAIN or not isinstance(at.study.base, TrainConfig):
        return
    from model.memory.dry_run import rehearse

    config = at.study.configured(next(iter(at.study.file.baseline), {}))
    assert isinstance(config, TrainConfig)
    try:
        learn(at.study, corpora, rehearse(config, **corpora.given(config)).peak_bytes)
    except (Problem, StorageError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}{place(error)}"
        raise WorkFailed(f"pre-flight: the first two updates of the baseline failed here: {cause}") from None
