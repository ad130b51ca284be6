"""Print data to standard output as a table, JSON, YAML or CSV, and messages to standard error.

Every text goes through `printable` before it reaches a terminal, because names, notes, choices and error messages may
come from somebody else, and a terminal interprets control characters.
"""

import csv
import io
import json
import math
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo.config.yaml import dump_yaml, parse_yaml

LARGEST_FIXED = 1e15  # a larger number is printed with an exponent, because its last digits mean nothing
# Control characters, invisible marks such as those that change the direction of text, surrogates, and line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


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


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return text in which each control character or invisible mark is an escape such as \x1b.

    keep: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _HIDDEN
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shell_quote(word: str) -> str:
    """Return a word as a shell reads it: unchanged, in quotes, or with escapes in the form $'...'."""
    if printable(word, keep="") == word:
        return shlex.quote(word)
    escapes = {"\\": "\\\\", "'": "\\'"}
    hidden = {c for c in word if unicodedata.category(c) in _HIDDEN}
    return "$'" + "".join(_shell_escape(c) if c in hidden else escapes.get(c, c) for c in word) + "'"


def _shell_escape(character: str) -> str:
    """Return a character as $'...' reads it. Surrogates stand for bytes that are not UTF-8, as in names of files."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"


def command_line(*words: object) -> str:
    """Return a command as a user can paste it into a shell."""
    return " ".join(shell_quote(str(word)) for word in words)


def say(text: str) -> None:
    """Print a message to standard error. If nobody can read it, for example on a full disk, the work continues."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Print text to standard output."""
    print(printable(text), end=end, flush=True)


def with_columns(columns: Mapping[str, Any], more: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return columns of a table and more columns, with a prefix before each of these whose name is taken."""
    return {**columns, **{f"{prefix}.{key}" if key in columns else key: value for key, value in more.items()}}


def print_yaml(text: str) -> None:
    """Print YAML of `dump_yaml`, with YAML's escapes for characters that the encoding of standard output lacks."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = dump_yaml(parse_yaml(text), ascii_only=True)
    print(text, end="", flush=True)


def _print_json(tree: Any) -> None:
    # JSON escapes all characters except this one.
    print(json.dumps(json_value(tree), indent=2).replace("\x7f", "\\u007f"), flush=True)


def _print_csv(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Print records as CSV, which has no escapes: exactly for a program, printable in a terminal."""
    text = _csv(columns, records)
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


def print_records(records: Sequence[Mapping[str, Any]], format: Format) -> None:
    """Print a list of records, one per row of a table."""
    if format is Format.json:
        _print_json(list(records))
        return
    if format is Format.yaml:
        print_yaml(dump_yaml([json_value(record) for record in records]))
        return
    leaves = [_columns(record) for record in records]
    columns = list(dict.fromkeys(key for record in leaves for key in record))
    if format is Format.csv:
        _print_csv(columns, leaves)
    else:
        _table(columns, leaves)


def print_record(fields: Mapping[str, Any], format: Format) -> None:
    """Print one record, one field per line of a table."""
    if format is Format.json:
        _print_json(fields)
    elif format is Format.yaml:
        print_yaml(dump_yaml(json_value(fields)))
    else:
        leaves = _columns(fields)
        if format is Format.csv:
            _print_csv(list(leaves), [leaves])
        elif leaves:
            show(record_text(fields))


def record_text(fields: Mapping[str, Any]) -> str:
    """Return one record as text, one field per line."""
    leaves = _columns(fields)
    names = [printable(key, keep="") for key in leaves]
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:{width}}  {format_value(v)}" for name, v in zip(names, leaves.values(), strict=True))


def format_value(value: Any) -> str:
    """Return a value as a table shows it, in one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list):
        return " ".join(format_value(inner) for inner in value)
    if isinstance(value, int):
        return f"{value:.6g}" if abs(value) >= 10**21 else f"{value:,}" if abs(value) >= 10_000 else str(value)
    return printable(str(value), keep="")


def format_number(value: float) -> str:
    """Return a number with four or five significant digits, and a `Rounded` number with its decimals."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= LARGEST_FIXED:
        return f"{value:.6g}"
    if isinstance(value, Rounded):
        return f"{value:,.{value.decimals}f}"
    if size >= 10_000:
        return f"{value:,.0f}"
    if size == 0 or size >= 0.1:
        return f"{value:.4f}".rstrip("0").rstrip(".") if float(value).is_integer() else f"{value:.4f}"
    return f"{value:.4g}"


def fixed(value: float, decimals: int) -> str:
    """Return a number with this many decimals, or with an exponent if it is too large for them."""
    return f"{value:.{decimals}f}" if abs(value) < LARGEST_FIXED else f"{value:.6g}"


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
        # `Text`, because rich would interpret brackets in a string.
        name = Text(printable(column, keep=""))
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for record in records:
        table.add_row(*(Text(format_value(record.get(column))) for column in columns))
    # Without a terminal the output is 200 characters wide.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=True)
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
