"""Write all trials and all curves of a study as CSV and JSON."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import objective_column, trial_columns
from hpo.console import with_columns
from hpo.runs.run_dir import to_json_value, write_file
from hpo.storage.attributes import ARM, METRICS, SEED
from hpo.storage.trials import Trial
from hpo.study.command import Steps


def trials_frame(snapshot: Snapshot) -> pd.DataFrame:
    """Return one row per trial: its status, parameters and last metrics."""
    rows = [_row(snapshot, trial) for trial in snapshot.trials]
    empty = ["number", "state", "kind", "rung", objective_column(snapshot), "seconds"]  # before the first trial
    return pd.DataFrame(rows, columns=None if rows else empty)


def _row(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    attrs = trial.user_attrs
    fields = trial_columns(snapshot, trial) | {"started": trial.started, "ended": trial.ended}
    fields |= {key: attrs[key] for key in ("worker", "slot", "attempt", "retry_of", ARM, SEED) if key in attrs}
    plain = {k: v for k, v in (attrs.get(METRICS) or {}).items() if not isinstance(v, Mapping | list)}
    metrics = {f"metrics.{key}": value for key, value in plain.items()}
    return with_columns(fields, trial.params, "params") | metrics  # as in `hpo trials`


def curves_frame(snapshot: Snapshot) -> pd.DataFrame:
    """Return one row per trial and rung, with the tokens or, of a command, the step of the rung."""
    at = _along_the_run(snapshot)
    rows = [
        {"number": trial.number, "rung": rung, **{key: mark(rung) for key, mark in at.items()}}
        | {objective_column(snapshot): value}
        for trial in snapshot.trials
        for rung, value in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(rows, columns=["number", "rung", *at, objective_column(snapshot)])


def _along_the_run(snapshot: Snapshot) -> dict[str, Callable[[int], float]]:
    """Return the columns beside the rung that say how far a run is there."""
    if tokens := snapshot.rung_tokens:
        return {"tokens": lambda rung: round(rung * tokens)}
    if steps := snapshot.spec.get("steps"):
        return {"step": Steps.model_validate(steps).mark}
    return {}


def curves_path(path: Path) -> Path:
    """Return the path of the curves for the path of the trials, such as all-curves.csv for all.csv."""
    return path.with_name(f"{path.stem}-curves{path.suffix}")


def write_csv(snapshot: Snapshot, path: Path) -> None:
    """Write the trials to a file and the curves to `curves_path` of that file."""
    write_file(path, trials_frame(snapshot).to_csv(index=False, lineterminator="\n"))
    write_file(curves_path(path), curves_frame(snapshot).to_csv(index=False, lineterminator="\n"))


def write_json(snapshot: Snapshot, path: Path, results: Mapping[str, Any]) -> None:
    """Write the results, spec, trials and curves of a study to one file."""
    tree = {"study": snapshot.name, **results, "spec": dict(snapshot.spec), "anchors": dict(snapshot.anchors)}
    tree |= {"trials": _records(trials_frame(snapshot)), "curves": _records(curves_frame(snapshot))}
    write_file(path, json.dumps(to_json_value(tree), indent=1) + "\n")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows without empty cells."""
    return [
        {str(key): cell for key, cell in row.items() if not (isinstance(cell, float) and math.isnan(cell))}
        for row in table.astype(object).to_dict("records")
    ]
