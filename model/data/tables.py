"""Read documents from text files by line, or from table files by column. Every error names the key and the file."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from model.data.cells import cell_text, lookup
from model.data.text_files import read_text
from model.errors import ConfigError
from model.section import close_match

MAX_NAMES, MAX_NAME = 20, 40  # columns in a message, and characters of each: without a header, a text is a name


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


def _read_csv(path: Path, column: str) -> Iterator[str]:
    remedy = 'write a cell with a quote as "a ""quoted"" word", or save the file as tsv or jsonl'
    return _read_separated(path, column, remedy, delimiter=",", strict=True)


def _read_tsv(path: Path, column: str) -> Iterator[str]:
    # Without quoting, as the media type text/tab-separated-values has none: a quote is a character of its cell.
    return _read_separated(path, column, "remove the tabs in its cells", delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_separated(path: Path, column: str, remedy: str, **dialect: Any) -> Iterator[str]:
    """Yield one column of a file with a header; a row that ends before the column has an empty cell."""
    csv.field_size_limit(sys.maxsize)
    lines = (line + "\n" for line in next(read_texts([path], "data.path")).replace("\r", "\n").split("\n"))
    rows = _numbered_rows(path, csv.reader(lines, **dialect), remedy)
    _, header = next(rows, ("", []))
    if not header:
        raise ConfigError(f"data.path: empty file: {path}")
    check_column(path, column, header)
    index = header.index(column)
    for place, row in rows:
        if len(row) > len(header):
            counts = f"{len(row)} cells, and there are {len(header)} columns"
            raise ConfigError(f"data.path: not a table: {path}: {place} has {counts}; {remedy}")
        yield row[index] if index < len(row) else ""


def _numbered_rows(path: Path, reader: Any, remedy: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each row that is not blank, and its place for messages.

    Raises:
        ConfigError: a quote is not closed, or text follows a closed one.
    """
    number, start = 0, 1
    while True:
        place = f"row {number} (line {start})"
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = {"unexpected end of data": "a quote that is opened here is not closed"}.get(str(error), str(error))
            raise ConfigError(f"data.path: not a table: {path}: {place}: {reason}; {remedy}") from None
        start = reader.line_num + 1
        if row is None:
            return
        if row:
            number += 1
            yield place, row


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """Yield one column of a file with one JSON object per line; a missing value is empty."""
    lines = enumerate(read_lines([path], "data.path"), 1)
    rows = ((f"line {number}", _parse_json(path, f"line {number}", line)) for number, line in lines if line.strip())
    yield from _column_of(path, column, rows)


def _read_json(path: Path, column: str) -> Iterator[str]:
    """Yield one column of a list of JSON objects, or of a file with one JSON object per line."""
    text = next(read_texts([path], "data.path"))
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path, column)
        return
    rows = enumerate(_parse_json(path, "the file", text), 1)
    yield from _column_of(path, column, ((f"row {number}", row) for number, row in rows))


def _parse_json(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, RecursionError):
            reason = "its lists are nested too deeply"
        elif not isinstance(error, json.JSONDecodeError):  # Python refuses to convert numbers of more digits
            reason = f"it has a number of more than {sys.get_int_max_str_digits()} digits"
        hint = "; write one object per line" if place != "the file" and text.strip() in ("{", "[") else ""
        raise ConfigError(f"data.path: {place} is not JSON: {path}: {reason}{hint}") from None


def _column_of(path: Path, column: str, rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Yield one column of JSON objects.

    rows: each with its place for messages.

    Raises:
        ConfigError: a row is not an object, no row has the column, or a value is not text.
    """
    cells, names, found = [], dict[str, None](), False
    for place, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"data.path: {place} must be a JSON object: {path}")
        value = lookup(row, column)
        found = found or column in row or value is not None
        names |= dict.fromkeys(row)
        cells.append(cell_text(value, column, f"{place} of {path}"))
    if not found and column.partition(".")[0] in names:
        raise ConfigError(f"data.column: no row of {path} has a value at {column}")
    if not found:
        check_column(path, column, list(names))
    yield from cells


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("data.path: parquet needs pyarrow: pip install 'hpo[parquet]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        top = column if column in names else column.partition(".")[0]
        if top not in names:
            check_column(path, column, names)
        cells = table.read(columns=[top]).column(top).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"data.path: not a parquet file: {path}: {error}") from None
    yield from _column_of(path, column, ((f"row {number}", {top: cell}) for number, cell in enumerate(cells, 1)))


def check_column(path: Path | str, column: str, columns: list[str]) -> None:
    """Check that a table has a column, and only one of this name.

    Raises:
        ConfigError: the table does not have the column, or has several.
    """
    if (n := columns.count(column)) > 1:
        raise ConfigError(f"data.column: {n} columns of {path} are called {column!r}; rename all but one")
    if n:
        return
    near = close_match(column, columns)
    hint = f"; did you mean {near}?" if near else ";"
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in columns[:MAX_NAMES]]
    shown += [f"and {len(columns) - MAX_NAMES} more"] if len(columns) > MAX_NAMES else []
    header = " (the first row must name the columns)" if max(map(len, columns), default=0) > MAX_NAME else ""
    raise ConfigError(f"data.column: no column {column!r} in {path}{hint} columns: {', '.join(shown)}{header}")


TABLE_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": read_jsonl,
    ".parquet": _read_parquet,
    ".ndjson": read_jsonl,
    ".json": _read_json,
}
"""Reader of one column, by file extension."""
