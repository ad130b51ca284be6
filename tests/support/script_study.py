"""A study `scripts` of a script that logs its starts and its ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.storage.engine import open_readonly
from tests.support.command import environment, until, worker_processes
from tests.support.commands import processes_with

PATTERN = r"step (?P<step>\d+): val loss (?P<val_loss>\S+)"


# Each start of a process is a line of starts.jsonl, and each regular end a line of ends.jsonl.
LOGGED = """
import json, os, sys, time

def log(name, **more):
    line = json.dumps({"trial": int(os.environ["HPO_TRIAL"]), "attempt": int(os.environ["HPO_ATTEMPT"]), **more})
    with open(name, "a") as file:
        file.write(line + "\\n")

def say(step, loss):
    print(f"step {step}: val loss {loss}", flush=True)

log("starts.jsonl", argv=sys.argv[1:], time=time.time(), pid=os.getpid())
"""


def write_study(folder: Path, script: str, **changes: Any) -> None:
    """Write the study `scripts` of a script into a folder."""
    (folder / "train.py").write_text(LOGGED + script)
    tree: dict[str, Any] = {
        "command": [sys.executable, "train.py", "{x}"],
        "metric": {"pattern": PATTERN},
        "steps": {"rungs": 4, "last": 40},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "pruner": "none",
        "budget": {"trials": 4},
    }
    (folder / "scripts.yaml").write_text(dump_yaml(tree | changes))


def read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines that the scripts have written to a file."""
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_study(folder: Path) -> Snapshot:
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        return read_snapshot(store, "scripts")


def cwd_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def launched(folder: Path, *options: str, **env: str) -> "subprocess.Popen[str]":
    """Start a launch of the study in a process."""
    command = [sys.executable, "-m", "hpo", "launch", "--study", "scripts", "--quiet", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(**env), **streams)  # type: ignore[call-overload,no-any-return]


def check_nothing_left(folder: Path) -> None:
    """Check that no process of the scripts of a folder is left."""
    assert until(lambda: not worker_processes(folder), 20)
    assert [pid for pid in processes_with("train.py") if cwd_of(pid) == folder] == []
    assert [pid for pid in processes_with("left-behind") if cwd_of(pid) == folder] == []
