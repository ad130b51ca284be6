"""Whatever is in the cells of a table, each row gives its own text, or the row is refused by number."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.tables import TABLE_READERS
from model.errors import ConfigError
from tests.support.command_lines import examples

# Quotes, separators, markup, escapes, marks that change the direction of text, words of other tools for "missing"
PARTS = st.sampled_from(
    ['"', "'", ",", ";", " ", "a", "é", "[/b]", "[red]", "<i>", "\\n", "\x1b[31m", "\u202e", "NA", "null", "None"]
)
CELLS = st.lists(PARTS, max_size=6).map("".join)
ROWS = st.lists(st.none() | CELLS, min_size=1, max_size=12)  # None: the row ends before the column
NESTED = st.lists(CELLS, max_size=2) | st.dictionaries(CELLS, CELLS, max_size=2)
VALUES = CELLS | st.none() | st.just(math.nan) | st.integers() | st.booleans() | NESTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def column(path: Path, text: str) -> list[str]:
    path.write_text(text, "utf-8", newline="")
    return list(TABLE_READERS[path.suffix](path, "t"))


def text_of(value: Any) -> str:
    """Return a text as it is, a missing value as an empty text, and other values as JSON writes them."""
    if isinstance(value, str):
        return value
    return json.dumps(value).replace("null", "").replace("NaN", "")


@examples(0.2)
@given(rows=ROWS)
def test_each_row_of_a_tsv_gives_its_own_cell(folder: Path, rows: list[str | None]) -> None:
    lines = ["id\tt", *(f"{n}" if cell is None else f"{n}\t{cell}" for n, cell in enumerate(rows))]
    assert column(folder / "t.tsv", "\n".join(lines)) == [cell or "" for cell in rows]


@examples(0.2)
@given(rows=ROWS)
def test_each_row_of_a_csv_that_a_program_wrote_gives_its_own_cell(folder: Path, rows: list[str | None]) -> None:
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "t"], *([n] if cell is None else [n, cell] for n, cell in enumerate(rows))])
    assert column(folder / "t.csv", (folder / "t.csv").read_text("utf-8")) == [cell or "" for cell in rows]


@examples(0.2)
@given(rows=st.lists(CELLS, min_size=1, max_size=12))
def test_csv_written_by_hand_is_read_as_by_the_standard_library_or_refused_by_row(
    folder: Path, rows: list[str]
) -> None:
    lines = ["id,t", *(f"{n},{cell}" for n, cell in enumerate(rows))]
    try:
        expected = list(csv.reader((line + "\n" for line in lines), strict=True))[1:]
    except csv.Error:
        expected = []
    if expected and all(len(row) == 2 for row in expected):
        assert column(folder / "t.csv", "\n".join(lines)) == [cell for _, cell in expected]
        return
    with pytest.raises(ConfigError, match=r"data\.path: not a table: \S*t\.csv: row \d+ \(line \d+\)") as refused:
        column(folder / "t.csv", "\n".join(lines))
    assert "\n" not in str(refused.value)


@examples(0.2)
@given(values=st.lists(VALUES, min_size=1, max_size=8))
def test_values_of_json_lines_are_text_or_refused_by_line(folder: Path, values: list[Any]) -> None:
    text = "\n".join(json.dumps({"t": value}) for value in values)
    nested = [n for n, value in enumerate(values, 1) if isinstance(value, list | dict)]
    if not nested:
        assert column(folder / "t.jsonl", text) == [text_of(value) for value in values]
        return
    with pytest.raises(ConfigError, match=r"data\.column: t must hold text, got a (list|mapping)") as refused:
        column(folder / "t.jsonl", text)
    assert f"line {nested[0]} of" in str(refused.value)
