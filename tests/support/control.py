"""A planted study, processes that run it, and the commands that a user types meanwhile."""

import contextlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo.analysis.snapshot import read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.schema import EVENT
from hpo.storage.store import Store
from hpo.storage.trials import State, Trial
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import COMMANDS
from tests.support.planted import planted_study as planted
from tests.support.tiny import tiny

# A study that runs long enough for commands to arrive in the middle of it
LONG: dict[str, Any] = {"rungs": 12, "base": {"rungs": 12, "pause": 0.12}, "pruner": {"name": "none"}}


def run_control(url: str, *arguments: str) -> str:
    """Run a command in another folder than the study's; return its messages, and check that it prints no data."""
    messages, data = io.StringIO(), io.StringIO()
    with contextlib.chdir("/"), contextlib.redirect_stderr(messages), contextlib.redirect_stdout(data):
        COMMANDS.main([*arguments, "--storage", url], standalone_mode=False)
    assert data.getvalue() == ""
    return messages.getvalue()


def refused(url: str, *arguments: str) -> str:
    """Run a command that must fail with status 2; return its message."""
    with pytest.raises(Problem) as error:
        run_control(url, *arguments)
    assert error.value.status == 2
    return str(error.value)


@contextlib.contextmanager
def working(url: str, command: str = "worker", *more: str, n: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes of a command on the planted study."""
    command_line = [sys.executable, "-m", "hpo", command, "--study", "planted", *more]
    env = {**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command_line, env=env, **pipes) for _ in range(n)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Wait for processes; return exit status and standard error of each."""
    errors = [process.communicate(timeout=60)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def create_study(store: Store, here: Path, **keys: Any) -> StoredStudy:
    return register_study(store, load_study(str(planted(here, **keys))), None, {})


def register_gpt(store: Store, path: Path) -> StoredStudy:
    """Register the GPT study of a file, with its prepared data."""
    from hpo.runs.datasets import describe_data

    study = load_study(str(path))
    return register_study(store, study, *describe_data(study.base))


def run_worker(stored: StoredStudy, until_event: Callable[[dict[str, Any]], bool] = lambda event: False) -> int:
    """Run a study in this process; request a stop at the first event for which `until_event` returns true."""
    worker = Worker(stored, Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: worker.signals.request_stop(2) if until_event(event) else None
    return worker.work()


def interrupt_trial(stored: StoredStudy) -> None:
    """Start a trial and interrupt it, so that it is requeued."""
    assert run_worker(stored, lambda event: event["event"] == "rung") == 130


def get_trial(store: Store, number: int) -> Trial:
    return read_snapshot(store, "planted").trials[number]


def states(store: Store, name: str = "planted") -> Counter[State]:
    return Counter(trial.state for trial in read_snapshot(store, name).trials)


def rungs(store: Store) -> int:
    """Return the number of reported values."""
    return sum(trial.last_step or 0 for trial in read_snapshot(store, "planted").trials)


def events(store: Store, *event_types: str) -> list[tuple[str, str | None]]:
    with store.engine.begin() as connection:
        rows = connection.execute(sa.select(EVENT.c.event_type, EVENT.c.text).order_by(EVENT.c.id)).all()
    return [(row.event_type, row.text) for row in rows if row.event_type in event_types]


def gpt(here: Path, name: str, low: float, base: dict[str, Any], **keys: Any) -> Path:
    tree = {
        "base": tiny({"optimizer.lr": 3e-3, **base}).model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": low, "high": 1e-2, "log": True}},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "budget": {"trials": 4},
    }
    path = here / f"{name}.yaml"
    path.write_text(dump_yaml({**tree, **keys}))
    return path
