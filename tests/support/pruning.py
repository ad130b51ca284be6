"""Pruners as a study file names them, and finished and running trials for them to judge."""

import math
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter

from hpo.search.pruners import Pruner
from hpo.search.pruning import CachedPruner

R = 12  # rungs of a run
NAMES = ["median", "percentile", "halving", "hyperband", "patient", "threshold", "wilcoxon", "none"]
LOOSE: dict[str, dict[str, Any]] = {  # each decides from the first rung and the first peer on
    "median": {"startup_trials": 0, "min_trials": 1, "warmup_rungs": 0},
    "percentile": {"startup_trials": 0, "min_trials": 1, "warmup_rungs": 0, "percentile": 40},
    "halving": {"factor": 2},
    "hyperband": {"factor": 2},
    "patient": {"patience": 1, "min_delta": 0.1},
    "threshold": {"lower": 1.0, "upper": 2.0, "warmup_rungs": 0},
    "wilcoxon": {"warmup_rungs": 0, "p_threshold": 0.3},
}
for rank in ("median", "percentile"):
    LOOSE[f"{rank} of finished"] = {**LOOSE[rank], "name": rank, "peers": "finished"}


def loose(name: str) -> dict[str, Any]:
    """Return a pruner of LOOSE as a study file writes it."""
    return {"name": name, **LOOSE[name]}


def pruner(name: str, **fields: Any) -> Any:
    if name == "threshold":
        fields = {"upper": 4.0} | fields
    return TypeAdapter(Pruner).validate_python({"name": name, **fields})


def running(values: dict[int, float], number: int = 1000) -> FrozenTrial:
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
    trial.number = number
    return trial


def curve(end: float, rungs: int = R) -> dict[int, float]:
    """A learning curve from 5 towards its end."""
    return {rung: end + (5 - end) * math.exp(-4 * rung / R) for rung in range(1, rungs + 1)}


def finished(values: dict[int, float], state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    value = values[max(values)] if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, intermediate_values=values)


def end(cached: CachedPruner, values: dict[int, float], number: int = 1000, baseline: bool = False) -> tuple[str, int]:
    """Add the values of a trial one by one until the pruner stops it, as a worker does. Returns decision and rung."""
    trial = running({}, number)
    for rung, value in values.items():
        trial.intermediate_values[rung] = value
        if (decision := cached.decide(trial, baseline)) != "continue":
            return decision, rung
    return "continue", max(values)


def with_crowd(study: optuna.Study) -> optuna.Study:
    """Add eight finished trials that end between 2.0 and 2.7."""
    for i in range(8):
        study.add_trial(finished(curve(2.0 + i / 10)))
    return study
