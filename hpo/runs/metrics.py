"""metrics.jsonl of a run: one line per rung. Readers leave out damaged lines, and the storage repairs the file."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.runs.run_dir import open_log, set_aside_folder, to_json_value, write_file, writing


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Append the metrics of a rung as one line of JSON. NaN and infinity become null.

    Raises:
        Unwritable: The file cannot be written; the message names it.
    """
    line = json.dumps({key: to_json_value(value) for key, value in metrics.items()}) + "\n"
    with writing(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_log(path) as file:
            file.write(line)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each rung. Lines that are damaged or incomplete are left out, and so is a missing file."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("rung")) is int and row["rung"] > 0:
            yield row


def metric(row: Mapping[str, Any], name: str) -> float | None:
    """Return a metric of a rung, None if it is missing or not a finite number."""
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def read_rungs(path: Path, objective: str, reported: Mapping[int, float]) -> dict[int, dict[str, Any]]:
    """Return the metrics of each rung of a trial. The storage is the truth: its values replace those of the file.

    reported: values of the objective by rung, as the storage holds them.
    """
    rows = {row["rung"]: row for row in read_metrics(path)}
    for rung, value in reported.items():
        rows[rung] = {**rows.get(rung, {"rung": rung}), objective: to_json_value(value)}
    return rows


def write_rungs(path: Path, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Make a file of metrics hold exactly these rungs; it is written only if it differs.

    Raises:
        Unwritable: The file cannot be written; the message names it.
    """
    text = "".join(json.dumps(rows[rung]) + "\n" for rung in sorted(rows))
    set_aside_folder(path)
    try:
        current = path.read_bytes()
    except OSError:
        current = b""
    if current != text.encode():
        write_file(path, text)


def repair_metrics(path: Path, objective: str, reported: Mapping[int, float]) -> dict[int, dict[str, Any]]:
    """Make a file hold every rung that the storage holds; return its rungs as `read_rungs` does.

    Raises:
        Unwritable: The file cannot be written; the message names it.
    """
    rows = read_rungs(path, objective, reported)
    write_rungs(path, rows)
    return rows


def truncate_metrics(path: Path, rungs: int) -> None:
    """Remove the metrics of all rungs after the first `rungs`, because a resumed run trains and writes them again."""
    write_rungs(path, {row["rung"]: row for row in read_metrics(path) if row["rung"] <= rungs})
