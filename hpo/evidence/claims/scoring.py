"""What a run of a claim is scored by: the metrics of its last rung, or of its curve at a moment between rungs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpo.analysis.snapshot import METRICS, Snapshot
from hpo.errors import WorkFailed
from hpo.runs import run_dir as folders
from hpo.storage.trials import State, Trial


def scored(trial: Trial, metric: str) -> float | None:
    """Return what a run that came to its end, or diverged, is scored by; None where it diverged."""
    if metric == "finished":
        return float(trial.state == State.COMPLETE)
    if trial.state != State.COMPLETE:
        return None
    value = trial.user_attrs.get(METRICS, {}).get(metric)
    return max(value) if isinstance(value, list) else value


def at_equal_seconds(
    of: Snapshot, trials: Mapping[str, Mapping[int, Trial]], out: Path
) -> dict[int, dict[str, float] | None]:
    """Return trial -> metrics, read between rungs at the time at which the first arm of its seed ended.

    None for a run that had not come to its first rung by then.

    Raises:
        WorkFailed: the curves are not under --out.
    """
    found: dict[int, dict[str, float] | None] = {}
    for seed in of.spec["seeds"]:
        finished = [arm[seed] for arm in trials.values() if seed in arm and arm[seed].state == State.COMPLETE]
        curves = {t.number: curve(folders.trial_folder(out, of.name, t.number) / "metrics.jsonl") for t in finished}
        over = min((rungs["seconds"][-1] for rungs in curves.values()), default=0.0)
        for number, rungs in curves.items():
            whole = {key: values for key, values in rungs.items() if None not in values}
            began = rungs["seconds"][0] <= over
            read = {key: float(np.interp(over, rungs["seconds"], values)) for key, values in whole.items()}
            found[number] = read if began else None
    return found


def curve(path: Path) -> dict[str, list[Any]]:
    """Return the numbers of a run by name, a value a rung.

    Raises:
        WorkFailed: the file is not here.
    """
    rows = list(folders.lines(path))
    if not rows:
        raise WorkFailed(f"no curve in {path}: losses at equal seconds need the folder that the runs wrote, by --out")
    return {key: [row[key] for row in rows] for key, value in rows[0].items() if isinstance(value, int | float)}
