"""Fields of a configuration given on the command line."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config.validation import explain_errors, nearest_path
from hpo.config.yaml import parse_value
from hpo.errors import Problem
from model.section import flat, updated

M = TypeVar("M", bound=BaseModel)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return --set path=value pairs as a mapping.

    Raises:
        Problem: one has no =.
    """
    values = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(part.isidentifier() for part in path.strip().split(".")):
            raise Problem(f"--set: must be path=value, such as optimizer.lr=3e-4, got {override!r}")
        values[path.strip()] = parse_value(text)
    return values


def apply_overrides(config: M, overrides: Sequence[str]) -> M:
    """Return a configuration with --set path=value pairs in place.

    Raises:
        Problem: one has no =, or the result is not a configuration.
    """
    values = parse_overrides(overrides)
    try:
        found = updated(config, values)
    except ValidationError as error:
        problems = explain_errors(error, type(config))
        raise Problem(*(f"--set {key}: {rule}" if key else f"--set: {rule}" for key, rule in problems)) from None
    # A class of the user's own may drop what it does not know without a word.
    dropped = [path for path in values if not found.model_extra and not _is_field(path, flat(found))]
    if dropped:
        raise Problem(*(f"--set {path}: no such field{nearest_path(path, flat(found))}" for path in dropped))
    return found


def _is_field(path: str, fields: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{field}.") or field.startswith(f"{path}.") for field in fields)
