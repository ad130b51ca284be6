"""Read and check study files. All problems of a file are reported together, before anything runs."""

import itertools
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.config.discovery import find_study, is_ledger, shipped_folder
from hpo.config.files import resolve_base, stated_fields
from hpo.config.overrides import apply_overrides, parse_overrides
from hpo.config.permission import named_code, permit
from hpo.config.validation import error_messages
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem
from hpo.search.ranges import Space, discrete_values
from hpo.study import arms, checks
from hpo.study.command_checks import command_problems
from hpo.study.config_class import config_class
from hpo.study.objections import find_objections
from hpo.study.places import absolute_places
from hpo.study.spec import DEFAULT_CONFIG, Study, StudyFile
from model.section import flat, updated

M = TypeVar("M", bound=BaseModel)


def load_study(
    study: str, overrides: Sequence[str] = (), budget: Mapping[str, Any] | None = None, seed: int | None = None
) -> Study:
    """Return the study of a study file.

    study: name or path of the file. overrides: path=value, fields of the base. budget: keys of `budget` that replace
    those of the file; None keeps the key of the file. seed: replaces the seed of the sampler.

    Raises:
        Problem: the file is missing or invalid; the message names every problem.
    """
    path = find_study(study)
    if is_ledger(path):
        check = shlex.join(["hpo", "check", study])
        raise Problem(f"{path}: must be a study, got a ledger of claims; use `{check}` to validate the ledger")
    tree = with_limits(_read_tree(path), budget, seed)
    shipped = seed is None and path == shipped_folder() / f"{study}.yaml"
    return study_of_tree(tree, path.stem, str(path), overrides, shipped)


def with_limits(tree: Mapping[str, Any], budget: Mapping[str, Any] | None, seed: int | None) -> dict[str, Any]:
    """Return the content of a study file with other limits and another seed; arguments as of `load_study`."""
    tree = dict(tree)
    limits = {key: value for key, value in (budget or {}).items() if value is not None}
    if limits and isinstance(tree.get("budget", {}), dict):
        tree["budget"] = {**tree.get("budget", {}), **limits}
    if seed is not None:
        tree["seed"] = seed
    return tree


def study_of_tree(
    tree: Mapping[str, Any], name: str, source: str, overrides: Sequence[str] = (), shipped: bool = False
) -> Study:
    """Return the study with the content of a study file; source: the file in messages. overrides: as of `load_study`.

    Raises:
        Problem: the content is invalid; the message names every problem.
    """
    try:
        file = StudyFile.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"{source}: {line}" for line in error_messages(error, StudyFile))) from None
    base = _load_base(source, file, overrides)
    arms_problems = arms.arms_problems(file, base, tree) if file.arms is not None else []
    problems = [f"{source}: {line}" for line in arms_problems or checks.study_file_problems(file, base)]
    if problems:
        raise Problem(*problems)
    objections = tuple(f"{source}: {line}" for line in find_objections(file, base))
    stated = _leaves(base, parse_overrides(overrides) if shipped else _stated(file, base, overrides))
    if file.arms is not None:
        base = arms.with_common_rungs(file, base)
        file = arms.with_arms_as_space(file, base)
    return Study(name, source, file, base, objections, stated, shipped)


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text("utf-8"))
    except YamlError as error:
        raise Problem(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise Problem(f"{path}: must be text in UTF-8, got other bytes") from None
    except OSError as error:
        raise Problem(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(tree, dict):
        got = {list: "a list", type(None): "nothing"}.get(type(tree), repr(tree)[:40])
        raise Problem(f"{path}: must be a mapping with the keys {', '.join(StudyFile.model_fields)}, got {got}")
    return tree


def _load_base(source: str, file: StudyFile, overrides: Sequence[str]) -> BaseModel:
    """Return the base with overrides, and with rung marks that all trials of the space reach exactly.

    The user has named the file, so that its code may be imported and its command may run.
    """
    if problems := command_problems(file):
        raise Problem(*(f"{source}: {line}" for line in problems))
    try:
        permit(named_code(file.model_dump(include={"train", "config", "command", "env"})).values())
        kind = config_class(file)
        base = resolve_base(file.base, kind)
    except Problem as problem:
        raise Problem(*(f"{source}: {line}" for line in problem.lines)) from None
    except ValidationError as error:
        raise Problem(*(f"{source}: {line}" for line in error_messages(error, kind, "base"))) from None
    base = apply_overrides(base, overrides)
    if file.config != DEFAULT_CONFIG:
        return base
    base = updated(base, absolute_places(flat(base)))
    return updated(base, {"run.align": space_alignment(base, file.space)})


def _stated(file: StudyFile, base: BaseModel, overrides: Sequence[str]) -> list[str]:
    return [*stated_fields(file.base, base), *parse_overrides(overrides)]


def _leaves(base: BaseModel, prefixes: Iterable[str]) -> frozenset[str]:
    """Return the dotted fields of a configuration that are given, or that are in a section that is given."""
    given = [f"{prefix}." for prefix in prefixes]
    return frozenset(path for path in flat(base) if f"{path}.".startswith(tuple(given)))


def space_alignment(base: BaseModel, space: Space) -> int:
    """Return the number of tokens to whose multiples the marks of rungs are rounded, so that all trials reach them.

    This number is the least common multiple of the tokens of an update of all trials of the space. If it is longer than
    a rung, the result is 1: each trial then reports at its first update past a mark.
    """
    factors = []
    for path in ("run.batch_size", "run.grad_accum", "model.context"):
        entry = space.get(path)
        values = discrete_values(entry, int) if entry else [flat(base)[path]]
        # not len(), which fails for ranges with more than 2**63 values
        if not values or values[1000:] or not all(isinstance(v, int) and v > 0 for v in values):
            return 1
        factors.append(values)
    spacing = flat(base)["run.tokens"] / flat(base)["run.rungs"]
    common = 1
    for combination in itertools.product(*factors):
        common = math.lcm(common, math.prod(combination))
        if common > spacing:
            return 1
    return common
