"""Read documents from text files by line, or from table files by column. Every error names the key and the file."""

import json
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from model.data.text_files import read_text
from model.errors import ConfigError
from model.section import close_match


def read_texts(paths: list[Path], key: str) -> Iterator[str]:
    """Yield the text of each file.

    key: of the configuration, for error messages.

    Raises:
        ConfigError: all files are empty.
    """
    empty = True
    for path in paths:
        text = read_text(path, key)
        empty = empty and not text.strip()
        yield text
    if empty:
        raise ConfigError(f"{key}: empty file: {', '.join(map(str, paths))}")


def read_lines(paths: list[Path], key: str) -> Iterator[str]:
    """Yield the lines of each file."""
    for text in read_texts(paths, key):
        yield from text.split("\n")  # splitlines() would also cut at U+2028 and form feeds


def _read_separated(path: Path, column: str, separator: str) -> Iterator[str]:
    import pandas as pd

    text = next(read_texts([path], "data.path"))
    if not text.strip():
        raise ConfigError(f"data.path: empty file: {path}")
    try:
        check_column(path, column, pd.read_csv(StringIO(text), sep=separator, nrows=0).columns.tolist())
        # keep_default_na: "NA" and "null" are words.
        # index_col: otherwise a row with an extra cell shifts every column by one.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.ParserWarning:
        raise ConfigError(f"data.path: not a table: {path}: a row has more cells than there are columns") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(f"data.path: not a table: {path}: {error}") from None
    yield from table[column]


def _read_csv(path: Path, column: str) -> Iterator[str]:
    return _read_separated(path, column, ",")


def _read_tsv(path: Path, column: str) -> Iterator[str]:
    return _read_separated(path, column, "\t")


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """Yield one column of a file with one JSON object per line; a missing value is empty."""
    rows = []
    for number, line in enumerate(read_lines([path], "data.path"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise ConfigError(f"data.path: line {number} is not JSON: {path}: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"data.path: line {number} must be a JSON object: {path}")
        rows.append(row)
    check_column(path, column, list(dict.fromkeys(key for row in rows for key in row)))
    yield from (_cell_text(row.get(column)) for row in rows)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("data.path: parquet needs pyarrow: pip install 'hpo[parquet]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        check_column(path, column, table.schema_arrow.names)
        cells = table.read(columns=[column]).column(column).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"data.path: not a parquet file: {path}: {error}") from None
    yield from map(_cell_text, cells)


def _cell_text(value: Any) -> str:
    return "" if value is None else str(value)


def check_column(path: Path | str, column: str, columns: list[str]) -> None:
    """Check that a table has a column.

    Raises:
        ConfigError: the table does not have the column.
    """
    if column in columns:
        return
    near = close_match(column, columns)
    hint = f"; did you mean {near}?" if near else ";"
    raise ConfigError(f"data.column: no column {column!r} in {path}{hint} columns: {', '.join(columns)}")


TABLE_READERS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": read_jsonl, ".parquet": _read_parquet}
"""Reader of one column, by file extension."""
