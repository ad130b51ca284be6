"""Measurements of `make gpu`: rows of tables, which a part writes as it measures, and the settings of all parts."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
Emit = Callable[..., None]
"""emit(table, column=value, ...) adds a row to a table."""


@dataclass(frozen=True)
class Settings:
    """What all parts share."""

    device: str
    """cuda or cpu."""
    tiny: bool
    """Whether to use the smallest sizes and durations, which show that the script works and measure nothing."""

    @property
    def seconds(self) -> float:
        """Duration of one timed round."""
        return 0.02 if self.tiny else 0.4

    @property
    def patience(self) -> int:
        """Factor on all time limits. A machine that tries the script may be slow and busy."""
        return 4 if self.tiny else 1

    @property
    def rounds(self) -> int:
        return 2 if self.tiny else 5


class RecordFile:
    """The rows of one part, one JSON object per line. A part that is killed keeps the rows that it has written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def emit(self, table: str, **row: Any) -> None:
        """Append a row to a table."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, "row": row}) + "\n")

    def read(self) -> list[Row]:
        """Return all rows, each with the key `table`. An incomplete last line is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in without_paths(self.path.read_text("utf-8")).splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows


def without_paths(text: str) -> str:
    """Return a text without the folders of this machine: relative to the project or to the folder of a Python."""
    return re.sub(r"/[^\s\"'`\\]*?/(?=lib/python\d)", "", text.replace(f"{ROOT}/", ""))
