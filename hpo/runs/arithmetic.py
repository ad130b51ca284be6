"""Resolve the fields of a study that are `auto` for this machine, and check that it has what a study resolved."""

from typing import Any

from hpo.errors import Problem
from hpo.study.spec import Study
from model.config import ARITHMETIC_FIELDS, TrainConfig
from model.errors import ConfigError
from model.section import flat


def resolve_arithmetic(study: Study) -> dict[str, Any]:
    """Return what device, precision, compilation and attention of a study's base stand for on this machine.

    Raises:
        Problem: this machine lacks what the base names.
    """
    from model.train.device import resolve  # imports torch

    assert isinstance(study.base, TrainConfig)
    try:
        fields = flat(resolve(study.base))
    except ConfigError as error:
        raise Problem(f"study {study.name}: {error}") from None
    return {path: fields[path] for path in ARITHMETIC_FIELDS}


def check_arithmetic(study: Study) -> None:
    """Check that this machine can train a study whose base has the resolved values.

    Raises:
        Problem: it cannot.
    """
    from model.train.device import resolve

    assert isinstance(study.base, TrainConfig)
    try:
        resolve(study.base)
    except ConfigError as error:
        fields = flat(study.base)
        values = ", ".join(f"{path} {fields[path]}" for path in ARITHMETIC_FIELDS)
        raise Problem(
            f"study {study.name}: all its trials train with the values that its first worker resolved, {values}, and "
            f"this machine cannot: {str(error).partition(';')[0]}; start the worker on a machine of the same kind, or "
            "create another study, for example with --set run.device=auto"
        ) from None
