"""Compare the JSON schema of study files with what checks them."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import TypeAdapter, ValidationError

from hpo.study.schema import study_schema
from hpo.study.spec import StudyFile
from model.config import TrainConfig

NUMBERS: dict[str, Any] = {"integer": int, "number": float, "boolean": bool}
# Rules that no schema has: between several keys, or about numbers that JSON lacks
BETWEEN_KEYS = ("value_error", "finite_number")


@functools.cache
def study_validator() -> Draft7Validator:
    schema = study_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def assert_schema_agrees(tree: Any, accepted: bool) -> None:
    """Assert that the schema accepts an accepted study file, and refuses a file with a wrong key, type or bound."""
    errors = list(study_validator().iter_errors(tree))
    if accepted:
        assert [error for error in errors if not _is_conversion(error)] == []
    elif wrong := list(_wrong_keys(tree)):
        assert errors, wrong


def _is_conversion(error: SchemaError) -> bool:
    """Return whether a value only has another type, to which the check converts it, such as a quoted number."""
    if error.context:
        branches: dict[Any, list[SchemaError]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        return any(all(map(_is_conversion, branch)) for branch in branches.values())
    if error.validator != "type" or error.validator_value not in NUMBERS:
        return False
    try:
        TypeAdapter(NUMBERS[error.validator_value]).validate_python(error.instance)
    except ValidationError:
        return False
    return True


def _wrong_keys(tree: Any) -> list[Any]:
    """Return the problems of single keys of a study file of the GPT trainer."""
    problems = _problems(StudyFile, tree)
    if isinstance(tree, Mapping) and not problems and not tree.keys() & {"config", "command"}:
        base = tree.get("base", {})
        problems += _problems(TrainConfig, base) if "from" not in base else []
    return problems


def _problems(kind: Any, tree: Any) -> list[Any]:
    try:
        kind.model_validate(tree)
    except ValidationError as error:
        return [e for e in error.errors(include_url=False) if e["type"] not in BETWEEN_KEYS and _is_json(e["input"])]
    return []


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
