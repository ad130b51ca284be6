"""Create the row of a study, and find studies by the uid that they keep when they are renamed."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.optuna_internals import STUDIES, STUDY_USER_ATTRS, add_study, attribute_json
from hpo.storage.attributes import UID
from hpo.storage.retry import OpenStorage, transact
from hpo.storage.schema import SLOT


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
