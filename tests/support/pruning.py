"""Pruners as a study file names them, and running trials for them to judge."""

from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter

from hpo.search.pruners import Pruner

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
