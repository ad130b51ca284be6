"""Print data to standard output as a table, JSON, YAML or CSV, and messages to standard error."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

from hpo.config.yaml import dump_yaml


class Format(StrEnum):
    """Output format of data."""

    table = "table"
    json = "json"
    yaml = "yaml"
    csv = "csv"


class Rounded(float):
    """A number that tables show with a fixed number of decimals. JSON, YAML and CSV contain all its digits."""

    decimals: int

    def __new__(cls, value: float, decimals: int) -> "Rounded":
        rounded = super().__new__(cls, value)
        rounded.decimals = decimals
        return rounded


def stdout() -> Console:
    """Return the console for data. If the output is not a terminal, it is 200 characters wide and lines are not cut."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=True)


def stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a message to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_records(records: Sequence[Mapping[str, Any]], format: Format) -> None:
    """Print a list of records, one per row of a table."""
    if format is Format.json:
        print(json.dumps([json_value(record) for record in records], indent=2))
        return
    if format is Format.yaml:
        print(dump_yaml([json_value(record) for record in records]), end="")
        return
    leaves = [_columns(record) for record in records]
    columns = list(dict.fromkeys(key for record in leaves for key in record))
    if format is Format.csv:
        print(_csv(columns, leaves), end="")
    else:
        _table(columns, leaves)


def print_record(fields: Mapping[str, Any], format: Format) -> None:
    """Print one record, one field per line of a table."""
    if format is Format.json:
        print(json.dumps(json_value(fields), indent=2))
    elif format is Format.yaml:
        print(dump_yaml(json_value(fields)), end="")
    else:
        leaves = _columns(fields)
        if format is Format.csv:
            print(_csv(list(leaves), [leaves]), end="")
            return
        width = max((len(key) for key in leaves), default=0)
        for key, value in leaves.items():
            print(f"{key:{width}}  {format_value(value)}")


def format_value(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list):
        return " ".join(format_value(inner) for inner in value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return str(value)


def format_number(value: float) -> str:
    """Return a number with four or five significant digits, and a `Rounded` number with its decimals."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, Rounded):
        return f"{value:,.{value.decimals}f}"
    size = abs(value)
    if size >= 10_000:
        return f"{value:,.0f}"
    if size == 0 or size >= 0.1:
        return f"{value:.4f}".rstrip("0").rstrip(".") if float(value).is_integer() else f"{value:.4f}"
    return f"{value:.4g}"


def json_value(value: Any) -> Any:
    """Return a value that JSON can represent: without tuples, and with null instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a record by dotted path; an empty mapping is None."""
    from model.section import flatten  # imported here, because it imports pydantic, and `hpo status` must start quickly

    return {path: None if value == {} else value for path, value in flatten(record).items()}


def _csv(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _table(columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = all(isinstance(record.get(column), int | float | None) for record in records)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for record in records:
        table.add_row(*(format_value(record.get(column)) for column in columns))
    console = stdout()
    # The terminal wraps long lines, because a number that is cut off would be wrong.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(table)


def format_duration(seconds: float) -> str:
    """Return a duration as text: 40 s, 3 min 20 s or 2 h 5 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
