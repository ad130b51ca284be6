"""Tables are read row by row: nothing is joined, dropped or written in Python's notation without a word."""

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.corpus import Table
from model.data.split import RowCounts, distinct_documents
from model.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(name, content, column="t"):
    Path(name).write_text(content, "utf-8", newline="")
    return list(Table(path=name, column=column).documents())


def message(name, content, column="t"):
    with pytest.raises(ConfigError) as caught:
        texts(name, content, column)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stray_quotes_in_a_tsv_join_no_rows():
    cells = ['"a b', "c d", 'e" f', '"whole"', 'say "x"', '"', '""', "'", "plain"]
    assert texts("a.tsv", "id\tt\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells))) == cells


def test_a_tab_too_many_in_a_tsv_is_refused_by_row():
    assert message("a.tsv", "id\tt\n1\ta\n\n2\tb\tc\n") == (
        "data.path: not a table: a.tsv: row 2 (line 4) has 3 cells, and there are 2 columns; remove the tabs in its "
        "cells"
    )


@pytest.mark.parametrize(
    ("rows", "place", "reason"),
    [
        (['1,"a b', "2,c d", '3,e" f'], "row 1 (line 2)", "',' expected after '\"'"),
        (["1,a", '2,"b', "3,c"], "row 2 (line 3)", "a quote that is opened here is not closed"),
        (["1,a", '2,"b" c', "3,d"], "row 2 (line 3)", "',' expected after '\"'"),
        (['1,"two', 'lines"', '2,"'], "row 2 (line 4)", "a quote that is opened here is not closed"),
    ],
)
def test_a_stray_quote_in_a_csv_is_refused_by_row_with_the_remedy(rows, place, reason):
    assert message("a.csv", "\n".join(["id,t", *rows])) == (
        f'data.path: not a table: a.csv: {place}: {reason}; write a cell with a quote as "a ""quoted"" word", or save '
        "the file as tsv or jsonl"
    )


def test_a_csv_is_read_as_pandas_reads_it():
    frame = pd.DataFrame({"id": range(8), "t": ["a", "b, c", 'say "x"', "two\nlines", "", "NA", " space ", "é;'"]})
    frame.to_csv("a.csv", index=False)
    assert list(Table(path="a.csv", column="t").documents()) == frame["t"].tolist()


def test_a_quote_within_a_cell_without_quotes_is_text():
    assert texts("a.csv", 'id,t\n1,5" nail\n2,b\n') == ['5" nail', "b"]


def test_a_row_that_ends_early_has_no_text():
    assert texts("a.csv", "id,t,u\n1\n2,b\n3,c,d\n") == ["", "b", "c"]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_rows_end_as_lines_do(end):
    assert texts("a.csv", f"id,t{end}1,a{end}2,b{end}") == texts("a.tsv", f"id\tt{end}1\ta{end}2\tb{end}") == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "A.JSONL", "a.Json"])
def test_json_lines_are_read_under_every_usual_name(name):
    assert texts(name, '{"t": "a"}\n\n{"t": null}\n{"u": 1}\n{"t": "b"}\n') == ["a", "", "", "b"]


def test_a_json_list_of_objects_is_a_table():
    assert texts("a.json", json.dumps([{"t": "a"}, {"t": "b"}], indent=2)) == ["a", "b"]
    assert "row 2 must be a JSON object" in message("a.json", '[{"t": "a"}, 5]')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f'{{"t": {"9" * 10_000}}}', "it has a number of more than 4300 digits"),
        ("[" * 100_000, "its lists are nested too deeply"),
        ('{"t": ' + "[" * 100_000 + "]" * 100_000 + "}", "its lists are nested too deeply"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1); write one object per line"),
    ],
    ids=["digits", "brackets", "closed brackets", "pretty-printed"],
)
def test_json_that_python_cannot_read_gets_one_message(line, reason):
    assert message("a.jsonl", f'{{"t": "a"}}\n{line}\n') == f"data.path: line 2 is not JSON: a.jsonl: {reason}"


CHAT = [{"messages": [{"role": "user", "content": f"hi {n}"}, {"role": "bot", "content": "ho"}]} for n in range(3)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_column_of_messages_is_refused_by_row_and_read_by_a_path(name):
    if name == "a.parquet":
        pd.DataFrame(CHAT).to_parquet(name)
    else:
        Path(name).write_text("\n".join(map(json.dumps, CHAT)) if name == "a.jsonl" else json.dumps(CHAT))
    with pytest.raises(ConfigError) as caught:
        list(Table(path=name, column="messages").documents())
    place = "line 1" if name == "a.jsonl" else "row 1"
    assert str(caught.value) == (
        f"data.column: messages must hold text, got a list in {place} of {name}; name its text, such as "
        "data.column=messages.*.content or data.column=messages.0.content"
    )
    assert list(Table(path=name, column="messages.0.content").documents()) == ["hi 0", "hi 1", "hi 2"]
    assert list(Table(path=name, column="messages.*.content").documents()) == [f"hi {n}\nho" for n in range(3)]


def test_a_list_that_comes_late_is_refused_by_its_row():
    rows = [{"t": "a"}, {"t": "b"}, {"t": ["c"]}]
    assert "got a list in line 3 of a.jsonl" in message("a.jsonl", "\n".join(map(json.dumps, rows)))


def test_a_path_to_nothing_is_refused():
    said = message("a.jsonl", "\n".join(map(json.dumps, CHAT)), "messages.0.text")
    assert said == "data.column: no row of a.jsonl has a value at messages.0.text"
    said = message("a.jsonl", "\n".join(map(json.dumps, CHAT)), "chat.0.content")
    assert said == "data.column: no column 'chat.0.content' in a.jsonl; columns: messages"


def test_a_column_whose_name_stands_twice_in_the_header_is_refused():
    said = message("a.csv", "text,id,text\na,1,b\n", "text")
    assert said == "data.column: 2 columns of a.csv are called 'text'; rename all but one"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_text_in_the_place_of_the_header_is_cut_in_the_message(name):
    separator = "," if name == "a.csv" else "\t"
    said = message(name, separator.join(["word " * 60_000, *map(str, range(50))]) + "\n", "text")
    assert said.startswith(f"data.column: no column 'text' in {name}; columns: word word")
    assert said.endswith("17, 18, and 31 more (the first row must name the columns)")
    assert len(said) < 300


def test_a_gap_that_pandas_writes_into_json_is_a_missing_row():
    content = "".join(json.dumps(row) + "\n" for row in [{"t": "a"}, {"t": math.nan}, {"t": None}, {"t": "NaN"}])
    assert "NaN}" in content
    assert texts("a.jsonl", content) == ["a", "", "", "NaN"]
    Path("a.jsonl").write_text(content)
    assert distinct_documents(Table(path="a.jsonl", column="t")) == (["a", "NaN"], RowCounts(4, 2, 0))


def test_a_boolean_in_json_is_written_as_json_writes_it():
    assert texts("a.jsonl", '{"t": true}\n{"t": false}\n{"t": "True"}\n') == ["true", "false", "True"]


def test_cells_of_csv_and_tsv_stay_as_they_are():
    cells = ["NaN", "nan", "True", "true", "NULL", "None", "1.50", "1E-8", "2024-02-29"]
    for name in ("a.csv", "a.tsv"):
        assert texts(name, "\n".join(["t", *cells])) == cells


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1.5, math.nan, None], ["1.5", "", ""]),
        ([True, False, None], ["true", "false", ""]),
        ([1, -2, None], ["1", "-2", ""]),
        ([Decimal("1.50000000"), Decimal("0.00000000"), None], ["1.50000000", "0.00000000", ""]),
        ([datetime.date(2024, 2, 29), None], ["2024-02-29", ""]),
        ([datetime.datetime(2024, 2, 29, 12, 30), None], ["2024-02-29 12:30:00", ""]),
        ([b"caf\xc3\xa9", None], ["café", ""]),
    ],
    ids=["floats", "booleans", "integers", "decimals", "dates", "times", "bytes"],
)
def test_values_of_a_parquet_file_are_text(cells, expected):
    pq.write_table(pa.table({"t": cells}), "a.parquet")
    assert list(Table(path="a.parquet", column="t").documents()) == expected
