"""The configuration of a trial, complete and trainable, with where it comes from."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.snapshot import Snapshot, best_trial, find_trial, trial_value
from hpo.config.files import config_text
from hpo.errors import Problem
from hpo.storage.attributes import FIXED_VALUES, MACHINE
from hpo.storage.trials import Trial
from hpo.study.spec import Study, from_spec
from model.section import flat


def select_trial(snapshot: Snapshot, number: int | None) -> Trial:
    """Return trial `number`, the best one where it is None."""
    if number is None:
        return best_trial(snapshot)
    trial = find_trial(snapshot, number)
    if not trial.params and FIXED_VALUES not in trial.user_attrs:
        raise Problem(f"trial: {number} has no configuration yet; it is {trial.state.value}")
    return trial


def configuration(study: Study, trial: Trial) -> BaseModel:
    """Return what a trial trained."""
    fixed: Mapping[str, Any] | None = trial.user_attrs.get(FIXED_VALUES)
    return study.configured(trial.params if fixed is None else fixed)


def provenance(snapshot: Snapshot, trial: Trial, known: str = "") -> dict[str, Any]:
    """Return study, trial, value, seeds, versions, commit and data hash."""
    return {
        "study": snapshot.name,
        "trial": trial.number,
        "state": trial.state.value,
        "objective": snapshot.objective,
        "value": trial_value(trial),
        **({"known": known} if known else {}),
        "sampler_seed": snapshot.spec["seed"],
        "data_hash": snapshot.data_hash,
        "anchors": dict(snapshot.anchors),
        "train": snapshot.spec["train"],
        "config": snapshot.spec["config"],
        **trial.user_attrs.get(MACHINE, {}),
    }


def export_text(snapshot: Snapshot, trial: Trial, known: str = "") -> str:
    """Return the YAML file of a trial; known: in words, what makes it the one to keep."""
    return config_text(configuration(from_spec(snapshot.spec), trial), provenance(snapshot, trial, known))


def changed_fields(snapshot: Snapshot, trial: Trial) -> list[tuple[str, Any, Any]]:
    """Return (field, baseline's value, this trial's value) for each field of the configuration that differs."""
    study = from_spec(snapshot.spec)
    first = study.file.baseline[0] if study.file.baseline else {}
    before, after = flat(study.configured(first)), flat(configuration(study, trial))
    paths = [path for path in after if path in study.file.space] + [p for p in after if p not in study.file.space]
    return [(path, before.get(path), after[path]) for path in paths if before.get(path) != after[path]]
