"""Tables created and updated."""

import sqlalchemy as sa
from optuna.storages import RDBStorage

from hpo.errors import StorageError
from hpo.storage.engine import unpooled_options
from hpo.storage.locks import creation_lock
from hpo.storage.retry import QUICK, retry
from hpo.storage.schema import OURS, missing_columns
from hpo.storage.url import masked_url, sqlite_file


def optuna_url(url: str) -> str:
    """Return the URL as Optuna wants it: it fills in {SCHEMA_VERSION}, so braces are doubled."""
    return url.replace("{", "{{").replace("}", "}}")


def create_tables(url: str) -> None:
    """Create what is missing of Optuna's tables and ours, and check that Optuna's are of this version."""
    try:
        rdb = RDBStorage(optuna_url(url), engine_kwargs=unpooled_options(url))
    except RuntimeError as error:  # tables of another version of Optuna
        raise StorageError(f"{masked_url(url)}: {error}") from error
    OURS.create_all(rdb.engine)
    add_columns(rdb.engine)


def schema_problem(url: str, patience: float = QUICK) -> str | None:
    """Return what is wrong with the tables of a storage that is there, None where nothing is.

    Raises:
        StorageError: there is no storage, or it does not answer.
    """
    file = sqlite_file(url)
    if file and not file.is_file():
        raise StorageError(f"no storage at {file}; `hpo launch` creates it")
    engine = sa.create_engine(url, **unpooled_options(url))
    missing = retry(missing_columns, engine, patience=patience, url=url)
    if missing is None:
        raise StorageError(f"no study in {masked_url(url)}; `hpo launch` creates the tables")
    if missing:
        return f"{masked_url(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}"
    try:
        retry(
            RDBStorage,
            optuna_url(url),
            engine_kwargs=unpooled_options(url),
            skip_table_creation=True,
            patience=patience,
        )
    except RuntimeError as error:  # Optuna's tables are of another version
        return f"{masked_url(url)}: {error}"
    return None


def update_schema(url: str) -> None:
    """Add what our tables lack; Optuna's own are for `optuna storage upgrade`."""
    with creation_lock(url, QUICK):
        retry(create_tables, url, patience=QUICK, url=url)


def add_columns(engine: sa.Engine) -> None:
    """Add what tables of an earlier version lack."""
    for column in missing_columns(engine) or []:
        kind = column.type.compile(engine.dialect)
        default = f" DEFAULT {column.server_default.arg}" if isinstance(column.server_default, sa.DefaultClause) else ""
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}{default}")
