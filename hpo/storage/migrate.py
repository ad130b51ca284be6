"""Create and update the tables of a storage."""

import sqlalchemy as sa
from optuna.storages import RDBStorage

from hpo.errors import StorageError
from hpo.storage.damage import check_damage
from hpo.storage.engine import check_no_foreign_tables, columns_to_add, unpooled_options
from hpo.storage.locks import creation_lock
from hpo.storage.retry import QUICK, retry
from hpo.storage.schema import OURS, missing_columns, needed_for_reading
from hpo.storage.url import masked_url


def optuna_url(url: str) -> str:
    """Return the URL for RDBStorage, which replaces {SCHEMA_VERSION}; all other braces must be doubled."""
    return url.replace("{", "{{").replace("}", "}}")


def create_tables(url: str) -> None:
    """Create the missing tables and columns of Optuna and hpo.

    Raises:
        StorageError: The tables belong to another program, or to another version of Optuna.
    """
    engine = sa.create_engine(url, **unpooled_options(url))
    check_damage(engine, url, QUICK)
    check_no_foreign_tables(engine, url, QUICK)
    try:
        rdb = RDBStorage(optuna_url(url), engine_kwargs=unpooled_options(url))
    except RuntimeError as error:  # the tables are of another version of Optuna
        raise StorageError(f"{masked_url(url)}: {error}") from error
    OURS.create_all(rdb.engine)
    add_columns(rdb.engine)


def schema_problem(url: str, patience: float = QUICK) -> str | None:
    """Return what is wrong with the tables of an existing storage, None if nothing is wrong.

    Raises:
        StorageError: There is no storage, or it does not answer.
    """
    missing = needed_for_reading(columns_to_add(url, patience))
    if missing:
        return f"{masked_url(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}"
    options = unpooled_options(url, readonly=True)
    try:
        retry(RDBStorage, optuna_url(url), engine_kwargs=options, skip_table_creation=True, patience=patience)
    except RuntimeError as error:  # the tables are of another version of Optuna
        return f"{masked_url(url)}: {error}"
    return None


def update_schema(url: str, patience: float = QUICK) -> None:
    """Create the tables and columns that a storage lacks. `optuna storage upgrade` updates Optuna's own tables."""
    with creation_lock(url, patience):
        retry(create_tables, url, patience=patience, url=url)


def add_columns(engine: sa.Engine) -> None:
    """Add the columns that tables of an earlier version of hpo lack."""
    for column in missing_columns(engine) or []:
        kind = column.type.compile(engine.dialect)
        default = f" DEFAULT {column.server_default.arg}" if isinstance(column.server_default, sa.DefaultClause) else ""
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}{default}")
