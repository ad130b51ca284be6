"""Copy a new SQLite storage from a template, in a twentieth of the time that Optuna takes to create its tables.

Only files that do not exist yet are copied, and only where TABLES names the template. Tests of the creation itself
(fixture `created_tables`) and `pytest --exhaustive` create all tables.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import hpo.storage.store
from hpo.storage.migrate import create_tables
from hpo.storage.url import sqlite_file

TABLES = "TESTS_TABLES"  # environment variable: path of the template


def copy_tables() -> None:
    """Let `open_store` of this process copy the template instead of creating the tables of a new file."""
    hpo.storage.store.create_tables = _copy


def _copy(url: str) -> None:
    template, file = os.environ.get(TABLES), sqlite_file(url)
    if template and file is not None and not file.exists():
        with suppress(OSError):  # the folder is missing or read-only, and `create_tables` has a message about it
            _make(Path(template))
            shutil.copyfile(template, file)
            return
    create_tables(url)


def _make(template: Path) -> None:
    """Create the template, unless a process has done so."""
    if not template.exists():
        part = template.with_suffix(f".{os.getpid()}")
        create_tables(f"sqlite:///{part}")
        part.replace(template)
