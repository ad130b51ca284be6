"""Versions, threads and commit that a run's last bits depend on."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo.runs.resources import threads_in_use

PACKAGES = ("hpo", "torch", "optuna", "numpy", "tokenizers")


def describe_machine() -> dict[str, Any]:
    """Return what a run's last bits may depend on: versions, threads, commit."""
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "threads": threads_in_use(),
        "git_commit": git_commit(Path(__file__).parents[2]),
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit that a checkout is at, "-dirty" behind it where files differ; None for anything else."""
    if not (folder / ".git").exists():
        return None  # installed, and what git finds further up is not ours
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
