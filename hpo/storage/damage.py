"""Recognise a damaged storage: a SQLite file with a wrong structure, missing tables, values that cannot be read."""

import shlex
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.optuna_internals.tables import OPTUNA_TABLES
from hpo.storage.retry import retry
from hpo.storage.schema import SLOT
from hpo.storage.url import masked_url, sqlite_file

MAX_CHECKED = 8 * 2**20  # bytes of a file whose structure is checked when it is opened: 6 ms per MB
REMEDY = "restore a copy of it, or repair it with `sqlite3 {} .recover`"

_HPO = Path(__file__).parents[1]
_opened: dict[str, None] = {}  # the storages that this process has opened, by URL


def check_damage(engine: sa.Engine, url: str, patience: float, max_bytes: float = MAX_CHECKED) -> None:
    """Check the structure of a SQLite file of at most `max_bytes`, and that no table of a storage is missing.

    Raises:
        StorageError: The storage is damaged, or it does not answer.
    """
    _opened[url] = None
    file = sqlite_file(url)
    if file is not None and file.is_file() and file.stat().st_size <= max_bytes:
        result = retry(_structure, engine, patience=patience, url=url)
        if result != "ok":
            remedy = REMEDY.format(shlex.quote(str(file)))
            raise StorageError(f"storage {masked_url(url)}: the file is damaged: {result}; {remedy}")
    names = retry(lambda: set(sa.inspect(engine).get_table_names()), patience=patience, url=url)
    if SLOT.name in names and (missing := sorted(OPTUNA_TABLES - names)):
        text = f"the tables {', '.join(missing)} are missing; restore a copy of it, or use another --storage"
        raise StorageError(f"storage {masked_url(url)}: {text}", passing=True)  # another process may be creating them


def _structure(engine: sa.Engine) -> str:
    """Return "ok", or the first error in the structure of a SQLite file."""
    with engine.connect() as connection:
        result: Any = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    return " ".join(str(result).removeprefix("*** in database main ***").split())


def explain_failure(error: Exception) -> StorageError | None:
    """Return a StorageError if an unexpected error comes from a storage whose content is damaged, otherwise None.

    The content is to blame if the structure of the file is damaged, or if the code that reads stored values failed.
    """
    for url in _opened:
        try:
            if (file := sqlite_file(url)) is not None and file.is_file():
                check_damage(sa.create_engine(url, poolclass=sa.NullPool), url, 1.0, float("inf"))
        except StorageError as damage:
            return damage
    frame = next((frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if _reads(frame)), None)
    if not _opened or frame is None or not isinstance(error, LookupError | ValueError | TypeError | AssertionError):
        return None
    url = next(reversed(_opened))
    cause = " ".join(str(error).split())
    return StorageError(
        f"storage {masked_url(url)}: a stored value cannot be read ({type(error).__name__}: {cause}, in "
        f"{Path(frame.filename).name} line {frame.lineno}); the storage may be damaged, restore a copy of it"
    )


def _reads(frame: traceback.FrameSummary) -> bool:
    """Return whether a function reads values from a storage."""
    ours = ("storage/", "queue/", "analysis/snapshot.py")
    return frame.filename.startswith(tuple(f"{_HPO}/{part}" for part in ours)) or "/optuna/storages/" in frame.filename
