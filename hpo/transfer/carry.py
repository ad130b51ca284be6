"""Carry the configuration in a file over to another scale, and record the rule that was used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.discovery import find_base
from hpo.config.files import read_config
from hpo.config.overrides import apply_overrides, parse_overrides
from hpo.config.validation import error_messages
from hpo.console import say
from hpo.errors import Problem
from hpo.study.scale import scale_fields
from hpo.study.spec import Study
from hpo.transfer.guard import carried_config, guard_lines, scale_changes, transfer_record
from hpo.transfer.lookup import Fitted, Lookup
from hpo.transfer.rule import Rule
from hpo.transfer.rules import Move
from model.config import TrainConfig
from model.section import flat, updated

SEARCHED, TRANSFER = "searched", "transfer"  # keys of the provenance


@dataclass(frozen=True)
class FoundFile:
    """A configuration file: its configuration, and that of the run in which the configuration was found.

    found: None if the file states no such run, or if its class is not TrainConfig. copied: the configuration of the
    file without what a rule changed when the file was exported.
    """

    config: BaseModel
    copied: TrainConfig | None = None
    found: TrainConfig | None = None


def read_found(path: Path, config: BaseModel, provenance: Mapping[str, Any]) -> FoundFile:
    """Return the configuration of a file with the one that was found, as its provenance states it.

    Raises:
        Problem: the provenance is not what an exported file contains.
    """
    if not isinstance(config, TrainConfig):
        return FoundFile(config)
    changed = _mapping(path, provenance, TRANSFER).get("changed", {})
    searched = _mapping(path, provenance, SEARCHED)
    try:
        fields = flat(config)
        before = {key: old for key, (old, new) in dict(changed).items() if fields.get(key) == new}
        copied = updated(config, before)
        # The number of rungs may be one that fits the length of the file only.
        rungs = {"run.rungs": 1, "run.align": 0} if searched else {}
        found = updated(copied, {**searched, **rungs})
    except ValidationError as error:
        lines = error_messages(error, TrainConfig, f"provenance.{SEARCHED}")
        raise Problem(*(f"{path}: {line}" for line in lines)) from None
    except (TypeError, ValueError):
        raise Problem(
            f"{path}: provenance.{TRANSFER}.changed: must map fields to two values, got {changed!r:.60}"
        ) from None
    return FoundFile(config, copied, found)


def base_notes(study: Study) -> list[str]:
    """Return a note if the base of a study is a file of `hpo export` from a search at another scale.

    A file whose provenance cannot be understood is noted too, not refused: only its values are used.
    """
    name = study.file.base.get("from")
    if name is None or not isinstance(study.base, TrainConfig):
        return []
    path = find_base(name, "base.from")
    tree, provenance = read_config(path)
    if "study" not in provenance:
        return []
    try:
        if _mapping(path, provenance, TRANSFER).get("to") == scale_fields(study.base):
            return []
        found = read_found(path, type(study.base).model_validate(tree), provenance).found
    except Problem as problem:
        return list(problem.lines)
    assert found is not None
    changes = ", ".join(scale_changes(Move(found, study.base)))
    remedy = "search the learning rate and the batch, or start from a file of `hpo export --tokens N --rule RULE`"
    return [f"base.from: {name} was found at another scale: {changes}. Its values are copied; {remedy}"] * bool(changes)


def _mapping(path: Path, provenance: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = provenance.get(key, {})
    if not isinstance(value, dict):
        raise Problem(f"{path}: provenance.{key}: must be a mapping, got {value!r:.60}")
    return value


@dataclass(frozen=True)
class CarryRequest:
    """How a configuration file is trained.

    what: the configuration, for messages. rule: None for the default, copy. overrides: path=value of each --set.
    """

    what: str
    overrides: Sequence[str]
    rule: Rule | None
    lookup: Lookup


def carry_file(
    file: FoundFile, provenance: Mapping[str, Any], request: CarryRequest
) -> tuple[BaseModel, dict[str, Any] | None]:
    """Return the configuration to train, and the record of the rule for its provenance, None if no rule applies.

    The rules are relative to the run in which the configuration was found, whatever rule its file was exported with.
    Whatever does not carry over is printed.

    Raises:
        Problem: the overrides are not valid, or the rule cannot be applied.
    """
    goal = apply_overrides(file.config, request.overrides)
    if file.found is None or file.copied is None or not isinstance(goal, TrainConfig):
        if request.rule not in (None, Rule.copy):
            raise Problem(f"--rule: must be copy with a configuration class of your own, got {request.rule}")
        return goal, None
    copied = apply_overrides(file.copied, request.overrides)
    move = Move(file.found, copied, frozenset(parse_overrides(request.overrides)))
    if request.rule is None:
        return goal, _note_default(move, goal, provenance, request)
    if move.changes_scale():
        return carry(request.what, move, request.rule, request.lookup(move))
    if request.rule is not Rule.copy:
        say(f"note: --rule {request.rule} changes nothing, because the run has the scale of the one that was found")
    return copied, None


def _note_default(
    move: Move, goal: TrainConfig, provenance: Mapping[str, Any], request: CarryRequest
) -> dict[str, Any] | None:
    """Print what does not carry over if the values of a file are trained as they are; return the record of the rule.

    goal: the configuration of the file, with the overrides.
    """
    record: dict[str, Any] | None = provenance.get(TRANSFER)
    if record and record.get("to") == scale_fields(goal):
        say(f"note: {request.what} was carried over to this scale by the rule {record.get('rule')}")
        return record
    if not move.changes_scale() or "study" not in provenance:  # nobody searched a configuration without a study
        return record
    if goal == move.goal:
        return carry(request.what, move, Rule.copy, request.lookup(move))[1]
    say("\n".join(guard_lines(request.what, move, goal, request.lookup(move))))
    return record


def carry(what: str, move: Move, rule: Rule, fitted: Fitted) -> tuple[TrainConfig, dict[str, Any]]:
    """Print what does not carry over; return the configuration by a rule, and the record for its provenance.

    Raises:
        Problem: the rule cannot be applied.
    """
    config, values = carried_config(move, rule, fitted)
    say("\n".join(guard_lines(what, move, rule, fitted)))
    return config, transfer_record(config, move, rule, values, fitted)
