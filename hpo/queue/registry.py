"""Create a study in the storage, or find it and check that it is the same study."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna

from hpo.config.names import check_folder_name
from hpo.errors import Problem
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.budget import Progress, fill_slots
from hpo.queue.compatibility import (
    check_created_by_hpo,
    check_data_hash,
    check_directions,
    check_same,
    check_version,
)
from hpo.queue.identity import check_slots, follow_renamed
from hpo.queue.inspect import unregistered_problem
from hpo.queue.new_study import create_row, describe_study, study_uid
from hpo.queue.slots import Slots
from hpo.queue.stored_study import StoredStudy
from hpo.search.study_view import experimental
from hpo.storage.attributes import (
    BUDGET,
    SPEC,
    STARTED,
    STUDY_STATE,
)
from hpo.storage.locks import creation_lock
from hpo.storage.retry import OpenStorage
from hpo.storage.store import Store
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.study.fingerprint import spec_fingerprint, with_places
from hpo.study.limits import Budget
from hpo.study.omitted import omitted_note, with_stored_values
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec


def register_study(
    store: Store,
    study: Study,
    data_hash: str | None,
    anchors: Mapping[str, float],
    requested: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> StoredStudy:
    """Create a study, or find it if it exists; then create the slots of its budget.

    requested: the budget of the command line. An existing study keeps its own value for each key that is None here,
        but takes a larger number of trials from the file.
    progress: called while the slots are created. resume: whether an existing study that is paused or stopped becomes
        active again.

    Raises:
        Problem: The storage holds a different study under this name, the data differ, or a new study has objections.
    """
    # Two launches may run simultaneously, even with two files of one name.
    with creation_lock(store.url, store.patience):
        check_objections(store, study)
        note = create_row(store, study)
        study_attrs(store, study_ids(store)[study.name], study.name)  # checks what another program may have changed
        found = optuna.load_study(study_name=study.name, storage=store.optuna)
        check_created_by_hpo(found)
        if SPEC not in found.user_attrs:
            stored = _describe_new(store, found, study, data_hash, anchors)
        else:
            stored = _continue_study(store, found, study, data_hash, requested or {})
            if resume and not stored.slots.has_started():  # created earlier, and launched for the first time
                found.set_user_attr(STARTED, stored.slots.now())
        if stored.is_new or resume:
            found.set_user_attr(STUDY_STATE, "active")
        found.set_user_attr(BUDGET, stored.study.file.budget.model_dump(mode="json"))
        stored.raise_protocol()
        fill_slots(stored.slots, stored.study.slots(), progress)
        if stored.is_new:  # last: workers may join as soon as a study has this attribute
            found.set_user_attr(SPEC, stored.study.spec())
    return replace(stored, notes=(*note, *stored.notes))


def _describe_new(
    store: Store, found: optuna.Study, study: Study, data_hash: str | None, anchors: Mapping[str, float]
) -> StoredStudy:
    check_directions(found, study)
    slots = describe_study(store, found, study, data_hash, anchors)
    fingerprint = spec_fingerprint(study.spec())
    return StoredStudy(study, found, slots, store, study.name, is_new=True, fingerprint=fingerprint)


def _continue_study(
    store: Store, found: optuna.Study, study: Study, data_hash: str | None, requested: Mapping[str, Any]
) -> StoredStudy:
    """Return a study that the storage holds, with the budget and the places that are valid from now on.

    Raises:
        Problem: It has another definition, other data or a newer version, or has lost slots.
    """
    stored = found.user_attrs[SPEC]
    check_version(found)
    definition = _stored_definition(found.user_attrs)
    kept = study if definition is None else with_stored_values(study, definition)
    check_directions(found, kept)
    note = omitted_note(study, kept)
    check_same(kept, stored if definition is None else definition.spec(), kept.spec())
    check_data_hash(found, data_hash)
    study = _with_budget(kept, found.user_attrs.get(BUDGET) or stored["budget"], requested)
    slots, notes = _open_slots(store, found)
    notes += (note,) if note else ()
    moved = with_places(stored, study.spec())
    if moved != stored:  # the project was moved, or is in another folder on this machine
        found.set_user_attr(SPEC, moved)
    return StoredStudy(study, found, slots, store, stored["name"], spec_fingerprint(stored), notes)


def as_continued(store: OpenStorage, study: Study) -> Study:
    """Return a study with the stored values of what its file omits; a study that is not stored is returned as it is."""
    study_id = study_ids(store).get(study.name)
    definition = None if study_id is None else _stored_definition(study_attrs(store, study_id, study.name))
    return study if definition is None else with_stored_values(study, definition)


def _stored_definition(attrs: Mapping[str, Any]) -> Study | None:
    """Return a study as its attributes define it, with its current budget and the fields that later versions added.

    None if it has no definition yet, or if another program has changed the definition, so that it is invalid or names
    code that may not be imported. A comparison with the definition then names what differs.
    """
    spec = attrs.get(SPEC)
    try:
        return None if spec is None else study_from_spec({**spec, "budget": attrs.get(BUDGET) or spec["budget"]})
    except Problem:
        return None


def check_objections(store: OpenStorage | None, study: Study) -> None:
    """Check a study that the storage does not hold yet; store is None where there is no storage yet.

    Raises:
        Problem: The study is new and has objections.
    """
    if study.objections and (store is None or study.name not in study_ids(store)):
        raise Problem(*study.objections)


def _with_budget(study: Study, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> Study:
    """Return the study with the budget that is valid from now on. The target is that of the file."""
    own = study.file.budget
    budget = {**stored, **{key: value for key, value in requested.items() if value is not None}, "target": own.target}
    if all(value is None for value in budget.values()):  # the only end was a target, which the file no longer has
        return study
    if requested.get("trials") is None and budget["trials"] and own.trials:
        budget["trials"] = max(budget["trials"], own.trials)
    file = study.file.model_copy(update={"budget": Budget.model_validate(budget)})
    return replace(study, file=file)


def load_stored_study(store: Store, name: str | None) -> StoredStudy:
    """Find a study by name, or the only study of the storage.

    Raises:
        Problem: No study has this name, no name is given and there are several studies, a newer version of hpo
            created the study, or the study has lost its slots.
    """
    name = resolve_study_name(store, name)
    study_attrs(store, study_ids(store)[name], name)  # checks the attributes, which anyone may have changed
    found = optuna.load_study(study_name=name, storage=store.optuna)
    attrs = found.user_attrs
    spec = attrs.get(SPEC)
    if spec is None:
        raise unregistered_problem(store, name, get_study_id(found), attrs)
    check_version(found)
    check_folder_name(str(spec["name"]))
    study = study_from_spec({**spec, "budget": attrs.get(BUDGET) or spec["budget"]}, name)
    check_directions(found, study)
    slots, notes = _open_slots(store, found)
    return StoredStudy(study, found, slots, store, spec["name"], spec_fingerprint(spec), notes)


def _open_slots(store: Store, found: optuna.Study) -> tuple[Slots, tuple[str, ...]]:
    """Return the slots of a study, and a note if the study was renamed.

    Raises:
        Problem: The study has lost slots, or is a copy of another study.
    """
    slots = Slots(store, get_study_id(found), study_uid(store, found))
    note = follow_renamed(slots, found.study_name)
    if note:
        with experimental():  # a renamed study loses it
            found.set_metric_names([found.user_attrs[SPEC]["objective"]])
    check_slots(slots, found.study_name)
    return slots, (note,) if note else ()
