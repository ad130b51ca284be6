"""Resolve the fields of a study that are `auto` for this machine, and check that it has what a study resolved."""

from typing import Any

from pydantic import BaseModel

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


def idle_device_note(config: BaseModel) -> str:
    """Return a note that a configuration trains on the CPU, as its study did, beside a faster device; "" otherwise."""
    if not isinstance(config, TrainConfig) or config.run.device != "cpu":
        return ""
    from model.train.device import best_device

    best = best_device()
    return "" if best == "cpu" else f"note: run.device is cpu; `--set run.device={best}` trains on the {best} device"
