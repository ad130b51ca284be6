"""Files of a study: runs/<study>/{study.yaml, best.yaml, trials/0007/{config.yaml, metrics.jsonl, ...}}."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.errors import Unwritable


def study_folder(out: Path, study: str) -> Path:
    return out / study


def trial_folder(out: Path, study: str, number: int) -> Path:
    return study_folder(out, study) / "trials" / f"{number:04d}"


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        Unwritable: the message names it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from None


def is_writable(folder: Path, n_bytes: int = 2**20) -> bool:
    """Return whether a folder has room for so many bytes, and may be written."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(n_bytes))
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Add one line of JSON; numbers that JSON has not are null.

    Raises:
        Unwritable: the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: to_json_value(value) for key, value in metrics.items()}) + "\n")
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; a last line cut short is left out."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def truncate_metrics(path: Path, rungs: int) -> None:
    """Cut a metrics file back to its first rungs: a resumed run writes the rest again."""
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line.get("rung", 0) <= rungs]
    if path.is_file():
        write_file(path, "".join(kept))


def to_json_value(value: Any) -> Any:
    """Return a value as JSON can hold it: no nan, no infinity, no numbers of other libraries."""
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(inner) for inner in value]
    if hasattr(value, "__float__"):
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)


def artifact_folder(out: Path) -> Path:
    """Return the folder of the files that `hpo report` attaches to studies and trials."""
    return out / "artifacts"
