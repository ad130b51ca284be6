"""Studies with several objectives: the values of a trial, the best trial by one of them, and the front.

The study stays one of a single objective, the first. The others are metrics of its trials, of which less is better.
"""

import math
from collections.abc import Mapping
from typing import Any

from hpo.analysis.noise import unbiased_stdev
from hpo.analysis.snapshot import Snapshot, best_trial
from hpo.console import format_number
from hpo.errors import NothingFeasible, Problem
from hpo.storage.attributes import FIXED_VALUES, METRICS
from hpo.storage.trials import Trial


def objectives_of(snapshot: Snapshot) -> list[str]:
    """Return the names of the objectives, the first one first."""
    return [str(name) for name in snapshot.spec.get("objectives") or [snapshot.objective]]


def objective_value(snapshot: Snapshot, trial: Trial, name: str) -> float | None:
    """Return the value of an objective of a complete trial, None if it was not measured.

    seconds and tokens of a trial are known even where its training function does not report them.
    """
    if name == snapshot.objective:
        return float(trial.values[0]) if trial.values else None
    value = (trial.user_attrs.get(METRICS) or {}).get(name)
    if value is None and name == "seconds" and trial.duration is not None:
        value = trial.duration.total_seconds()
    if value is None and name == "tokens" and snapshot.rung_tokens:
        value = (trial.user_attrs.get(FIXED_VALUES) or {}).get("run.tokens") or snapshot.rung_tokens * snapshot.rungs
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def losses(snapshot: Snapshot, trial: Trial) -> list[float] | None:
    """Return the objectives of a trial as numbers of which less is better, None if one of them was not measured."""
    values = [objective_value(snapshot, trial, name) for name in objectives_of(snapshot)]
    if any(value is None for value in values):
        return None
    first, *others = (value for value in values if value is not None)
    return [snapshot.direction.loss(first), *others]


def front(snapshot: Snapshot) -> list[Trial]:
    """Return the complete trials that no other one dominates, sorted by the first objective.

    A trial dominates another one if it is not worse in any objective and better in at least one.
    """
    points = [(point, t) for t in snapshot.feasible if (point := losses(snapshot, t)) is not None]
    kept = [
        (point, trial)
        for point, trial in points
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other, _ in points)
    ]
    return [trial for _, trial in sorted(kept, key=lambda pair: pair[0])]


def noise_of(snapshot: Snapshot) -> Mapping[str, float]:
    """Return the standard deviation of each objective over the runs of the baseline, where two or more have it."""
    deviations = {}
    for name in objectives_of(snapshot):
        values = [v for t in snapshot.baseline_runs if (v := objective_value(snapshot, t, name)) is not None]
        deviation = unbiased_stdev(values)
        if deviation is not None:
            deviations[name] = deviation
    return deviations


def best_by(snapshot: Snapshot, by: str | None, option: str = "--by") -> Trial:
    """Return the best trial by one objective.

    by: its name; None for a study with a single objective.

    Raises:
        NothingFeasible: no trial is complete.
        Problem: the study has several objectives and `by` is None, or `by` is not one of them.
    """
    names = objectives_of(snapshot)
    if by is None:
        if len(names) > 1:
            raise Problem(f"{option}: required, because study {snapshot.name} has the objectives {', '.join(names)}")
        return best_trial(snapshot)
    if by not in names:
        raise Problem(f"{option}: must be an objective of study {snapshot.name}, {', '.join(names)}, got {by!r:.60}")
    if by == snapshot.objective:
        return best_trial(snapshot)
    best_trial(snapshot)  # raises an error if no trial is complete
    measured = [(v, t.number, t) for t in snapshot.feasible if (v := objective_value(snapshot, t, by)) is not None]
    if not measured:
        raise NothingFeasible(f"study {snapshot.name}: no complete trial has the metric {by}")
    return min(measured)[2]


def front_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the objectives of each trial of the front; no records for a study with a single objective."""
    names = objectives_of(snapshot)
    if len(names) < 2:
        return []
    return [
        {"trial": t.number, **{name: objective_value(snapshot, t, name) for name in names}} for t in front(snapshot)
    ]


def front_lines(snapshot: Snapshot) -> list[str]:
    """Return a line with the trials of the front, no line for a study with a single objective."""
    points = [
        f"{record['trial']} ({', '.join(format_number(record[name]) for name in objectives_of(snapshot))})"
        for record in front_records(snapshot)
    ]
    return [f"front of {' and '.join(objectives_of(snapshot))}: trials {', '.join(points)}"] if points else []
