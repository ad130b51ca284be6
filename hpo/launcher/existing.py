"""What the storage holds of a study before a launch prepares its data."""

from hpo.errors import StorageError
from hpo.queue.registry import as_continued, check_objections
from hpo.storage.engine import open_readonly
from hpo.storage.url import normalise_url, sqlite_file
from hpo.study.spec import Study


def check_new(storage: str, study: Study) -> None:
    """Check a study with objections before its data are prepared.

    Raises:
        Problem: the storage does not hold the study.
    """
    try:
        with open_readonly(storage) as store:
            check_objections(store, study)
    except StorageError:  # of an existing storage: `open_store` reports it, or adds what an earlier version lacks
        file = sqlite_file(normalise_url(storage))
        if file is not None and not file.exists():
            check_objections(None, study)


def continued_study(storage: str, study: Study) -> Study:
    """Return the study with the values of the storage for what its file omits, before its data are prepared."""
    try:
        with open_readonly(storage) as store:
            return as_continued(store, study)
    except StorageError:  # there is no storage yet, or `open_store` reports the error
        return study
