import datetime
import math
from decimal import Decimal

import numpy as np
import pytest

from model.data.cells import cell_text, lookup
from model.errors import ConfigError

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "ho"}], "meta": {"a.b": {"c": 1}}}
ROW = CHAT | {"gaps": ["a", None, math.nan, "b"]}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("messages.0.content", "hi"),
        ("messages.1.content", "ho"),
        ("messages.-1.content", "ho"),
        ("messages.2.content", None),
        ("messages.*.content", "hi\nho"),
        ("messages.*.name", ""),
        ("gaps.*", "a\nb"),
        ("messages.first", None),
        ("meta.a", None),
        ("other", None),
    ],
)
def test_a_path_leads_to_a_text_within_a_row(column, value):
    assert lookup(ROW, column) == value


def test_a_column_whose_name_has_a_dot_comes_before_a_path():
    assert lookup({"a.b": "x", "a": {"b": "y"}}, "a.b") == "x"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            CHAT["messages"],
            "c must hold text, got a list in row 3; name its text, such as data.column=c.*.content or "
            "data.column=c.0.content",
        ),
        (["a", "b"], "got a list in row 3; name its text, such as data.column=c.* or data.column=c.0"),
        ({"en": "a"}, "got a mapping in row 3; name its text, such as data.column=c.en"),
        ([], "got a list in row 3; write its text to a column of its own"),
        ([[[[[[[["deep"]]]]]]]], "got a list in row 3; write its text to a column of its own"),
        (b"\xff", "must hold UTF-8 text, got other bytes in row 3"),
    ],
    ids=["messages", "list of texts", "mapping", "empty", "deep", "bytes"],
)
def test_a_value_that_is_no_text_is_refused_with_a_path_to_its_text(value, said):
    with pytest.raises(ConfigError) as caught:
        cell_text(value, "c", "row 3")
    assert said in str(caught.value)


@pytest.mark.parametrize(("value", "text"), [("a", "a"), (None, ""), (5, "5"), (1.5, "1.5"), (b"caf\xc3\xa9", "café")])
def test_numbers_and_bytes_of_text_are_text(value, text):
    assert cell_text(value, "c", "row 3") == text


@pytest.mark.parametrize("value", [None, math.nan, -math.nan, np.float16("nan"), np.float32("nan"), np.float64("nan")])
def test_a_number_that_is_none_is_a_missing_cell(value):
    assert cell_text(value, "c", "row 3") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (np.True_, "true"),
        (np.False_, "false"),
        ("True", "True"),
        ("nan", "nan"),
        (np.str_("True"), "True"),
        (10**400, "1" + 400 * "0"),
        (np.int64(5), "5"),
        (np.float32(0.1), "0.1"),
        (Decimal("1.50"), "1.50"),
        (Decimal("0E-8"), "0.00000000"),
        (Decimal("1E+2"), "100"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), "2024-02-29 12:30:00+00:00"),
    ],
)
def test_a_value_that_is_no_text_is_written_without_notation_of_python(value, text):
    assert cell_text(value, "c", "row 3") == text
