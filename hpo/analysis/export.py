"""The configuration of a trial, complete and trainable, with where it comes from."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.snapshot import MACHINE, SET, Snapshot, best_trial, ended, find, snapshot, value
from hpo.errors import Problem
from hpo.runs.run_dir import config_text
from hpo.storage.trials import SPEC, Opened, Trial, study_attrs, study_ids
from hpo.study.spec import Study, from_spec
from model.section import flat

UNCONFIRMED = "the search's best, not confirmed: `hpo confirm` says whether it is better than the baseline"


def preferred(at: Opened, of: Snapshot) -> tuple[Trial, str]:
    """Return the trial to keep, and in words what is known of it: the best that was confirmed, else the search's best.

    Raises:
        NothingFeasible: no trial is complete.
    """
    if of.spec.get("arms"):
        raise Problem(
            f"--trial: required, since {of.name} has arms: their runs differ by luck; `hpo trials` lists them"
        )
    found = _confirmation(at, of)
    if found is None:
        return best_trial(of), UNCONFIRMED
    from hpo.evidence.paired import compare  # scipy, which few exports need

    better = [row for row in compare(found) if row.verdict == "better" and row.n == len(found.spec["seeds"])]
    if not better:
        best = best_trial(of)
        if best.number not in found.spec["about"]["trials"].values():
            return best, f"the search's best, which was not among those that {found.name} ran again"
        return best, f"the search's best, which {found.name} did not find better than the baseline"
    least = min(better, key=lambda row: row.mean or 0.0)
    return find(of, found.spec["about"]["trials"][least.arm]), f"confirmed better than the baseline by {found.name}"


def _confirmation(at: Opened, of: Snapshot) -> Snapshot | None:
    """Return the latest study that confirmed this one and is over."""
    for name, _ in sorted(study_ids(at).items(), key=lambda item: -item[1]):
        spec = study_attrs(at, study_ids(at)[name]).get(SPEC, {})
        if spec.get("about", {}).get("confirms") == of.name and ended(found := snapshot(at, name)):
            return found
    return None


def picked(of: Snapshot, number: int | None) -> Trial:
    """Return trial `number`, the best one where it is None."""
    if number is None:
        return best_trial(of)
    trial = find(of, number)
    if not trial.params and SET not in trial.user_attrs:
        raise Problem(f"trial: {number} has no configuration yet; it is {trial.state.value}")
    return trial


def configuration(study: Study, trial: Trial) -> BaseModel:
    """Return what a trial trained."""
    fixed: Mapping[str, Any] | None = trial.user_attrs.get(SET)
    return study.configured(trial.params if fixed is None else fixed)


def provenance(of: Snapshot, trial: Trial, known: str = "") -> dict[str, Any]:
    """Return study, trial, value, seeds, versions, commit and data hash."""
    return {
        "study": of.name,
        "trial": trial.number,
        "state": trial.state.value,
        "objective": of.objective,
        "value": value(trial),
        **({"known": known} if known else {}),
        "sampler_seed": of.spec["seed"],
        "data_hash": of.data_hash,
        "anchors": dict(of.anchors),
        "train": of.spec["train"],
        "config": of.spec["config"],
        **trial.user_attrs.get(MACHINE, {}),
    }


def text(of: Snapshot, trial: Trial, known: str = "") -> str:
    """Return the YAML file of a trial; known: in words, what makes it the one to keep."""
    return config_text(configuration(from_spec(of.spec), trial), provenance(of, trial, known))


def changes(of: Snapshot, trial: Trial) -> list[tuple[str, Any, Any]]:
    """Return (field, baseline's value, this trial's value) for each field of the configuration that differs."""
    study = from_spec(of.spec)
    first = study.file.baseline[0] if study.file.baseline else {}
    before, after = flat(study.configured(first)), flat(configuration(study, trial))
    paths = [path for path in after if path in study.file.space] + [p for p in after if p not in study.file.space]
    return [(path, before.get(path), after[path]) for path in paths if before.get(path) != after[path]]
