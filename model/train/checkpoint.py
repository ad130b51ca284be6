"""Checkpoints: a safetensors file per run, with configuration and progress as JSON in its header. No pickle."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.cache import atomic_write
from model.config import TrainConfig

FILE = "state.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or belongs to another run."""


def save(
    folder: Path,
    config: TrainConfig,
    data_hash: str,
    tensors: Mapping[str, Tensor],
    progress: Mapping[str, Any],
) -> None:
    """Write `folder`/state.safetensors. The file is replaced as a whole, so it is never incomplete.

    data_hash: hash of the prepared data. tensors: state of the run by name. progress: other state, as JSON values.

    Raises:
        OSError: the file cannot be written.
    """
    state = {"config": config.model_dump(mode="json"), "data_hash": data_hash, "progress": dict(progress)}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with atomic_write(folder / FILE) as part:
            save_file(copies, part, metadata={"state": json.dumps(state)})
    except SafetensorError as error:  # safetensors raises its own error when the disk is full
        raise OSError(errno.ENOSPC, f"checkpoint not written: {error}", str(folder / FILE)) from error


def load(folder: Path, config: TrainConfig, data_hash: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the progress of a run, to resume it with the same configuration and data.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds a run of another configuration or on other data.
    """
    tensors, state = read(folder)
    if state["config"] != config.model_dump(mode="json"):
        raise CheckpointError(f"{folder / FILE}: holds a run of another configuration")
    if state["data_hash"] != data_hash:
        raise CheckpointError(f"{folder / FILE}: holds a run on other data")
    return tensors, state["progress"]


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint. The keys of the header are config, data_hash and progress.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({error})") from error
