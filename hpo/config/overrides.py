"""Fields of a configuration that are set on the command line with --set."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config.validation import explain_errors, nearest_path
from hpo.config.yaml import parse_value
from hpo.errors import Problem
from model.section import flat, updated

M = TypeVar("M", bound=BaseModel)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return --set path=value arguments as a mapping from path to value.

    Raises:
        Problem: an argument is not of this form.
    """
    values = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(part.isidentifier() for part in path.strip().split(".")):
            raise Problem(f"--set: must be path=value, for example optimizer.lr=3e-4, got {override!r}")
        values[path.strip()] = parse_value(text)
    return values


def apply_overrides(config: M, overrides: Sequence[str]) -> M:
    """Return a configuration with the fields of --set path=value arguments replaced.

    Raises:
        Problem: an argument is not of this form, or the result is not a valid configuration.
    """
    values = parse_overrides(overrides)
    try:
        config_with_overrides = updated(config, values)
    except ValidationError as error:
        problems = explain_errors(error, type(config))
        raise Problem(*(f"--set {key}: {rule}" if key else f"--set: {rule}" for key, rule in problems)) from None
    # A class of the user may ignore unknown fields without an error.
    dropped = [
        path
        for path in values
        if not config_with_overrides.model_extra and not _is_field(path, flat(config_with_overrides))
    ]
    if dropped:
        raise Problem(
            *(f"--set {path}: no such field{nearest_path(path, flat(config_with_overrides))}" for path in dropped)
        )
    return config_with_overrides


def _is_field(path: str, fields: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{field}.") or field.startswith(f"{path}.") for field in fields)
