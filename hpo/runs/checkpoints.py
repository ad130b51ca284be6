"""Which checkpoints a run leaves on disk, and from which one it goes on."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from hpo.runs.trainable import Runs

KEPT = "checkpoint"  # what run.keep_checkpoints asks for
INTERRUPTED = "interrupted"  # where an interrupted run goes on, whatever run.keep_checkpoints says


def save_checkpoints(runs: Runs, lane: int, config: BaseModel, folder: Path, rung: int, best: bool) -> None:
    """Leave the checkpoints in a run's folder that its run.keep_checkpoints asks for, and one to go on from.

    best: no rung of the run was better than this one.
    """
    policy = getattr(getattr(config, "run", None), "keep_checkpoints", "none")
    if policy == "last" or (best and policy == "best"):
        runs.save(lane, folder / KEPT)
    elif policy == "all":
        runs.save(lane, folder / KEPT / f"rung-{rung:03d}")
    if policy in ("none", "best"):
        runs.save(lane, folder / INTERRUPTED)


def resumable_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, the newest first."""
    found = sorted(folder.glob("**/state.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in found]


def remove_checkpoints(folder: Path, all_of_them: bool = False) -> None:
    """Remove what an interruption would need, since the run has ended; with `all_of_them`, every checkpoint."""
    shutil.rmtree(folder / INTERRUPTED, ignore_errors=True)
    if all_of_them:
        shutil.rmtree(folder / KEPT, ignore_errors=True)


def remove_all_checkpoints(folders: Iterable[Path]) -> None:
    """Remove the checkpoints of finished runs that are not among the best."""
    for folder in folders:
        if (folder / KEPT).is_dir():
            remove_checkpoints(folder, all_of_them=True)
