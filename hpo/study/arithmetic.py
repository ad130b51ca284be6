"""What the last bits of a study's losses depend on besides its definition: device, precision, compilation, attention,
and the version of the trainer's arithmetic, its engine.

The first worker of a new study resolves the fields that are `auto`. The study stores the result, and all its trials
use it. A study of an earlier version has no such record, so each worker resolves the fields for its own machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.errors import Problem
from hpo.study.engines import Attrs, engines_of, is_gpt
from hpo.study.spec import Study, StudyFile
from model.config import ARITHMETIC_FIELDS, ENGINE
from model.section import flat, updated


def has_arithmetic(study: Study) -> bool:
    """Return whether the trials of a study are trained by the GPT trainer, whose arithmetic is known."""
    return is_gpt({"config": study.file.config, "train": study.file.train})


def with_arithmetic(study: Study, resolved: Mapping[str, Any] | None) -> Study:
    """Return a study whose base has the resolved values of the fields that depend on the machine.

    resolved: as the study stores it; None or empty: nothing is resolved.

    Raises:
        Problem: another program has changed the stored values, so that they are not valid.
    """
    if not resolved or not has_arithmetic(study):
        return study
    values = {path: resolved[path] for path in ARITHMETIC_FIELDS if path in resolved}
    if values.get("run.compile") == "on" and _may_have_experts(study.file):
        del values["run.compile"]  # auto depends on the trial: not every machine compiles a mixture of experts
        values.pop("run.graph_numbers", None)
    try:
        return replace(study, base=updated(study.base, values))
    except ValidationError as error:
        raise Problem(f"study {study.name}: its stored {values} is not valid: {error.errors()[0]['msg']}") from None


def with_resolved_values(config: BaseModel, resolved: Mapping[str, Any] | None) -> BaseModel:
    """Return a configuration in which the resolved values replace `auto`, to compare it with an exported one.

    resolved: as in `with_arithmetic`.
    """
    fields = flat(config)
    unset = ("auto", ())
    return updated(config, {path: value for path, value in (resolved or {}).items() if fields.get(path) in unset})


def _may_have_experts(file: StudyFile) -> bool:
    """Return whether a trial may have another model than the base."""
    values: Iterable[Mapping[str, Any]] = (*file.baseline, *(file.arms or {}).values())
    return "model.name" in file.space or any("model.name" in given for given in values)


def with_earlier_engines(machine: Mapping[str, Any], before: Attrs) -> dict[str, Any]:
    """Return the record of a machine that continues a trial, with the engines that trained the trial before.

    before: attributes of the trial.
    """
    engines = [*engines_of(before), ENGINE]
    several = list(dict.fromkeys(engines))
    return {**machine, **({"engines": several} if len(several) > 1 else {})}


def other_engines(trials: Iterable[Attrs]) -> list[int]:
    """Return the engines of trials that are not the engine of this program, in ascending order."""
    return sorted({engine for attrs in trials for engine in engines_of(attrs)} - {ENGINE})
