"""Export the complete configuration of a trial, with its provenance, as a YAML file that `hpo train` accepts."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.cool_down import branch_config, branch_provenance
from hpo.analysis.snapshot import Snapshot, best_trial, find_trial, trial_value
from hpo.config.files import config_text
from hpo.errors import Problem
from hpo.search.direction import Direction
from hpo.storage.attributes import FIXED_VALUES, MACHINE
from hpo.storage.trials import Trial
from hpo.study.arithmetic import with_arithmetic
from hpo.study.command import plan_as_json
from hpo.study.scale import scale_fields
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec
from model.config import TrainConfig
from model.section import changes, flat


def select_trial(snapshot: Snapshot, number: int | None) -> Trial:
    """Return the trial with this number, or the best trial for None.

    Raises:
        NothingFeasible: no trial is complete.
        Problem: the study has no such trial, or the trial has no configuration yet.
    """
    if number is None:
        return best_trial(snapshot)
    trial = find_trial(snapshot, number)
    if not trial.params and FIXED_VALUES not in trial.user_attrs:
        raise Problem(f"trial: {number} has no configuration yet; its state is {trial.state.value}")
    return trial


def configuration(study: Study, trial: Trial) -> BaseModel:
    """Return the configuration that a trial trained."""
    fixed: Mapping[str, Any] | None = trial.user_attrs.get(FIXED_VALUES)
    return study.configured(trial.params if fixed is None else fixed)


def provenance(snapshot: Snapshot, trial: Trial, config: BaseModel, known: str = "") -> dict[str, Any]:
    """Return study, trial, value, seeds, versions, commit and data hash.

    config: of the trial. Its length, batch and size are stored as those at which it was found. known: a phrase that
    says how far the result is confirmed.
    """
    return {
        "study": snapshot.name,
        "trial": trial.number,
        "state": trial.state.value,
        "objective": snapshot.objective,
        **({} if snapshot.direction is Direction.MINIMIZE else {"direction": str(snapshot.direction)}),
        "value": trial_value(trial),
        **({"known": known} if known else {}),
        "sampler_seed": snapshot.spec["seed"],
        "data_hash": snapshot.data_hash,
        **({"searched": scale_fields(config)} if isinstance(config, TrainConfig) else {}),
        "anchors": dict(snapshot.anchors),
        **_code(snapshot.spec),
        **trial.user_attrs.get(MACHINE, {}),
    }


def _code(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what trains a configuration: a command, or the addresses of a function and of a class."""
    if spec.get("command") is not None:
        return {"command": plan_as_json(spec)}
    return {"train": spec["train"], "config": spec["config"]}


def exported_configuration(snapshot: Snapshot, trial: Trial) -> BaseModel:
    """Return the configuration of a trial, with the device, precision and compilation that the study resolved."""
    return configuration(with_arithmetic(study_from_spec(snapshot.spec), snapshot.arithmetic), trial)


def export_text(snapshot: Snapshot, trial: Trial, known: str = "", cool_down: int | None = None) -> str:
    """Return the YAML file of a trial.

    known: as in `provenance`. cool_down: the rung of a wsd run whose branch is exported instead; None: the run itself.

    Raises:
        Problem: the trial has no branch at this rung.
    """
    config = exported_configuration(snapshot, trial)
    if cool_down is None:
        return config_text(config, provenance(snapshot, trial, config, known))
    config = branch_config(snapshot, trial, config, cool_down)
    return config_text(config, branch_provenance(trial, cool_down, provenance(snapshot, trial, config, known)))


def changed_fields(snapshot: Snapshot, trial: Trial) -> list[tuple[str, Any, Any]]:
    """Return field, value of the first baseline and value of the trial for each field that differs."""
    study = study_from_spec(snapshot.spec)
    baseline = study.configured(study.file.first_baseline)
    before, changed = flat(baseline), changes(baseline, configuration(study, trial))
    paths = [path for path in changed if path in study.file.space] + [p for p in changed if p not in study.file.space]
    return [(path, before.get(path), changed[path]) for path in paths]
