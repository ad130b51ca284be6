"""The checkpoints in the folder of a run: which are saved, resumed and removed."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from hpo.runs.command_files import CHECKPOINT, FILES
from hpo.runs.run_dir import set_aside_folder, writing
from hpo.runs.trainable import Runs

FILE = "state.safetensors"  # the file of a checkpoint
KEPT = "checkpoint"  # folder of the checkpoints that run.keep_checkpoints selects
INTERRUPTED = "interrupted"  # folder of the checkpoint from which an interrupted run resumes, if KEPT has no such one


def save_checkpoints(runs: Runs, lane: int, config: BaseModel, folder: Path, rung: int, best: bool) -> None:
    """Save the checkpoints that run.keep_checkpoints selects, and always one from which the run can resume.

    folder: of the run. best: whether the run has its lowest loss at this rung.

    Raises:
        Unwritable: A checkpoint cannot be written; the message names it.
        ValueError: The run cannot be saved at this rung.
    """
    policy = getattr(getattr(config, "run", None), "keep_checkpoints", "none")
    if policy == "last" or (best and policy == "best"):
        _save(runs, lane, folder / KEPT)
    elif policy == "all":
        _save(runs, lane, folder / KEPT / f"rung-{rung:03d}")
    if policy in ("none", "best"):
        _save(runs, lane, folder / INTERRUPTED)


def _save(runs: Runs, lane: int, folder: Path) -> None:
    file = folder / FILE
    set_aside_folder(file)
    elsewhere: OSError | None = None
    with writing(file, file.stat().st_size if file.is_file() else 0):
        try:
            runs.save(lane, folder)
        except OSError as error:
            if not _names_other_place(error, folder):
                raise
            elsewhere = error
    if elsewhere is not None:  # a class of the user has failed to write a file of its own
        raise elsewhere


def _names_other_place(error: OSError, folder: Path) -> bool:
    """Return whether an error names a file that is not in the folder."""
    if not isinstance(error.filename, str | bytes):
        return False
    return not Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())


def resumable_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints of a run, the newest first, damaged ones included."""
    times: dict[Path, float] = {}
    with suppress(OSError):  # a folder that cannot be read has no checkpoint that can be resumed
        for file in folder.glob(f"**/{FILE}"):
            with suppress(OSError):
                times[file.parent] = file.stat().st_mtime
    return sorted(times, key=lambda parent: times[parent], reverse=True)


def remove_checkpoints(folder: Path, all_of_them: bool = False) -> None:
    """Remove the checkpoint for an interruption of an ended run, or with `all_of_them` every checkpoint of the run."""
    shutil.rmtree(folder / INTERRUPTED, ignore_errors=True)
    if all_of_them:
        shutil.rmtree(folder / KEPT, ignore_errors=True)
        own = folder / FILES / CHECKPOINT  # of a command: a file or a folder
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            own.unlink()


def has_kept_checkpoints(folder: Path) -> bool:
    """Return whether the folder of a run holds checkpoints that stay when the run has ended."""
    return (folder / KEPT).is_dir() or (folder / FILES / CHECKPOINT).exists()


def remove_all_checkpoints(folders: Iterable[Path]) -> None:
    """Remove all checkpoints from the folders of these runs."""
    for folder in folders:
        if has_kept_checkpoints(folder):
            remove_checkpoints(folder, all_of_them=True)
