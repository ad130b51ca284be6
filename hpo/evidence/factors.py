"""Factors: the changes between two configurations, each under a name, so that `hpo ablate` can test them separately."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.analysis.export import configuration, select_trial
from hpo.analysis.snapshot import Snapshot
from hpo.config.files import read_config
from hpo.config.validation import error_messages, nearest
from hpo.errors import Problem
from hpo.study.comparable import incomparable_reason
from hpo.study.spec import Study, seed_path
from model.section import changes, flat, updated

Factors = dict[str, dict[str, Any]]  # name -> dotted field -> its value in the target

# Fields that are never a factor: they do not change the learning curve, or the comparison sets them.
RUN_SETTINGS = (
    "run.align",
    "run.graph_numbers",
    "run.test",
    "run.device",
    "run.keep_checkpoints",
    "run.diagnostics",
    "run.tokens",
    "run.rungs",
)


def named_configuration(snapshot: Snapshot, study: Study, name: str, option: str) -> BaseModel:
    """Return the configuration of a name: `baseline`, `best`, the number of a trial, or the path of a file.

    option: the command-line option with this name, for error messages.

    Raises:
        Problem: there is no such configuration.
    """
    if name == "baseline":
        return study.configured(study.file.first_baseline)
    if name == "best" or name.isdecimal():
        return configuration(study, select_trial(snapshot, None if name == "best" else int(name)))
    if not name.endswith((".yaml", ".yml")):
        raise Problem(f"{option}: must be baseline, best, the number of a trial, or a YAML file, got {name!r}")
    config_class = type(study.base)
    try:
        return config_class.model_validate(read_config(Path(name))[0])
    except ValidationError as error:
        raise Problem(*(f"{option} {name}: {line}" for line in error_messages(error, config_class))) from None


def find_factors(before: BaseModel, after: BaseModel, groups: Sequence[str]) -> Factors:
    """Return the changes from one configuration to another.

    If a component changes, such as the optimizer, its fields change with it as one factor.

    groups: each NAME=FIELD,FIELD combines the changes of these fields into the factor NAME.

    Raises:
        Problem: nothing changes, a group is not valid, or the two configurations use different data.
    """
    old, new = flat(before), flat(after)
    changed = changes(before, after)
    _check_data(old, new, changed)
    for path in (*RUN_SETTINGS, seed_path(before)):
        changed.pop(path or "", None)
    components = [path.removesuffix(".name") for path in changed if path.endswith(".name")]
    factors: Factors = {}
    for name, paths in _factor_groups(groups, changed).items():
        factors[name] = {path: changed.pop(path) for path in paths}
    for path, value in changed.items():
        section = path.rpartition(".")[0]
        factors.setdefault(section if section in components else path, {})[path] = value
    if not factors:
        raise Problem("ablate: the two configurations must differ; --from and --to choose others")
    return factors


def _check_data(old: Mapping[str, Any], new: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Check that both configurations are evaluated on the same data.

    Raises:
        Problem: they are not.
    """
    problems = [
        f"--to: {path}: must equal that of --from, {old.get(path)!r}, since losses on different data cannot be "
        f"compared, got {new[path]!r}"
        for path in changed
        if incomparable_reason(path, "val_bpb") == "data"
    ]
    if problems:
        raise Problem(*problems)


def _factor_groups(groups: Sequence[str], changed: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return name -> fields of each group of the command line.

    Raises:
        Problem: a group is not of the form NAME=FIELD,FIELD, its name is taken, or a field is in two groups or does
            not change.
    """
    paths_of: dict[str, list[str]] = {}
    used: list[str] = []
    for group in groups:
        name, equals, fields = group.partition("=")
        paths = [path.strip() for path in fields.split(",") if path.strip()]
        if not equals or not name.strip() or not paths:
            raise Problem(
                f"--factor: must be NAME=FIELD,FIELD, such as rates=optimizer.lr,schedule.warmup, got {group!r}"
            )
        _check_factor_name(name.strip(), paths_of, changed)
        for path in paths:
            if path in used:
                raise Problem(f"--factor: a field must be in one factor only, got {path} twice")
            if path not in changed:
                raise Problem(f"--factor: {path} is the same in both configurations{nearest(path, changed)}")
        paths_of[name.strip()] = paths
        used += paths
    return paths_of


def _check_factor_name(name: str, paths_of: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Check that a factor's name cannot be confused with a field, an arm or an interaction.

    Raises:
        Problem: it can.
    """
    if name in paths_of:
        raise Problem(f"--factor: names must be distinct, got {name} twice")
    reserved = {*changed, *(path.rpartition(".")[0] for path in changed), "baseline", "target", "all together"}
    if name in reserved or any(sign in name for sign in (" + ", " x ", " = ")):
        raise Problem(
            f"--factor: must not be the name of a field, a section, an arm or a combination of factors, got {name!r}"
        )


def order_factors(factors: Factors, order: Sequence[str]) -> Factors:
    """Return the factors in the requested order, followed by the factors that `order` does not name.

    Raises:
        Problem: a name in `order` is not a factor.
    """
    if unknown := [name for name in order if name not in factors]:
        raise Problem(
            f"--order: no factor {unknown[0]!r}{nearest(unknown[0], factors)}; the factors are {', '.join(factors)}"
        )
    return {name: factors[name] for name in dict.fromkeys([*order, *factors])}


def with_run_settings_of(base: BaseModel, config: BaseModel) -> BaseModel:
    """Return `config` with the fields of RUN_SETTINGS that it has taken from `base`."""
    fields = flat(base)
    return updated(config, {path: fields[path] for path in RUN_SETTINGS if path in fields and path in flat(config)})
