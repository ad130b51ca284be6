"""Checkpoints: a safetensors file per run, with configuration and progress as JSON in its header. No pickle.

The header also holds a SHA-256 of the state and of all tensors, because safetensors itself has no checksum.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.cache import atomic_write
from model.config import TrainConfig

FILE = "state.safetensors"
FORMAT = 1  # of the state. Files of earlier versions have no format and no checksum

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be read or belongs to another run."""


class Unwritten(OSError):
    """A checkpoint cannot be written. n_bytes: its size."""

    n_bytes: int = 0


def save(
    folder: Path,
    config: TrainConfig,
    data_hash: str,
    tensors: Mapping[str, Tensor],
    progress: Mapping[str, Any],
) -> None:
    """Write `folder`/state.safetensors. The file is replaced as a whole and synced to the disk.

    data_hash: hash of the prepared data. tensors: state of the run by name. progress: other state, as JSON values.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"config": config.model_dump(mode="json"), "data_hash": data_hash, "progress": dict(progress)}
    state = json.dumps({"format": FORMAT, **content})
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with atomic_write(folder / FILE, sync=True) as part:
            save_file(copies, part, metadata={"state": state, "sha256": _checksum(state, copies)})
    except SafetensorError as error:  # safetensors raises its own error when the disk is full
        unwritten = Unwritten(errno.ENOSPC, f"checkpoint not written: {error}", str(folder / FILE))
        unwritten.n_bytes = sum(tensor.nbytes for tensor in copies.values())
        raise unwritten from error


def load(folder: Path, config: TrainConfig, data_hash: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the progress of a run, to resume it with the same configuration and data.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds a run of another configuration or on other data.
    """
    tensors, state = read(folder)
    if _comparable(stored_config(folder, state)) != _comparable(config):
        raise CheckpointError(f"{folder / FILE}: holds a run of another configuration")
    if state["data_hash"] != data_hash:
        raise CheckpointError(f"{folder / FILE}: holds a run on other data")
    return tensors, state["progress"]


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint. The keys of the header are config, data_hash and progress.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read, or its content is not what was saved.
    """
    path = folder / FILE
    try:
        if not path.exists():
            raise CheckpointError(f"no checkpoint at {path}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata["state"]
            state = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_state(state)
        _check_content(path, state, text, metadata.get("sha256"), tensors)
    except CheckpointError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: not a checkpoint that can be read ({reason})") from error
    return tensors, state


def stored_config(folder: Path, state: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration in the header of a checkpoint. Fields that its version did not have get defaults.

    Raises:
        CheckpointError: the header holds no valid configuration.
    """
    try:
        return TrainConfig.model_validate(state["config"])
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise CheckpointError(
            f"{folder / FILE}: its configuration is not valid in this version ({field}: {problem['msg']})"
        ) from error


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """Return the fields that two runs must share. The place of the text is not one of them: its hash is compared."""
    fields = config.model_dump(mode="json")
    fields["data"].pop("path", None)
    return fields


def _check_state(state: Any) -> None:
    kinds = {"config": dict, "data_hash": str, "progress": dict}
    if not isinstance(state, dict):
        raise TypeError("its state is not an object")
    for key, kind in kinds.items():
        if not isinstance(state[key], kind):
            raise TypeError(f"its {key} has the wrong type")


def _check_content(
    path: Path, state: Mapping[str, Any], text: str, checksum: str | None, tensors: Mapping[str, Tensor]
) -> None:
    """Compare the content of a file with its checksum.

    Raises:
        CheckpointError: they differ, a checksum is missing that this version writes, or weights are not finite.
    """
    if checksum is None and "format" not in state:
        _log.warning("%s: was written by an earlier version without a checksum, so its content is not verified", path)
    elif checksum != _checksum(text, tensors):
        raise CheckpointError(f"{path}: damaged: its content does not have the checksum in its header")
    # A run whose weights are not finite has diverged and saves no checkpoint.
    for name, tensor in tensors.items():
        if name.startswith(("weights.", "average.")) and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: damaged: {name} is not finite")


def _checksum(state: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state and of the names, types, shapes and bytes of tensors."""
    sha256 = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
