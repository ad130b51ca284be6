"""Create a study in the storage without running it."""

from collections.abc import Mapping
from typing import Any

from hpo.queue.registry import as_continued, check_objections, register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import describe_data, row_counts
from hpo.storage.store import Store
from hpo.storage.studies import study_ids
from hpo.study.names import check_name
from hpo.study.spec import Study


def create_study(store: Store, study: Study, budget: Mapping[str, Any] | None = None) -> StoredStudy:
    """Create a study, or find it if the storage holds it; prepare its data. No trial runs yet.

    budget: limits that the user has given; an existing study is extended to them, as by `hpo launch`.

    Raises:
        Problem: the storage holds a different study under this name, the data cannot be used, or the new study has
            objections or an invalid name.
    """
    check_objections(store, study)
    if study.name not in study_ids(store):  # a study of an earlier version may have another name
        check_name(study.name, study.source)
    base = as_continued(store, study).base
    data_hash, anchors = describe_data(base)
    stored = register_study(store, study, data_hash, anchors, budget, resume=False)
    stored.store_rows(row_counts(base))
    return stored
