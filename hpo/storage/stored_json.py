"""Read the attributes of a study within limits, because everyone who can write the storage can change them."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hpo.storage.attributes import (
    ANCHORS,
    ARITHMETIC,
    BUDGET,
    COORDINATES,
    DATA_HASH,
    DATA_ROWS,
    PROBE_PLAN,
    PROTOCOL,
    SPEC,
    STARTED,
    STUDY_STATE,
    UID,
)

MAX_LENGTH = 2**24  # characters of an attribute
MAX_VALUES = 500_000  # of an attribute; a study file has at most a fifth of it, parts of which are stored twice
MAX_COUNT = 2**53  # largest whole number of a budget or of rungs

# Attribute -> types of its value
_TYPES: dict[str, tuple[type, ...]] = {
    SPEC: (dict,),
    BUDGET: (dict, type(None)),
    ANCHORS: (dict, type(None)),
    DATA_ROWS: (dict, type(None)),
    ARITHMETIC: (dict, type(None)),
    PROBE_PLAN: (dict, type(None)),
    COORDINATES: (dict,),
    DATA_HASH: (str, type(None)),
    UID: (str,),
    STUDY_STATE: (str,),
    PROTOCOL: (int,),
    STARTED: (int, float),
}
# Key of a definition -> types of its value. The first keys are in every definition.
_REQUIRED: dict[str, tuple[type, ...]] = {"name": (str,), "objective": (str,), "rungs": (int,), "budget": (dict,)}
_REQUIRED |= {"space": (dict,), "base": (dict,), "seed": (int,), "train": (str,), "config": (str,)}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    **{
        key: (dict, type(None))
        for key in ("arms", "targets", "milestones", "about", "limits", "sampler", "pruner", "closed")
    },
    **{key: (list, type(None)) for key in ("seeds", "baseline", "objectives")},
    **dict.fromkeys(("keep_best", "baseline_seeds"), (int,)),
    "rung_tokens": (int, float, type(None)),
    "direction": (str,),
    "probe": (str, dict),
}
_BUDGET: dict[str, tuple[type, ...]] = {
    **{key: (int, type(None)) for key in ("trials", "tokens")},
    "hours": (int, float, type(None)),
    "target": (str, type(None)),
}


def parse_attributes(rows: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], list[str]]:
    """Return the attributes that are valid, and the problems of the others that hpo stores.

    rows: keys and values as JSON.
    """
    attrs, problems = {}, []
    for key, text in rows:
        try:
            value = _parsed(text)
            _check(key, value)
            attrs[key] = value
        except ValueError as error:
            if key.startswith("hpo:"):
                problems.append(f"the attribute {key} in the storage {error}")
    return attrs, problems


def _parsed(text: Any) -> Any:
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ValueError(f"must be text of at most {MAX_LENGTH:,} characters")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    if _count(value) > MAX_VALUES:
        raise ValueError(f"must have at most {MAX_VALUES:,} values")
    return value


def _count(value: Any) -> int:
    """Return the number of values, at most a few more than MAX_VALUES."""
    n, waiting = 0, [value]
    while waiting and n <= MAX_VALUES:
        inner = waiting.pop()
        n += 1
        if isinstance(inner, dict | list):
            waiting.extend(inner.values() if isinstance(inner, dict) else inner)
    return n


def _check(key: str, value: Any) -> None:
    """Raise ValueError if an attribute does not have the form that hpo stores."""
    _check_type("value", value, _TYPES.get(key, (object,)))
    if key == SPEC:
        for name, types in (_REQUIRED | _OPTIONAL).items():
            if name in value or name in _REQUIRED:
                _check_type(name, value.get(name), types)
        for name in ("space", "arms"):
            for entry, inner in (value.get(name) or {}).items():
                _check_type(f"{name}.{entry}", inner, (dict,))
        for name in ("targets", "milestones"):
            _check_numbers(name, value.get(name) or {})
        if not 1 <= value["rungs"] <= MAX_COUNT:
            raise ValueError(f"must have rungs of at least 1, got {value['rungs']!r:.40}")
        _check_budget(value["budget"])
    elif key == BUDGET:
        _check_budget(value or {})
    elif key == ANCHORS:
        _check_numbers("value", value or {})


def _check_budget(budget: Mapping[str, Any]) -> None:
    for name, types in _BUDGET.items():
        _check_type(f"budget.{name}", budget.get(name), types)


def _check_numbers(key: str, values: Mapping[str, Any]) -> None:
    for name, number in values.items():
        _check_type(f"{key}.{name}", number, (int, float, type(None)))


def _check_type(key: str, value: Any, types: tuple[type, ...]) -> None:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
        raise ValueError(f"has an invalid {key:.80}: {value!r:.40}")
    if isinstance(value, int | float) and (abs(value) > MAX_COUNT or math.isnan(value)) and key != "seed":
        raise ValueError(f"has an invalid {key:.80}: {value!r:.40}")
