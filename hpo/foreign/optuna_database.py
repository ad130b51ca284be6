"""Open a database of Optuna for reading. Nothing is written to it."""

import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage

from hpo.optuna_internals.objects import cached_storage
from hpo.storage.engine import unpooled_options
from hpo.storage.migrate import optuna_url
from hpo.storage.url import normalise_url

TABLES = {"studies", "trials", "version_info", "alembic_version"}  # Optuna would create those that are missing.


class NoTables(Exception):
    """A database without tables of Optuna."""


def open_database(url: str) -> BaseStorage:
    """Return the storage of a database that Optuna has created. Postgres refuses writes.

    Raises:
        NoTables: the database lacks tables of Optuna.
    """
    options = {}
    if url.startswith("postgres"):
        url = normalise_url(url)
        options = unpooled_options(url, readonly=True)
    engine = sa.create_engine(url, **options)
    try:
        missing = TABLES - set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if missing:
        rule = f"must be a storage that Optuna has created, but it has no table {', '.join(sorted(missing))}"
        raise NoTables(f"{rule}; check the name of the database")
    return cached_storage(RDBStorage(optuna_url(url), options, skip_table_creation=True))
