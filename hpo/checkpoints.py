"""Which checkpoints a run leaves on disk, and from which one it goes on."""

import shutil
from pathlib import Path

from pydantic import BaseModel

from hpo.plug import Runs

KEPT = "checkpoint"  # what run.keep_checkpoints asks for
INTERRUPTED = "interrupted"  # what an interruption leaves, whatever run.keep_checkpoints says


def keep(runs: Runs, place: int, config: BaseModel, folder: Path, rung: int, best: bool) -> None:
    """Leave the checkpoints in a run's folder that its run.keep_checkpoints asks for.

    best: no rung of the run was better than this one.
    """
    policy = getattr(getattr(config, "run", None), "keep_checkpoints", "none")
    if policy == "last" or (best and policy == "best"):
        runs.save(place, folder / KEPT)
    elif policy == "all":
        runs.save(place, folder / KEPT / f"rung-{rung:03d}")


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint in a run's folder, None where there is none."""
    found = sorted(folder.glob("**/state.safetensors"), key=lambda file: file.stat().st_mtime)
    return found[-1].parent if found else None


def forget(folder: Path, all_of_them: bool = False) -> None:
    """Remove what an interruption left, since the run has ended; with `all_of_them`, every checkpoint."""
    shutil.rmtree(folder / INTERRUPTED, ignore_errors=True)
    if all_of_them:
        shutil.rmtree(folder / KEPT, ignore_errors=True)
