"""Create the row of a study in the storage, and the attributes by which other processes know it."""

import shlex
import uuid
from collections.abc import Mapping
from typing import Any

import optuna

from hpo.optuna_internals.objects import get_study_id
from hpo.queue.budget import delete_slots
from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.queue.slots import Slots
from hpo.search.study_view import experimental
from hpo.storage.attributes import (
    ANCHORS,
    ARITHMETIC,
    DATA_HASH,
    PROBE_PLAN,
    PROTOCOL,
    REGISTERING,
    SPEC,
    STARTED,
    UID,
)
from hpo.storage.store import Store
from hpo.storage.studies import assign_uid, create_study_row, study_attrs, study_ids
from hpo.study.arithmetic import has_arithmetic
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.spec import Study


def create_row(store: Store, study: Study) -> tuple[str, ...]:
    """Create the row of a study that the storage does not hold; return notes of studies that had its name."""
    ids = study_ids(store)
    if study.name in ids:
        return ()
    attrs = {UID: uuid.uuid4().hex, PROTOCOL: PROTOCOL_VERSION, STARTED: Slots(store, 0).now()}
    create_study_row(store, study.name, study.file.direction, attrs)
    renamed = (name for name, i in ids.items() if study_attrs(store, i).get(SPEC, {}).get("name") == study.name)
    return tuple(
        f"study {name} of this storage had the name {study.name} before it was renamed; this launch creates another "
        f"study, and `hpo launch --study {shlex.quote(name)}` continues the renamed one"
        for name in renamed
    )


def describe_study(
    store: Store, new: optuna.Study, study: Study, data_hash: str | None, anchors: Mapping[str, float]
) -> Slots:
    """Set the attributes of a new study, except SPEC; return its slots.

    Slots that an interrupted launch of the same definition has created are kept.
    """
    slots = Slots(store, get_study_id(new), study_uid(store, new))
    registering = {"slots": len(study.slots()), "definition": spec_fingerprint(study.spec())}
    if new.user_attrs.get(REGISTERING) != registering:
        delete_slots(slots)  # SQLite gives the id of a deleted study to the next study
    with experimental():  # the dashboard labels its axes with this name
        new.set_metric_names([study.file.objective])
    attributes: dict[str, Any] = {
        DATA_HASH: data_hash,
        ANCHORS: dict(anchors),
        PROTOCOL: PROTOCOL_VERSION,
        REGISTERING: registering,
    }
    if has_arithmetic(study):
        attributes[ARITHMETIC] = _inherited_arithmetic(store, study)
    if study.probe_plan(None) is None:  # `auto`
        attributes[PROBE_PLAN] = {}
    for key, value in (attributes | {STARTED: slots.now()}).items():
        new.set_user_attr(key, value)
    return slots


def _inherited_arithmetic(store: Store, study: Study) -> Mapping[str, Any]:
    """Return what the search of a comparison has resolved; {} for other studies, whose first worker resolves it."""
    source = study.file.about.get("confirms") or study.file.about.get("ablates")
    study_id = study_ids(store).get(str(source))
    return {} if study_id is None else study_attrs(store, study_id).get(ARITHMETIC) or {}


def study_uid(store: Store, found: optuna.Study) -> str:
    """Return the uid of a study. A study of an earlier version gets one."""
    if UID not in found.user_attrs:
        assign_uid(store, get_study_id(found), uuid.uuid4().hex)
    return str(found.user_attrs[UID])
