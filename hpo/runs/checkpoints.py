"""The checkpoints in the folder of a run: which are saved, resumed and removed."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from hpo.runs.trainable import Runs

KEPT = "checkpoint"  # folder of the checkpoints that run.keep_checkpoints selects
INTERRUPTED = "interrupted"  # folder of the checkpoint from which an interrupted run resumes, if KEPT has no such one


def save_checkpoints(runs: Runs, lane: int, config: BaseModel, folder: Path, rung: int, best: bool) -> None:
    """Save the checkpoints that run.keep_checkpoints selects, and always one from which the run can resume.

    folder: of the run. best: whether the run has its lowest loss at this rung.
    """
    policy = getattr(getattr(config, "run", None), "keep_checkpoints", "none")
    if policy == "last" or (best and policy == "best"):
        runs.save(lane, folder / KEPT)
    elif policy == "all":
        runs.save(lane, folder / KEPT / f"rung-{rung:03d}")
    if policy in ("none", "best"):
        runs.save(lane, folder / INTERRUPTED)


def resumable_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints of a run, the newest first."""
    files = sorted(folder.glob("**/state.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent for file in files]


def remove_checkpoints(folder: Path, all_of_them: bool = False) -> None:
    """Remove the checkpoint for an interruption of an ended run, or with `all_of_them` every checkpoint of the run."""
    shutil.rmtree(folder / INTERRUPTED, ignore_errors=True)
    if all_of_them:
        shutil.rmtree(folder / KEPT, ignore_errors=True)


def remove_all_checkpoints(folders: Iterable[Path]) -> None:
    """Remove all checkpoints from the folders of these runs."""
    for folder in folders:
        if (folder / KEPT).is_dir():
            remove_checkpoints(folder, all_of_them=True)
