"""Score the runs of a claim: by their last rung, or at the time when the first arm ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpo.analysis.snapshot import Snapshot
from hpo.errors import WorkFailed
from hpo.runs.metrics import metric, read_metrics
from hpo.runs.run_dir import study_folder, trial_folder
from hpo.storage.attributes import METRICS
from hpo.storage.trials import State, Trial


def run_score(trial: Trial, metric: str) -> float | None:
    """Return the score of a run that ended or diverged, None if it diverged; "finished" is 1 or 0."""
    if metric == "finished":
        return float(trial.state == State.COMPLETE)
    if trial.state != State.COMPLETE:
        return None
    value = trial.user_attrs.get(METRICS, {}).get(metric)
    return max(value) if isinstance(value, list) else value


def metrics_at_equal_seconds(
    snapshot: Snapshot, trials: Mapping[str, Mapping[int, Trial]], out: Path
) -> dict[int, dict[str, float] | None]:
    """Return trial -> its metrics at the time when the first arm of its seed ended, interpolated between rungs.

    The value is None for a run that had not reached its first rung by then.

    out: folder that the workers wrote to; on several machines a shared one.

    Raises:
        WorkFailed: the curves are not in `out`.
    """
    metrics: dict[int, dict[str, float] | None] = {}
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    for seed in snapshot.spec["seeds"]:
        complete = [arm[seed] for arm in trials.values() if seed in arm and arm[seed].state == State.COMPLETE]
        curves = {t.number: read_curve(trial_folder(folder, t.number) / "metrics.jsonl") for t in complete}
        end = min((curve["seconds"][-1] for curve in curves.values()), default=0.0)
        for number, curve in curves.items():
            numeric = {key: values for key, values in curve.items() if None not in values}
            has_rung = curve["seconds"][0] <= end
            at_end = {key: float(np.interp(end, curve["seconds"], values)) for key, values in numeric.items()}
            metrics[number] = at_end if has_rung else None
    return metrics


def read_curve(path: Path) -> dict[str, list[Any]]:
    """Return metric -> its values, one per rung, of a run.

    Raises:
        WorkFailed: the file does not exist, or has no rung.
    """
    rows = [row for row in read_metrics(path) if metric(row, "seconds") is not None]
    if not rows:
        raise WorkFailed(f"no curve in {path}: losses at equal seconds need the folder of the runs; set it by --out")
    return {key: [metric(row, key) for row in rows] for key, value in rows[0].items() if isinstance(value, int | float)}
