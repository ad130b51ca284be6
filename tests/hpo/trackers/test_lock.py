"""One process at a time writes a study to a tracker."""

from multiprocessing import get_context

from hpo.storage.engine import open_readonly
from hpo.storage.store import Store
from hpo.trackers.lock import TrackerLock


def is_free(url: str, study_id: int, place: int) -> bool:
    """Return whether this process could take the lock."""
    with open_readonly(url) as store:
        lock = TrackerLock(store, study_id, place)
        try:
            return lock.is_held()
        finally:
            lock.release()


def test_only_one_process_holds_the_lock_of_a_study_and_a_tracker(store: Store) -> None:
    # A process does not lock itself out of a file, so another one asks.
    with get_context("spawn").Pool(1) as others, open_readonly(store.url) as reader:
        lock = TrackerLock(reader, 1, 0)
        assert lock.is_held()
        assert lock.is_held()
        free = [others.apply(is_free, (store.url, *key)) for key in ((1, 0), (1, 1), (2, 0))]
        assert free == [False, True, True]
        lock.release()
        assert others.apply(is_free, (store.url, 1, 0))
