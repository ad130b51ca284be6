"""Describe the software and machine on which the last bits of a run's losses depend."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo.runs.resources import threads_in_use
from model.config import ENGINE

PACKAGES = ("hpo", "torch", "optuna", "numpy", "tokenizers")


def describe_machine() -> dict[str, Any]:
    """Return the versions, the engine, the number of threads and the git commit that a run uses.

    engine: version of the arithmetic of the GPT trainer.
    """
    versions, commit = _software()
    return {"versions": dict(versions), "engine": ENGINE, "threads": threads_in_use(), "git_commit": commit}


@functools.cache  # a process keeps the modules that it has imported, even if the files change
def _software() -> tuple[dict[str, str], str | None]:
    """Return the versions and the git commit of this process, which take 30 ms to find."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return versions, git_commit(Path(__file__).parents[2])


def git_commit(folder: Path) -> str | None:
    """Return the commit of a git checkout, followed by "-dirty" if files differ; None if it is not a checkout."""
    if not (folder / ".git").exists():
        return None  # an installed package: a checkout in a parent folder is not that of hpo
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
