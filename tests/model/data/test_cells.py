import pytest

from model.data.cells import cell_text, lookup
from model.errors import ConfigError

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "ho"}], "meta": {"a.b": {"c": 1}}}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("messages.0.content", "hi"),
        ("messages.1.content", "ho"),
        ("messages.-1.content", "ho"),
        ("messages.2.content", None),
        ("messages.*.content", "hi\nho"),
        ("messages.*.name", ""),
        ("messages.first", None),
        ("meta.a", None),
        ("other", None),
    ],
)
def test_a_path_leads_to_a_text_within_a_row(column, value):
    assert lookup(CHAT, column) == value


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
