"""Factors: the changes between two configurations, each under a name, to be tried one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.analysis.export import configuration, picked
from hpo.analysis.snapshot import Snapshot
from hpo.config.files import read_config
from hpo.config.validation import messages, nearest
from hpo.errors import Problem
from hpo.study.spec import Study, seed_path
from model.data.corpus_base import TRAINING_FIELDS
from model.section import flat, updated

Factors = dict[str, dict[str, Any]]  # name -> dotted field -> its value in the target

# What is no change: they leave the curve alone, or are the comparison's own.
RUN_SETTINGS = (
    "run.align",
    "run.test",
    "run.device",
    "run.keep_checkpoints",
    "run.diagnostics",
    "run.tokens",
    "run.rungs",
)


def named_configuration(snapshot: Snapshot, study: Study, word: str, option: str) -> BaseModel:
    """Return the configuration that the command line calls `baseline`, `best`, by a trial's number or by its file.

    Raises:
        Problem: there is none.
    """
    if word == "baseline":
        return study.configured(next(iter(study.file.baseline), {}))
    if word == "best" or word.isdecimal():
        return configuration(study, picked(snapshot, None if word == "best" else int(word)))
    if not word.endswith((".yaml", ".yml")):
        raise Problem(f"{option}: must be baseline, best, the number of a trial, or a file, got {word!r}")
    kind = type(study.base)
    try:
        return kind.model_validate(read_config(Path(word))[0])
    except ValidationError as error:
        raise Problem(*(f"{option} {word}: {line}" for line in messages(error, kind))) from None


def find_factors(before: BaseModel, after: BaseModel, groups: Sequence[str]) -> Factors:
    """Return the changes from one configuration to another.

    groups: NAME=FIELD,FIELD puts changes under one name. What comes with another component goes with its name.

    Raises:
        Problem: there is no change, a group has a field that does not change, or the two are on different data.
    """
    old, new = flat(before), flat(after)
    changed = {path: value for path, value in new.items() if old.get(path) != value or path not in old}
    _check_data(old, new, changed)
    for path in (*RUN_SETTINGS, seed_path(before)):
        changed.pop(path or "", None)
    switched = [path.removesuffix(".name") for path in changed if path.endswith(".name")]
    found: Factors = {}
    for name, paths in _factor_groups(groups, changed).items():
        found[name] = {path: changed.pop(path) for path in paths}
    for path, value in changed.items():
        section = path.rpartition(".")[0]
        found.setdefault(section if section in switched else path, {})[path] = value
    if not found:
        raise Problem("ablate: the two configurations are the same; name others with --from and --to")
    return found


def _check_data(old: Mapping[str, Any], new: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    free = {f"data.{field}" for field in TRAINING_FIELDS}
    problems = [
        f"--to: {path}: must be that of --from, since losses on different data cannot be compared, "
        f"got {new[path]!r} and {old.get(path)!r}"
        for path in changed
        if path.startswith("data.") and path not in free
    ]
    if problems:
        raise Problem(*problems)


def _factor_groups(groups: Sequence[str], changed: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    taken: list[str] = []
    for group in groups:
        name, equals, fields = group.partition("=")
        paths = [path.strip() for path in fields.split(",") if path.strip()]
        if not equals or not name.strip() or not paths:
            raise Problem(
                f"--factor: must be NAME=FIELD,FIELD, such as rates=optimizer.lr,schedule.warmup, got {group!r}"
            )
        _check_name(name.strip(), found, changed)
        for path in paths:
            if path in taken:
                raise Problem(f"--factor: {path} is in two factors")
            if path not in changed:
                raise Problem(f"--factor: {path} does not change between the two{nearest(path, changed)}")
        found[name.strip()] = paths
        taken += paths
    return found


def _check_name(name: str, found: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Refuse a name that would mean two things in what is told of the effects."""
    if name in found:
        raise Problem(f"--factor: {name} is given twice")
    taken = {*changed, *(path.rpartition(".")[0] for path in changed), "baseline", "target", "all together"}
    if name in taken or any(sign in name for sign in (" + ", " x ", " = ")):
        raise Problem(f"--factor: must be a name that stands for nothing else, got {name!r}")


def order_factors(found: Factors, order: Sequence[str]) -> Factors:
    """Return the factors in the order asked for, those that were not named behind.

    Raises:
        Problem: a name is none of them.
    """
    if unknown := [name for name in order if name not in found]:
        raise Problem(f"--order: no factor {unknown[0]!r}{nearest(unknown[0], found)}; there are {', '.join(found)}")
    return {name: found[name] for name in dict.fromkeys([*order, *found])}


def same_tokenizer(before: BaseModel, after: BaseModel) -> bool:
    """Return whether losses in nats per token can be compared."""
    return getattr(before, "tokenizer", None) == getattr(after, "tokenizer", None)


def with_run_settings_of(base: BaseModel, before: BaseModel) -> BaseModel:
    """Return `before` with what is the comparison's own taken from `base`."""
    fields = flat(base)
    return updated(before, {path: fields[path] for path in RUN_SETTINGS if path in fields and path in flat(before)})
