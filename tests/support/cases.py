"""Which cases of a test every run takes, and which only `make exhaustive`."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import pytest

STORAGES = ("sqlite", "postgres")
# A test of these folders runs on both storages every time: there the storage itself is tested, except in some files.
ON_BOTH = ("tests/hpo/storage/", "tests/hpo/queue/")
ON_ONE = ("tests/hpo/queue/test_looks.py", "tests/hpo/queue/test_identity.py")
# Files whose tests share what takes long to make, a fixture or a cache: one process runs all tests of such a file.
TOGETHER = (
    "tests/hpo/evidence/claims/test_run.py",
    "tests/hpo/cli/test_main.py",
    "tests/hpo/commands/test_transfer.py",
    "tests/hpo/replay/test_study_curves.py",
    "tests/hpo/report/test_build.py",
    "tests/hpo/report/test_importance.py",
    "tests/hpo/report/test_pages.py",
    "tests/hpo/launcher/test_ray_cluster.py",
    "tests/hpo/analysis/test_export.py",
    "tests/model/test_config_effects.py",
    "tests/project/test_wheel.py",
)

# Tests with the fixture `race`, and of these files, run in one process, because its processes take long to start.
RACES = ("tests/hpo/queue/test_load.py",)

# What starts first, because it takes longest: at the end of a run, one long test would leave the other cores idle.
FIRST = (
    "tests/model/train/test_graphs.py",
    *TOGETHER,
    "tests/hpo/queue/",
    "tests/hpo/storage/test_store.py",
    "tests/faults/",
    "tests/project/test_docs.py",
    "tests/hpo/dashboard/test_pages.py",
)


def exhaustive(*values: Any, **options: Any) -> Any:
    """Return a case that only `make exhaustive` runs."""
    return pytest.param(*values, marks=pytest.mark.exhaustive, **options)


def covering(*lists: Sequence[Any]) -> list[Any]:
    """Return every combination of these values as a case; all but as many as show each value once are exhaustive."""
    longest = max(map(len, lists))
    few = [tuple(values[i % len(values)] for values in lists) for i in range(longest)]
    return [case if case in few else exhaustive(*case) for case in itertools.product(*lists)]


def sparse(cases: Iterable[Any], every: int) -> list[Any]:
    """Return cases of which each but every n-th is exhaustive."""
    return [case if i % every == 0 else exhaustive(case) for i, case in enumerate(cases)]


def on_other_storage(item: pytest.Item) -> bool:
    """Return whether a test is parametrized by the storage, and this case is not the one that every run takes.

    Half of the tests run on SQLite and the other half on Postgres, by a hash of their names.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    storage = [value for value in parameters.values() if value in STORAGES]
    if not storage or (item.nodeid.startswith(ON_BOTH) and not item.nodeid.startswith(ON_ONE)):
        return False
    name = item.nodeid.partition("[")[0]
    return bool(storage[0] != STORAGES[crc32(name.encode()) % 2])
