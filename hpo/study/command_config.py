"""The configuration of a command: a class whose fields are the parameters of its study file."""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, create_model

from hpo.config.permission import COMMAND
from hpo.search.ranges import Choices, Entry, Space
from hpo.study.command import SEED, placeholders
from model.section import Section, flatten


def command_config(
    command: Sequence[str],
    env: Mapping[str, str],
    base: Mapping[str, Any],
    space: Space,
    arms: Iterable[Mapping[str, Any]] = (),
) -> type[BaseModel]:
    """Return the class of the configurations of a command.

    Its fields are those of the base, of the space and of the arms, and `seed` if the command mentions {seed}. Fields
    are None until the base or a trial sets them. Equal fields give the same class.
    """
    given = flatten(base)
    kinds: dict[str, Any] = {path: _kind([value]) for path, value in given.items()}
    for arm in arms:
        kinds |= {path: _wider(kinds.get(path), _kind([value])) for path, value in flatten(arm).items()}
    kinds |= {path: _wider(kinds.get(path), _entry_kind(entry)) for path, entry in space.items()}
    kinds = {path: Any if kind is None else kind for path, kind in kinds.items()}
    if SEED in placeholders([*command, *env.values()]):
        kinds[SEED] = int
    return _section("CommandConfig", tuple(kinds.items()))


def complete_command(given: Any) -> Any:
    """Return the content of a study file with the addresses that a command has instead of `train` and `config`.

    Without a value in its base for each parameter of the space, a command has no baseline by default.
    """
    if not isinstance(given, dict) or given.get("command") is None:
        return given
    base, space = given.get("base", {}), given.get("space", {})
    named = {path for path, value in flatten(base).items() if value is not None} if isinstance(base, dict) else set()
    complete = isinstance(space, dict) and space.keys() <= named
    return COMMAND | ({} if complete else {"baseline": ()}) | given


def name_problem(path: str) -> str | None:
    """Return the rule that the name of a parameter breaks, None for a valid name."""
    parts = path.split(".")
    if not all(part.replace("-", "_").isidentifier() for part in parts):
        return "must be a name of letters, digits, '_' and '-'"
    if any(part.startswith("_") for part in parts):
        return "must be a name that does not start with '_'"
    if any(part.startswith("model_") and hasattr(BaseModel, part) for part in parts):
        return "must be another name, because pydantic uses this one"
    if len(parts) > 1 and parts[-1] == "name":
        return "must be another name than *.name; give it in the command, as --model.name={model}"
    return None


@functools.cache
def _section(name: str, kinds: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    """Return a section with these dotted fields. A field `a.b` is the field `b` of the section `a`."""
    fields: dict[str, Any] = {}
    for path, kind in kinds:
        head, dot, _ = path.partition(".")
        if not dot:
            fields[head] = (kind if kind is Any else kind | None, 0 if path == SEED else None)
        elif head not in fields:
            inner = ((key.removeprefix(f"{head}."), other) for key, other in kinds if key.startswith(f"{head}."))
            section = _section(head, tuple(inner))
            fields[head] = (section, section())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a parameter may be called `json` or `copy`
        return create_model(name, __base__=Section, **fields)


def _entry_kind(entry: Entry) -> Any:
    if isinstance(entry, Choices):
        return _kind(entry.choices)
    numbers = [entry.low, entry.high] + ([] if entry.step is None else [entry.step])
    return int if all(isinstance(number, int) for number in numbers) and not entry.complement_log else float


def _kind(values: Sequence[Any]) -> Any:
    """Return the type that all values have, Any if they have several, None if no value says it."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return None
    if kinds <= {int, float}:
        return int if kinds == {int} else float if kinds == {float} else int | float
    return kinds.pop() if len(kinds) == 1 and kinds <= {bool, str} else Any


def _wider(one: Any, other: Any) -> Any:
    """Return the type of a parameter that is given in two places: a number that is whole only by chance is a float."""
    if one is None or other is None or one == other:
        return one if other is None else other
    return float if {one, other} <= {int, float, int | float} else Any
