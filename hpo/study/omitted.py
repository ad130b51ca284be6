"""Take what a study file omits from the study in the storage, when the file is launched again.

Defaults and the bases that ship with hpo may change between versions. A study keeps the values with which it started.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo.study.spec import Study
from model.section import Section, flat, flatten, updated

S = TypeVar("S", bound=Section)

# Keys that define what runs, so that omitting them is a change, and the budget, whose limits may change.
_OWN_KEYS = frozenset(("base", "space", "arms", "seeds", "about", "budget"))


def with_stored_values(study: Study, stored: Study) -> Study:
    """Return a study with the stored value of every field that its file omits.

    The file of a study that ships with hpo states nothing, because the user has not written it.

    stored: the study of this name in the storage, with its current budget.
    """
    if type(study.base) is not type(stored.base):
        return study
    if study.shipped:
        return replace(study, file=stored.file, base=_base(study, stored.base))
    file = _with_stored_fields(study.file, stored.file, _OWN_KEYS)
    space = {path: _with_stored_fields(entry, stored.file.space.get(path)) for path, entry in study.file.space.items()}
    given = {"space"} & study.file.model_fields_set
    budget = study.file.budget if "budget" in study.file.model_fields_set else stored.file.budget
    changes: dict[str, Any] = {"space": space} if given else {}
    file = file.model_copy(update=changes | {"budget": budget})
    return replace(study, file=file, base=_base(study, stored.base))


def _with_stored_fields(new: S, stored: Section | None, own: frozenset[str] = frozenset()) -> S:
    """Return a section with the stored values of the fields that it omits, in its sections too.

    own: fields that stay as they are.
    """
    if type(new) is not type(stored):
        return new
    values: dict[str, Any] = {}
    for name in type(new).model_fields.keys() - own:
        value, before = getattr(new, name), getattr(stored, name)
        if name not in new.model_fields_set:
            values[name] = before
        elif isinstance(value, Section) and isinstance(before, Section):
            values[name] = _with_stored_fields(value, before)
    return new.model_copy(update=values)


def _base(study: Study, stored: BaseModel) -> BaseModel:
    """Return the base with the stored value of every field that is not stated."""
    fields = flat(study.base)
    if study.stated is None:
        return study.base
    try:
        return updated(stored, {path: fields[path] for path in study.stated})
    except ValidationError:  # what the file states does not fit what it omits, so the definitions differ
        return study.base


def omitted_note(study: Study, kept: Study) -> str:
    """Return a line with the omitted fields whose stored values are not those of a new study; "" for none.

    study: the study as the file describes it. kept: the same study with stored values.
    """
    new, old = flatten(_comparable(study)), flatten(_comparable(kept))
    keys = old.keys() | new.keys() if study.shipped else old.keys() & new.keys()
    changed = [key for key in sorted(keys) if old.get(key) != new.get(key)]
    if not changed:
        return ""
    if study.shipped:
        return (
            f"the study {study.name} that ships with this version of hpo differs from the stored study of that name, "
            f"for example in {changed[0]}; the stored study continues as it was started, and another --storage starts "
            "the new one"
        )
    values = ", ".join(f"{key} {json.dumps(old[key])} (default {json.dumps(new[key])})" for key in changed)
    return f"{study.source} does not state these fields, so the study keeps its values: {values}"


def _comparable(study: Study) -> Mapping[str, Any]:
    return {**study.spec(), "budget": None, "closed": None, "rung_tokens": None}
