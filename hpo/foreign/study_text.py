"""Write a study file that people read and edit: one line for each range, with comments."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpo.config.discovery import shipped_folder
from hpo.config.yaml import dump_yaml, parse_value

WIDTH = 118


def editor_line() -> str:
    """Return the comment that names the schema of this installation to an editor."""
    return f"# yaml-language-server: $schema={Path(shipped_folder() / 'schema/study.json').resolve()}"


def study_text(header: Iterable[str], tree: Mapping[str, Any], comments: Mapping[str, Iterable[str]]) -> str:
    """Return a study file.

    header: lines of the comment at the top. comments: key of the file -> lines of the comment above it; lines of the
    key "" stand at the end.
    """
    parts = [*map(_comment, header), editor_line()]
    for key, value in tree.items():
        parts += map(_comment, comments.get(key, ()))
        parts += _entry(key, value)
    parts += map(_comment, comments.get("", ()))
    return "\n".join(parts) + "\n"


def _comment(line: str) -> str:
    return f"# {line}".rstrip()


def _entry(key: str, value: Any) -> list[str]:
    line = f"{_scalar(key)}: {flow(value)}"
    if isinstance(value, list | tuple) and len(line) > WIDTH:
        return [f"{_scalar(key)}:", *(f"  - {flow(item)}" for item in value)]
    if not isinstance(value, Mapping) or (key != "space" and len(line) <= WIDTH) or not value:
        return [line]
    return [f"{_scalar(key)}:", *(f"  {_scalar(name)}: {flow(inner)}" for name, inner in value.items())]


def flow(value: Any) -> str:
    """Return a value in the flow style of YAML, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return dump_yaml([value]).removeprefix("- ").strip()
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and isinstance(parse_value(value), str)
    is_plain = is_plain and value.lower() not in ("yes", "no", "on", "off", "y", "n")
    return value if is_plain else json.dumps(value, ensure_ascii=not value.isprintable())
