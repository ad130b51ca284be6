"""The search space: the fields of a configuration that a study varies, and the range of each.

Some fields depend on a component: optimizer.beta2 exists only if optimizer.name is adamw. If a space searches the
name of a component, trials with different components have different parameters.
"""

from typing import Any, Literal, TypeVar, get_args, get_origin

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ValidationError

from hpo.config.validation import field_paths, nearest_path, number_remedy, union_members
from hpo.search.fit import unfit_values
from hpo.search.ranges import Choices, Entry, Space, is_inside
from model.section import flat, updated

M = TypeVar("M", bound=BaseModel)


def components_first(space: Space) -> list[str]:
    """Return the paths, names of components first, because the name decides which fields the component has."""
    return sorted(space, key=lambda path: not path.endswith(".name"))


def applies(config: BaseModel, path: str) -> bool:
    """Return whether a configuration has a field. For example, adamw has optimizer.beta2 and sgd does not."""
    return path in flat(config)


def field_type(section: BaseModel, path: str) -> type:
    """Return the Python type of a dotted field, such as float.

    Raises:
        ValueError: the configuration has no such field.
    """
    *parents, leaf = path.split(".")
    parent_section: Any = section
    for parent in parents:
        parent_section = getattr(parent_section, parent, None)
    if not isinstance(parent_section, BaseModel) or not applies(section, path):
        raise ValueError(_unknown(section, path))
    kinds = [_plain(kind) for kind in union_members(type(parent_section).model_fields[leaf].annotation)]
    return float if set(kinds) == {int, float} else kinds[0]


def _plain(annotation: Any) -> type:
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    return annotation if isinstance(annotation, type) else object


def _unknown(config: BaseModel, path: str) -> str:
    known = field_paths(type(config))
    section = path.rpartition(".")[0]
    if path in known:
        return f"no such field while {section}.name is {flat(config).get(f'{section}.name')!r}"
    return "no such field" + nearest_path(path, known)


def configs_with_field(base: BaseModel, space: Space, path: str) -> list[BaseModel]:
    """Return the base with each choice of the component of a field, without those that do not have the field."""
    name = f"{path.rpartition('.')[0]}.name"
    entry = space.get(name)
    if path == name or not isinstance(entry, Choices):
        configs = [base]
    else:
        configs = [config for choice in entry.choices if (config := _with(base, name, choice)) is not None]
    return [config for config in configs if applies(config, path)]


def _with(base: BaseModel, path: str, value: Any) -> BaseModel | None:
    """Return the base with one field replaced, None if the result is not valid."""
    try:
        return updated(base, {path: value})
    except ValidationError:
        return None


def unconditional(base: BaseModel, space: Space) -> dict[str, BaseDistribution]:
    """Return the distributions of the parameters that every trial has, regardless of its components."""
    distributions = {}
    for path in components_first(space):
        name = space.get(f"{path.rpartition('.')[0]}.name")
        n_components = len(name.choices) if isinstance(name, Choices) and not path.endswith(".name") else 1
        configs = configs_with_field(base, space, path)
        if len(configs) == n_components:
            distributions[path] = space[path].distribution(field_type(configs[0], path))
    return distributions


def space_problems(base: BaseModel, space: Space) -> list[str]:
    """Return the problems of a space. To find them, build configurations with both ends of every range."""
    problems: list[str] = []
    all_kinds = {p: field_type(configs[0], p) for p in space if (configs := configs_with_field(base, space, p))}
    for path in components_first(space):
        configs = configs_with_field(base, space, path)
        kinds = {field_type(config, path) for config in configs}
        if not configs:
            problems.append(f"space.{path}: {_unknown(base, path)}")
        elif len(kinds) > 1:
            problems.append(f"space.{path}: must have the same type with every choice of the name; search fewer names")
        elif wrong := _misfit(path, space[path], kinds.pop()):
            problems += wrong
        else:
            problems += [line for config in configs for line in unfit_values(config, space, path, all_kinds)]
    return list(dict.fromkeys(problems))


def _misfit(path: str, entry: Entry, kind: type) -> list[str]:
    """Return the problems of an entry that does not fit the type of its field."""
    key = f"space.{path}"
    if isinstance(entry, Choices):
        wrong = [c for c in entry.choices if kind in (int, float) and isinstance(c, bool | str)]
        return [f"{key}.choices: must be a number, got {c!r}{number_remedy(c)}" for c in wrong]
    if kind not in (int, float):
        return [f"{key}: must be choices, because the field is not a number"]
    if kind is int and entry.complement_log:
        return [f"{key}.complement_log: must be omitted, because the field is a whole number"]
    if kind is int and entry.step is not None and not float(entry.step).is_integer():
        return [f"{key}.step: must be a whole number, got {entry.step}"]
    if kind is int and entry.prior is not None and not float(entry.prior.at).is_integer():
        return [f"{key}.prior.at: must be a whole number, got {entry.prior.at}"]
    return []


def closed_ends(base: BaseModel, space: Space) -> dict[str, list[str]]:
    """Return the ends of ranges, low or high, that are also the limit of the field. A wider range is not possible
    there."""
    closed: dict[str, list[str]] = {}
    for path, entry in space.items():
        numbers = [entry.low, entry.high] if not isinstance(entry, Choices) else list(entry.choices)
        if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            continue
        low, high = min(numbers), max(numbers)  # type: ignore[type-var]
        for config in configs_with_field(base, space, path)[:1]:
            step = 1 if field_type(config, path) is int else 1e-9
            beyond = {"low": low - step, "high": high + step}  # type: ignore[operator]
            if ends := [end for end, value in beyond.items() if _with(config, path, value) is None]:
                closed[path] = ends
    return closed


def suggest_values(trial: optuna.Trial, base: BaseModel, space: Space) -> dict[str, Any]:
    """Return a value for each field of the space that the configuration of the trial has, by dotted path."""
    config, values = base, {}
    for path in components_first(space):
        if not applies(config, path):
            continue
        values[path] = _draw(trial, path, space[path].distribution(field_type(config, path)))
        if path.endswith(".name"):
            config = updated(config, {path: values[path]})
    return values


def _draw(trial: optuna.Trial, path: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(path, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=width, log=log):
            return trial.suggest_float(path, low, high, step=width, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(path, choices)
    raise AssertionError(distribution)


def params_in_range(config: BaseModel, space: Space) -> dict[str, tuple[Any, BaseDistribution]]:
    """Return the parameters of a configuration that are inside their ranges, with their distributions.

    A baseline may have values outside the space. Optuna cannot store such values as parameters.
    """
    fields = flat(config)
    params = {
        p: (fields[p], space[p].distribution(field_type(config, p))) for p in components_first(space) if p in fields
    }
    return {path: (value, kind) for path, (value, kind) in params.items() if is_inside(kind, value)}
