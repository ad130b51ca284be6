"""All trials and all curves as tables: CSV and JSON, for whoever wants to check or to draw anew."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hpo.analysis.snapshot import Snapshot, trial_status, trial_value
from hpo.runs.run_dir import to_json_value, write_file
from hpo.storage.attributes import ARM, METRICS, SEED
from hpo.storage.trials import Trial


def trials_frame(snapshot: Snapshot) -> pd.DataFrame:
    """Return a row a trial: how it ended, its parameters, its last metrics."""
    return pd.DataFrame([_row(snapshot, trial) for trial in snapshot.trials])


def _row(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    attrs = trial.user_attrs
    known: dict[str, Any] = {
        "number": trial.number,
        "state": trial_status(snapshot, trial),
        "kind": snapshot.kind(trial),
    }
    known |= {"rung": trial.last_step or 0, snapshot.objective: trial_value(trial)}
    known |= {
        "started": trial.started,
        "ended": trial.ended,
        "seconds": trial.duration and trial.duration.total_seconds(),
    }
    known |= {key: attrs[key] for key in ("worker", "slot", "attempt", "retry_of", ARM, SEED) if key in attrs}
    plain = {k: v for k, v in (attrs.get(METRICS) or {}).items() if not isinstance(v, Mapping | list)}
    metrics = {f"metrics.{key}": found for key, found in plain.items()}
    # A config of the user's own may have a field of one of these names.
    return known | {f"params.{k}" if k in known else k: v for k, v in trial.params.items()} | metrics


def curves_frame(snapshot: Snapshot) -> pd.DataFrame:
    """Return a row a trial and rung."""
    rows = [
        {"number": trial.number, "rung": rung}
        | ({"tokens": round(rung * snapshot.rung_tokens)} if snapshot.rung_tokens else {})
        | {snapshot.objective: found}
        for trial in snapshot.trials
        for rung, found in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(
        rows, columns=["number", "rung", *(["tokens"] if snapshot.rung_tokens else []), snapshot.objective]
    )


def curves_path(path: Path) -> Path:
    """Return the file of the curves that goes with a file of trials."""
    return path.with_name(f"{path.stem}-curves{path.suffix}")


def write_csv(snapshot: Snapshot, path: Path) -> None:
    """Write the trials to one file and the curves to another beside it."""
    write_file(path, trials_frame(snapshot).to_csv(index=False, lineterminator="\n"))
    write_file(curves_path(path), curves_frame(snapshot).to_csv(index=False, lineterminator="\n"))


def write_json(snapshot: Snapshot, path: Path, more: Mapping[str, Any]) -> None:
    """Write all of a study to one file: what is given, its spec, trials and curves."""
    tree = {"study": snapshot.name, **more, "spec": dict(snapshot.spec), "anchors": dict(snapshot.anchors)}
    tree |= {"trials": _records(trials_frame(snapshot)), "curves": _records(curves_frame(snapshot))}
    write_file(path, json.dumps(to_json_value(tree), indent=1) + "\n")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows, without the cells that pandas filled in."""
    return [
        {str(key): cell for key, cell in found.items() if not (isinstance(cell, float) and math.isnan(cell))}
        for found in table.astype(object).to_dict("records")
    ]
