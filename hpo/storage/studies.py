"""Create the row of a study, and find studies by the uid that they keep when they are renamed."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.errors import Problem
from hpo.optuna_internals.objects import add_study
from hpo.optuna_internals.tables import STUDIES, STUDY_USER_ATTRS, attribute_json
from hpo.storage.attributes import SPEC, UID
from hpo.storage.retry import OpenStorage, transact
from hpo.storage.schema import SLOT
from hpo.storage.stored_json import MAX_LENGTH, parse_attributes
from hpo.storage.trials import query_rows


def create_study_row(store: OpenStorage, name: str, direction: str, attrs: Mapping[str, Any]) -> None:
    """Create a study with its attributes in one transaction, so that no study of hpo lacks its uid.

    Call this function under the creation lock. If the answer of the database is lost, the retry finds the study.
    """

    def write(connection: sa.Connection) -> None:
        existing = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
        if connection.execute(existing).first() is None:
            add_study(connection, name, direction, attrs)

    transact(store, write)


def assign_uid(store: OpenStorage, study_id: int, uid: str) -> None:
    """Give a study of an earlier version of hpo its uid, and the same to its slots, in one transaction.

    If another process has done so, this function changes nothing.
    """
    insert = postgresql.insert if store.engine.name == "postgresql" else sqlite.insert
    values = {"study_id": study_id, "key": UID, "value_json": attribute_json(uid)}
    stored = sa.select(STUDY_USER_ATTRS.c.value_json)
    stored = stored.where(STUDY_USER_ATTRS.c.study_id == study_id, STUDY_USER_ATTRS.c.key == UID)

    def write(connection: sa.Connection) -> None:
        connection.execute(insert(STUDY_USER_ATTRS).values(values).on_conflict_do_nothing())
        assigned = json.loads(connection.execute(stored).scalar_one())
        unnamed = sa.and_(SLOT.c.study_id == study_id, SLOT.c.study_uid == "")
        connection.execute(sa.update(SLOT).where(unnamed).values(study_uid=assigned))

    transact(store, write)


def fill_attr(store: OpenStorage, study_id: int, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Set an attribute of a study whose value is {}, and return the value that it has then.

    If another process has set the attribute before, this function changes nothing and returns that value.
    """
    columns = STUDY_USER_ATTRS.c
    this = sa.and_(columns.study_id == study_id, columns.key == key)
    empty = sa.and_(this, columns.value_json == attribute_json({}))

    def write(connection: sa.Connection) -> dict[str, Any]:
        connection.execute(sa.update(STUDY_USER_ATTRS).where(empty).values(value_json=attribute_json(dict(value))))
        stored: dict[str, Any] = json.loads(connection.execute(sa.select(columns.value_json).where(this)).scalar_one())
        return stored

    return transact(store, write)


def names_of_uid(store: OpenStorage, uid: str) -> dict[int, str]:
    """Return the studies that have a uid: id -> name. Two studies have the same uid if one is a copy of the other."""
    attrs = STUDY_USER_ATTRS.c
    joined = STUDIES.join(STUDY_USER_ATTRS, attrs.study_id == STUDIES.c.study_id)
    query = sa.select(STUDIES.c.study_id, STUDIES.c.study_name).select_from(joined)
    query = query.where(attrs.key == UID, attrs.value_json == attribute_json(uid))
    return dict(transact(store, lambda connection: [tuple(row) for row in connection.execute(query)]))


def study_has_uid(study_id: int, uid: str) -> sa.ColumnElement[bool]:
    """Return the condition that a study exists under this id and has this uid, for use in a statement."""
    attrs = STUDY_USER_ATTRS.c
    return sa.exists().where(attrs.study_id == study_id, attrs.key == UID, attrs.value_json == attribute_json(uid))


def study_ids(store: OpenStorage) -> dict[str, int]:
    """Return the id of each study by name."""
    return {name: study_id for study_id, name in query_rows(store, sa.select(STUDIES.c.study_id, STUDIES.c.study_name))}


def study_attrs(store: OpenStorage, study_id: int, name: str | None = None) -> dict[str, Any]:
    """Return a study's user attributes.

    name: of the study, in the message about invalid attributes; None: invalid attributes are left out.

    Raises:
        Problem: `name` is given, and another program has changed an attribute so that it is not valid.
    """
    columns = STUDY_USER_ATTRS.c
    text = sa.func.substr(columns.value_json, 1, MAX_LENGTH + 1)
    attrs, problems = parse_attributes(
        query_rows(store, sa.select(columns.key, text).where(columns.study_id == study_id))
    )
    if name is not None and problems:
        remedy = "restore it from a backup of the storage, or delete the study in `hpo dashboard`"
        raise Problem(*(f"study {name}: {problem}; {remedy}" for problem in problems))
    return attrs


def resolve_study_name(store: OpenStorage, name: str | None) -> str:
    """Return the name of the requested study, or of the only search if no name is given.

    A study that was created for another study, such as its confirmation, is returned only by its name.

    Raises:
        Problem: No study has this name, or `name` is None and the storage does not hold exactly one search.
    """
    names = sorted(study_ids(store))
    if name is None:
        searches = names if len(names) == 1 else [n for n in names if not _has_parent(store, n)]
        if not names:
            raise Problem("--study: the storage holds no study; `hpo launch` creates a study")
        if len(searches) != 1:
            raise Problem(f"--study: the storage holds {len(names)} studies ({', '.join(names)}); pass --study NAME")
        return searches[0]
    if name not in names:  # the path of its file
        name = name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    if name not in names:
        remedy = f"there are {', '.join(names)}" if names else "`hpo launch` creates a study"
        raise Problem(f"--study: no study {name!r} in the storage; {remedy}")
    return name


def _has_parent(store: OpenStorage, name: str) -> bool:
    """Return whether a study was created for another study."""
    spec = study_attrs(store, study_ids(store)[name]).get(SPEC, {})
    return bool(spec.get("about"))
