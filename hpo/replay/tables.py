"""Read recorded learning curves from CSV, JSONL and NPZ files."""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo.errors import Problem
from hpo.replay.curves import Array, Curves, base_of_space
from hpo.replay.description import Arrays, CurvesFile, data_file, read_description
from hpo.search.direction import Direction
from hpo.search.ranges import Choices, Entry


def read_curves(path: Path) -> Curves:
    """Return the curves that a description names.

    Raises:
        Problem: the description or the data is invalid, or no run is left.
    """
    description = read_description(path)
    file = data_file(description, path)
    try:
        if description.arrays is not None:
            runs, values = _from_arrays(description, description.arrays, file)
        else:
            frame = _selected(description, _read_frame(file), file)
            runs, values = _wide(description, frame) if description.values else _long(description, frame)
    except KeyError as error:
        raise Problem(f"{path}: {file.name} must have the column {error.args[0]!r}") from None
    except (ValueError, OSError, zipfile.BadZipFile, pd.errors.ParserError) as error:
        raise Problem(f"{path}: {file.name}: {error}") from None
    return _curves(description, path, runs, values)


def _read_frame(file: Path) -> pd.DataFrame:
    if file.name.removesuffix(".gz").endswith(".jsonl"):
        return pd.read_json(file, lines=True)
    return pd.read_csv(file, low_memory=False)


def _selected(description: CurvesFile, frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    for column, wanted in description.where.items():
        frame = frame[frame[column].isin(wanted if isinstance(wanted, list | tuple) else [wanted])]
    if frame.empty:
        raise ValueError(f"no row meets where {description.where}" if description.where else "it has no rows")
    return frame


def _wide(description: CurvesFile, frame: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """Return one row per run, and its values at each mark."""
    pattern = description.values or ""
    marks = 0
    while pattern.format(rung=marks + 1) in frame:
        marks += 1
    if not marks:
        raise KeyError(pattern.format(rung=1))
    values = frame[[pattern.format(rung=mark + 1) for mark in range(marks)]].to_numpy(float)
    rungs = description.rungs or marks
    if rungs > marks:
        raise ValueError(f"rungs must be at most {marks}, the number of marks, got {rungs}")
    return frame.reset_index(drop=True), mark_divergence(values)[:, _picked(marks, rungs)]


def _picked(marks: int, rungs: int) -> list[int]:
    """Return the indices of `rungs` evenly spaced marks, the last one included."""
    return [-(-marks * rung // rungs) - 1 for rung in range(1, rungs + 1)]


def _long(description: CurvesFile, frame: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """Return one row per run, and the last value at or before each rung, for tables with one row per step."""
    value, step, rungs = description.value, description.step, description.rungs
    assert value is not None, "the description is checked"
    assert step is not None
    assert rungs is not None
    keys = _names(description.run)
    rows, curves = [], []
    for _, run in frame.groupby(keys, sort=False, dropna=False):
        run = run.sort_values(step)
        steps, values = run[step].to_numpy(float), run[value].to_numpy(float)
        last = float(run[description.total].iloc[0]) if description.total else float(steps[-1])
        marks = last * np.arange(1, rungs + 1) / rungs
        index = np.searchsorted(steps, marks + 1e-9 * last, side="right") - 1
        measured = (index >= 0) & (marks <= steps[-1] + 1e-9 * last)
        rows.append(run.iloc[0])
        curves.append(np.where(measured, mark_divergence(values)[np.maximum(index, 0)], np.nan))
    return pd.DataFrame(rows).reset_index(drop=True), np.array(curves)


def _from_arrays(description: CurvesFile, arrays: Arrays, file: Path) -> tuple[pd.DataFrame, Array]:
    with np.load(file, allow_pickle=False) as data:
        values, params = np.asarray(data[arrays.values], float), np.asarray(data[arrays.params])
        if arrays.tables is not None:
            names = [str(name) for name in data[arrays.tables]]
            if description.table not in names:
                raise ValueError(f"table must be one of {', '.join(names)}, got {description.table!r}")
            index = names.index(str(description.table))
            values, params = values[index], params[index] if params.ndim == 3 else params
        frame = pd.DataFrame(params, columns=[str(name) for name in data[arrays.columns]])
    values = mark_divergence(values[:, 1 - description.first_mark :])
    return frame, values[:, _picked(values.shape[1], description.rungs or values.shape[1])]


def _curves(description: CurvesFile, path: Path, runs: pd.DataFrame, values: Array) -> Curves:
    direction = Direction(description.direction)
    values = np.where(np.isinf(values), np.inf, direction.loss(1.0) * values)
    params = [_params(description, row) for row in runs.to_dict("records")]
    reasons = [_reason(description, row, curve) for row, curve in zip(params, values, strict=True)]
    omitted = Counter(reason for reason in reasons if reason)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if not kept:
        raise Problem(f"{path}: no run is left: " + ", ".join(f"{n} {reason}" for reason, n in omitted.items()))
    keys = _configuration_keys(description, runs, params)
    configs: dict[Any, int] = {}  # key of a configuration -> its first run
    for i in kept:
        configs.setdefault(keys[i], i)
    numbers = {key: number for number, key in enumerate(configs)}
    return Curves(
        name=path.stem,
        space=description.space,
        base=base_of_space(description.space),
        params=[params[first] for first in configs.values()],
        config=np.array([numbers[keys[i]] for i in kept]),
        values=values[kept],
        rung_tokens=(description.tokens or values.shape[1]) / values.shape[1],
        direction=direction,
        omitted=omitted,
    )


def _names(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _params(description: CurvesFile, row: Mapping[Any, Any]) -> dict[str, Any]:
    return {path: _value(entry, row[description.columns.get(path, path)]) for path, entry in description.space.items()}


def _value(entry: Entry, value: Any) -> Any:
    if isinstance(entry, Choices):
        return next((choice for choice in entry.choices if choice == value or str(choice) == str(value)), value)
    if isinstance(entry.low, int) and isinstance(entry.high, int) and float(value).is_integer():
        return int(value)
    return float(value)


def _reason(description: CurvesFile, params: Mapping[str, Any], curve: Array) -> str:
    """Return why a run is left out, "" if it is not."""
    for path, entry in description.space.items():
        inside = (
            params[path] in entry.choices if isinstance(entry, Choices) else entry.low <= params[path] <= entry.high
        )
        if not inside:
            return "outside the space"
    return "without a first value" if np.isnan(curve[0]) else ""


def _configuration_keys(description: CurvesFile, runs: pd.DataFrame, params: Sequence[Mapping[str, Any]]) -> list[Any]:
    if columns := _names(description.configuration):
        return list(runs[columns].itertuples(index=False, name=None))
    if not description.space:
        return list(range(len(runs)))
    return [tuple(row.values()) for row in params]


def mark_divergence(values: Array) -> Array:
    """Return curves that are inf from the first mark whose recorded value is not finite: the run diverged there."""
    return np.where(np.cumsum(~np.isfinite(values), axis=-1) > 0, np.inf, values)
