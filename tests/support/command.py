"""Run `hpo` commands in a new process, or in this process if only their output matters."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from hpo.cli.main import app
from hpo.config.yaml import dump_yaml
from hpo.runs.resources import thread_environment
from tests.support.tiny import corpus

ROOT = Path(__file__).parents[2]

COMMANDS = typer.main.get_command(app)

# A training function that returns immediately, and a study of it
MODULE = """
from pydantic import BaseModel


class Config(BaseModel):
    lr: float = 0.1


def train(config):
    for rung in 1, 2, 3:
        yield rung, (config.lr - 0.3) ** 2 + 1 / rung
"""
STUDY = """# Which lr?
train: trivial:train
config: trivial:Config
objective: loss
rungs: 3
space: {lr: {low: 0.0, high: 1.0}}
budget: {trials: 4}
"""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command that runs outside of the repository."""
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    return os.environ | {"PYTHONPATH": str(ROOT)} | plain | thread_environment(1) | more


def hpo(*arguments: str, cwd: Path, status: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process; check its exit status unless it is None, and that it shows no traceback."""
    command = [sys.executable, "-m", "hpo", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=300)
    assert status in (None, done.returncode), f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_in_process(*arguments: str, cwd: Path) -> str:
    """Run a command in this process; return its output. Exceptions are not caught."""
    out = io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out):
        COMMANDS.main(list(arguments), standalone_mode=False)
    return out.getvalue()


def start_launch(*arguments: str) -> subprocess.Popen[str]:
    """Start `hpo launch` in the current folder."""
    command = [sys.executable, "-m", "hpo", "launch", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(true: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Wait until a function returns a true value; return whether it did so in time."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(found)


def have_reported(folder: Path, n: int) -> bool:
    """Return whether n trials of the study `planted` have reported a value."""
    return len(list(folder.glob("runs/planted/trials/*/metrics.jsonl"))) >= n


def worker_processes(folder: Path) -> list[int]:
    """Return the ids of the processes that run `hpo worker` in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The fork server writes the name of the command to comm, and cannot change cmdline.
            words = (entry / "cmdline").read_bytes().split(b"\0") + (entry / "comm").read_bytes().split()
            if b"worker" in words and b"hpo" in words and Path(os.readlink(entry / "cwd")) == folder:
                found.append(int(entry.name))
    return sorted(found)


def trivial(folder: Path, name: str = "trivial") -> Path:
    """Write the trivial study and its module into a folder; return the study's path."""
    (folder / "trivial.py").write_text(MODULE)
    path = folder / f"{name}.yaml"
    path.write_text(STUDY)
    return path


def finished_study(folder: Path) -> Path:
    """Run the trivial study to its end in a folder; return the folder."""
    trivial(folder)
    hpo("launch", "--study", "trivial.yaml", cwd=folder)
    return folder


def write_base(folder: Path, name: str, tree: dict[str, Any]) -> None:
    """Write a base configuration on the tiny text for commands that run in `folder`."""
    (folder / "studies" / "bases").mkdir(parents=True)
    text = dump_yaml(tree | {"data": {"name": "text", "path": corpus()}})
    (folder / "studies" / "bases" / f"{name}.yaml").write_text(text)
