"""Run thousands of generated commands in this process, in a folder that is restored after each.

HPO_EXAMPLES is the number of commands (`make generated`: 10,000). A command waits at most 0.2 s for a storage, and its
test fails if it takes longer than 60 s.
"""

import contextlib
import hashlib
import io
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings

from hpo.cli.main import main
from hpo.queue.registry import register_study
from hpo.storage.retry import limit_patience
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from tests.support.command import STUDY, hpo, run_in_process, trivial

EXAMPLES = int(os.environ.get("HPO_EXAMPLES", "200"))
HANGS_S = 60.0


def examples(share: float) -> settings:
    """Return the settings of a test that generates its share of all examples, the same ones each time."""
    checks = list(HealthCheck)
    n = max(1, round(share * EXAMPLES))
    return settings(max_examples=n, deadline=None, suppress_health_check=checks, derandomize=True, database=None)


@dataclass
class CommandResult:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


class Hung(BaseException):
    """A command took too long. `except Exception` does not catch this class."""


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung


@contextlib.contextmanager
def _restored_process() -> Iterator[None]:
    """Restore environment, arguments and signal handlers, which a command changes in its process."""
    signals = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)
    handlers = {n: signal.getsignal(n) for n in signals}
    arguments, environ = sys.argv, dict(os.environ)
    signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, HANGS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for n, handler in handlers.items():
            signal.signal(n, handler)
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environ)


def run_command(folder: Path, *arguments: str) -> CommandResult:
    """Run `hpo` with these arguments. An exception that would show the user a traceback is raised."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")  # as Python configures both
    status: Any = 0
    with _restored_process(), contextlib.chdir(folder), limit_patience(0.2):
        sys.argv = ["hpo", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
            out.flush(), err.flush()
    return CommandResult(int(status), out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


@dataclass
class Workspace:
    """A folder for commands, and a copy from which it is restored."""

    folder: Path
    copy: Path
    before: str = ""

    def state(self) -> str:
        """Return a hash of all files. Of a database it hashes the rows, because readers change the file."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.name.endswith(("-wal", "-shm", ".lock")) or "__pycache__" in path.parts:
                continue
            digest.update(os.fsencode(path))
            if path.is_file():
                digest.update(_content(path))
        return digest.hexdigest()

    def restore(self) -> None:
        if self.state() != self.before:
            shutil.rmtree(self.folder)
            shutil.copytree(self.copy, self.folder, symlinks=True)


def _content(path: Path) -> bytes:
    if path.name != "hpo.db":
        return path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()).encode()


STUDIES = {"trivial": 4, "held": 1, "fresh": 0}  # number of trials: finished, interrupted, not started


def prepare_workspace(parent: Path) -> Workspace:
    """Return a folder with three studies in its storage, a configuration, and other files."""
    folder = parent / "here"
    folder.mkdir()
    trivial(folder)
    hpo("launch", "--study", "trivial.yaml", cwd=folder)
    (folder / "best.yaml").write_text(run_in_process("export", cwd=folder))
    (folder / "broken.yaml").write_text(STUDY.replace("low: 0.0", "low: 2.0"))
    for name in ("my study.yaml", "...yaml"):
        (folder / name).write_text(STUDY)
    (folder / "notes.txt").write_text("a: [b\n")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "other.db").write_bytes(b"not a database" * 100)
    (folder / "hollow.db").touch()
    (folder / "empty").mkdir()
    with contextlib.chdir(folder), open_store("sqlite:///runs/hpo.db") as store:
        register_study(store, load_study(str(trivial(folder, "fresh"))), None, {})
        held = register_study(store, load_study(str(trivial(folder, "held"))), None, {})
        worker = Worker(held, Path("runs"), 1, lambda event: None)
        worker.listener = lambda event: worker.signals.request_stop(signal.SIGINT) if event["event"] == "rung" else None
        assert worker.work() == 128 + signal.SIGINT
    shutil.copytree(folder, folder.parent / "copy")
    workspace = Workspace(folder, folder.parent / "copy")
    workspace.before = workspace.state()
    return workspace
