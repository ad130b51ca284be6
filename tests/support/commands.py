"""Scripts as the command of a study, and what is left of their processes."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from hpo.runs.command import CommandRuns
from hpo.runs.command_files import TrialPlace
from hpo.study.command import CommandPlan, Metric, Steps
from hpo.study.command_config import command_config

PATTERN = r"step (?P<step>\d+): train loss (?P<train_loss>\S+) val loss (?P<val_loss>\S+)"


_FOLDER = tempfile.TemporaryDirectory(prefix="hpo-scripts-")


def _file(script: str) -> Path:
    """Write a script to a file, because braces in the words of a command are placeholders."""
    path = Path(_FOLDER.name) / f"{crc32(script.encode()):08x}.py"
    path.write_text(script)
    return path


def plan(script: str, **more: Any) -> CommandPlan:
    """Return the plan of a Python script with 4 rungs of 10 steps, whose words may contain placeholders."""
    given: dict[str, Any] = {"metric": {"pattern": PATTERN}, "steps": {"rungs": 4, "last": 40}, "env": {}} | more
    metric, steps = given["metric"], given["steps"]
    return CommandPlan(
        (sys.executable, str(_file(script)), *given.get("words", ())),
        given["env"],
        Metric(**metric) if metric else None,
        Steps(**steps) if steps else None,
        given.get("objective", "val_loss"),
    )


def config(values: Mapping[str, Any] | None = None, given: CommandPlan | None = None) -> Any:
    """Return the configuration of a command with these values."""
    command, env = (given.command, given.env) if given else ((), {})
    tree: dict[str, Any] = {"lr": 0.5} if values is None else dict(values)
    return command_config(command, env, tree, {})(**tree)


def all_reports(given: CommandPlan, folder: Path, rung: int = 0, **values: Any) -> tuple[list[dict[str, Any]], Any]:
    """Run a command to its end or to its last rung; return the metrics of its rungs, and its failure."""
    runs, rows = CommandRuns(given, [config(values or None, given)]), []
    runs.assign(0, TrialPlace("planted", 7, 1 if rung == 0 else 2, folder, rung))
    try:
        for _, reports in runs:
            for report in reports.values():
                if isinstance(report, Exception):
                    return rows, report
                rows.append(report)
                if report["rung"] == given.rungs:
                    return rows, runs.finish(0)
    finally:
        runs.close()
    return rows, None


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line contains a text, without this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
