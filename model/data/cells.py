"""The text of a cell of a table: a value of a JSON object or of a parquet file, or a part of it."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

from model.errors import ConfigError


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, or of a path into nested values such as `messages.0.content`.

    `*` in a path stands for all elements of a list, whose texts are joined by line feeds. The result is None if there
    is no such value.
    """
    return row[column] if column in row else _follow(row, column.split("."))


def _follow(value: Any, path: list[str]) -> Any:
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return _follow(value.get(part), rest)
    if not isinstance(value, list | tuple):
        return None
    if part == "*":
        found = [_follow(element, rest) for element in value]
        texts = [element for element in found if not _is_missing(element)]
        return "\n".join(texts) if all(isinstance(text, str) for text in texts) else texts
    if not part.lstrip("-").isdecimal():
        return None
    index = int(part)
    return _follow(value[index], rest) if -len(value) <= index < len(value) else None


def cell_text(value: Any, column: str, place: str) -> str:
    """Return the text of a value; "" for None and NaN. Booleans are written as in JSON, decimals without exponent.

    place: row and file, for the error message.

    Raises:
        ConfigError: the value is a list or a mapping, whose text would be Python's notation, or bytes other than UTF-8.
    """
    if isinstance(value, str):
        return value
    if _is_missing(value):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"data.column: {column} must hold UTF-8 text, got other bytes in {place}") from None
    if isinstance(value, Mapping | list | tuple):
        kind = "a mapping" if isinstance(value, Mapping) else "a list"
        raise ConfigError(f"data.column: {column} must hold text, got {kind} in {place}; {_remedy(value, column)}")
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    return {"True": "true", "False": "false"}.get(text, text)  # a boolean of numpy is no bool


def _is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN, which pandas writes for a missing number or text."""
    # math.isnan raises an error for integers beyond the range of float. NaN differs from itself.
    return value is None or (isinstance(value, Real) and bool(value != value))


def _remedy(value: Any, column: str) -> str:
    parts = _text_paths(value)
    paths = " or ".join(f"data.column={column}.{part}" for part in parts[:2])
    return f"name its text, such as {paths}" if parts else "write its text to a column of its own"


def _text_paths(value: Any, depth: int = 4) -> list[str]:
    """Return paths to text within a value, of at most `depth` parts. For a list, all elements and the first one."""
    if isinstance(value, str):
        return [""]
    if not depth:
        return []
    if isinstance(value, Mapping):
        # content and text come first: a message also has a role.
        keys = sorted(value, key=lambda key: (key not in ("content", "text", "value"), str(key)))
        inner = [(str(key), path) for key in keys for path in _text_paths(value[key], depth - 1)]
    elif isinstance(value, list | tuple) and value:
        inner = [(index, path) for path in _text_paths(value[0], depth - 1)[:1] for index in ("*", "0")]
    else:
        return []
    return [f"{part}.{path}".rstrip(".") for part, path in inner]
