"""Whether the values of a space fit: alone in the base, or together with values of other fields of the space.

For example, n_embd must be a multiple of n_head. If a space searches both, n_head 6 may fit no n_embd but one.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.validation import explain_errors
from hpo.search.ranges import Choices, Entry, Space, discrete_values, spaced_values
from model.section import flat, updated

MAX_COMBINATIONS = 1_000  # of other fields that are tried with one value; a combination takes about 0.1 ms
POINTS = 5  # values of a continuous range that are tried, both ends included
_RULES = ("value_error", "assertion_error")  # errors of rules that may concern several fields

Kinds = Mapping[str, type]  # path -> type of the field


def unfit_values(config: BaseModel, space: Space, path: str, kinds: Kinds) -> list[str]:
    """Return the problems of the ends of a range, or of the choices, of one field.

    A value is refused if the field does not accept it, or if it fits no combination of the other fields of the space.
    Where there are too many combinations, a range is refused only if no combination with any of its values was found.

    config: the base with one choice of the component of the field.
    """
    entry = space[path]
    problems, unproven = [], []
    for end, value in _ends(entry):
        try:
            updated(config, {path: value})
        except ValidationError as error:
            lines = [f"space.{path}.{end}: {rule}" for rule in _rules(error, config, path, value)]
            if not _may_fit(error):
                problems += lines
                continue
            found, proven = _search(config, space, {path: (value,)}, kinds, error)
            if len(space) > 1:
                lines = [f"{line}; no other values in the space make it valid" for line in lines]
            if not found and proven:
                problems += lines
            elif not found:
                unproven += lines
    if unproven and not problems:
        try:
            updated(config, {path: _ends(entry)[0][1]})
        except ValidationError as error:
            if not _search(config, space, {path: _values(entry, kinds[path])[0]}, kinds, error)[0]:
                problems += unproven
    return problems


def _ends(entry: Entry) -> list[tuple[str, Any]]:
    if isinstance(entry, Choices):
        return [("choices", choice) for choice in entry.choices]
    return [("low", entry.low), ("high", entry.high)]


def _rules(error: ValidationError, config: BaseModel, path: str, value: Any) -> Iterator[str]:
    for key, rule in explain_errors(error, type(config)):
        rule = rule if key in ("", path) else f"{key} {rule}"
        yield rule if "got" in rule else f"{rule}, got {value!r}"


def _may_fit(error: ValidationError) -> bool:
    """Return whether another value of another field may resolve all errors."""
    return all(problem["type"] in _RULES for problem in error.errors(include_url=False))


def _search(
    config: BaseModel, space: Space, fixed: Mapping[str, Sequence[Any]], kinds: Kinds, error: ValidationError
) -> tuple[bool, bool]:
    """Search a valid combination; return whether one was found, and whether there is none if it was not.

    fixed: values of the field in question. error: of the first of these values in the base.
    """
    ((own, values),) = fixed.items()
    pools, whole = {}, {}
    for path in space:
        if path in kinds and path not in (own, f"{own.rpartition('.')[0]}.name"):
            pools[path], whole[path] = _values(space[path], kinds[path])
    relevant = {p: pool for p, pool in pools.items() if _changes_error(config, {own: values[0]}, p, pool, error)}
    for varied in (relevant, pools):
        if any(_errors(config, combination) is None for combination in _combinations({**fixed, **varied})):
            return True, True
    n_combinations = math.prod(map(len, [values, *relevant.values()]))
    return False, all(whole[path] for path in relevant) and n_combinations <= MAX_COMBINATIONS


def _changes_error(
    config: BaseModel, wrong: Mapping[str, Any], path: str, pool: Sequence[Any], error: ValidationError
) -> bool:
    """Return whether another field changes the error of a value, so that the rule concerns this field too."""
    sample = pool[:: -(-len(pool) // POINTS)]
    return any(_errors(config, {**wrong, path: value}) != _texts(error) for value in [*sample, pool[-1]])


def _errors(config: BaseModel, values: Mapping[str, Any]) -> list[str] | None:
    """Return the errors of a configuration with these values, None if it is valid."""
    try:
        _configured(config, values)
    except ValidationError as error:
        return _texts(error)
    return None


def _texts(error: ValidationError) -> list[str]:
    return [f"{problem['loc']} {problem['msg']}" for problem in error.errors(include_url=False)]


def _values(entry: Entry, kind: type) -> tuple[Sequence[Any], bool]:
    """Return values of an entry to try, and whether these are all of its values."""
    values = discrete_values(entry, kind)
    if values is not None and not values[MAX_COMBINATIONS:]:
        return values, True
    return spaced_values(entry, POINTS, kind), False


def _combinations(pools: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield all combinations, or the corners and random ones if there are more than MAX_COMBINATIONS."""
    if math.prod(map(len, pools.values())) <= MAX_COMBINATIONS:
        chosen: Iterator[Sequence[Any]] = itertools.product(*pools.values())
    else:
        corners = itertools.product(*((values[0], values[-1]) for values in pools.values()))
        draw = random.Random(0)
        drawn = ([draw.choice(values) for values in pools.values()] for _ in range(MAX_COMBINATIONS // 2))
        chosen = itertools.chain(itertools.islice(corners, MAX_COMBINATIONS // 2), drawn)
    return (dict(zip(pools, values, strict=True)) for values in chosen)


def _configured(config: BaseModel, values: Mapping[str, Any]) -> BaseModel:
    """Return a configuration with these values, without those of fields that its components do not have.

    Raises:
        pydantic.ValidationError: the result is not valid.
    """
    config = updated(config, {path: value for path, value in values.items() if path.endswith(".name")})
    fields = flat(config)
    return updated(config, {path: value for path, value in values.items() if path in fields})
