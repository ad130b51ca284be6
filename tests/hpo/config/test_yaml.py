"""YAML is read as people mean it, and everything else about it is a message with line and column."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpo.config.yaml import YamlError, dump_yaml, parse_value, parse_yaml
from model.config import TrainConfig
from model.section import updated


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("400_000", 400_000),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1e-3", -1e-3),
        ("+3", 3),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("017", 17),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", 3),
        ("1_", 1),
        ("!!float 3", 3),
    ],
)
def test_numbers_are_numbers_however_they_are_written(text: str, meant: float) -> None:
    found = parse_yaml(f"key: {text}")["key"]
    assert (found, isinstance(found, bool)) == (meant, False)
    assert parse_value(text) == meant


LOOK_ALIKES = "off on yes no Off NO y n 2024-01-31 2024-01-31T10:00:00 1:30 190:20:30 _1 .e5 e5 1e 1.2.3 0x = . nul"


@pytest.mark.parametrize("text", LOOK_ALIKES.split())
def test_words_dates_and_look_alikes_of_numbers_are_text(text: str) -> None:
    assert parse_yaml(f"key: {text}") == {"key": text}
    assert parse_value(text) == text


@pytest.mark.parametrize(("text", "meant"), [("true", True), ("False", False), ("TRUE", True)])
def test_true_and_false_are_booleans(text: str, meant: bool) -> None:
    assert parse_yaml(f"key: {text}")["key"] is meant
    assert parse_value(text) is meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("null", None),
        ("~", None),
        ("", ""),
        ("  ", "  "),
        ("[1, 2e3, off]", [1, 2000.0, "off"]),
        ("{lr: 1e-3}", {"lr": 1e-3}),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("my #1.txt", "my #1.txt"),
        ("notes: all.txt", "notes: all.txt"),
        ("- dash.txt", "- dash.txt"),
        ("&name.txt", "&name.txt"),
        ("*.txt", "*.txt"),
        ("[unclosed", "[unclosed"),
        ("# all", "# all"),
    ],
)
def test_a_value_on_the_command_line_is_text_where_it_is_nothing_else(text: str, meant: Any) -> None:
    assert parse_value(text) == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: a is given twice"),
        ("a: {lr: 1, beta: 2, lr: 3}", "line 1, column 21: lr is given twice"),
        ("a:\n  'b': 1\n  b: 2", "line 3, column 3: b is given twice"),
        ("? [1, 2]\n: 3", "line 1, column 3: a key must be text; put it in quotes"),
        ("? {a: 1}\n: 3", "line 1, column 3: a key must be text; put it in quotes"),
        ("a: 1\n2: 3", "line 2, column 1: a key must be text; put it in quotes"),
        ("null: 3", "line 1, column 1: a key must be text; put it in quotes"),
        ("a: &x {b: *x}", "line 1, column 4: an anchor must not contain its own alias"),
        ("a: &x [*x]", "line 1, column 4: an anchor must not contain its own alias"),
        ("a: *nowhere", "line 1, column 4: found undefined alias 'nowhere'"),
        ("a: [1, 2", "line 1, column 9: expected ',' or ']', but got '<stream end>'"),
        ("a:\tb", "line 1, column 3: found character '\\t' that cannot start any token; indent with spaces"),
        ("base:\n\tlr: 1", "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("--- a\n--- b", "line 2, column 1: but found another document"),
        ("a: !!binary aGk=", "line 1, column 4: tag !!binary is not supported; remove it"),
        ("b: &x {lr: 1}\na: {<<: *x, lr: 2, lr: 3}", "line 2, column 20: lr is given twice"),
        ("a: &x {lr: 1, b: {<<: *x}}", "line 1, column 4: an anchor must not contain its own alias"),
        ("a: !!omap [b: 1]", "line 1, column 4: tag !!omap is not supported; remove it"),
        ("a: !!set {b}", "line 1, column 4: tag !!set is not supported; remove it"),
        ("a: !!timestamp x", "line 1, column 4: tag !!timestamp is not supported; remove it"),
        ("a: !mine 1", "line 1, column 4: tag !mine is not supported; remove it"),
        ("a: !!python/name:os.system x", "line 1, column 4: tag !!python/name:os.system is not supported; remove it"),
        ("a: !!int x", "line 1, column 4: must be int, got 'x'"),
        ("a: !!bool maybe", "line 1, column 4: must be bool, got 'maybe'"),
        ("a: !!map x", "line 1, column 4: expected a mapping node, but found scalar"),
    ],
)
def test_what_is_wrong_is_reported_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "- " * 3000 + "a", "{a: " * 3000 + "}" * 3000, "\x00", "a: \ud800", "a: " + "9" * 5000],
    ids=["brackets", "dashes", "braces", "null byte", "surrogate", "digits"],
)
def test_odd_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_anchors_and_merges_save_writing() -> None:
    text = "a: &range {low: 1e-4, high: 1, log: true}\nb: *range\nc: {<<: *range, high: 2}"
    found = parse_yaml(text)
    assert found["b"] == found["a"] == {"low": 1e-4, "high": 1, "log": True}
    assert found["c"] == {"low": 1e-4, "high": 2, "log": True}


def test_aliases_of_aliases_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(YamlError, match=r"^line \d+, column \d+: must stand for at most 100,000 values"):
        parse_yaml("\n".join(lines))


def test_an_anchor_may_be_defined_again() -> None:
    assert parse_yaml("a: &x 1\nb: &x 2\nc: *x") == {"a": 1, "b": 2, "c": 2}


@pytest.mark.parametrize("text", ["-_", "+_", "._", "<<"])
def test_numbers_without_digits_are_text(text: str) -> None:
    assert parse_yaml(f"key: {text}") == {"key": text}


def test_a_number_as_a_key_is_text() -> None:
    assert parse_yaml("{0.5: 4.2, 2.50: 3}") == {"0.5": 4.2, "2.5": 3}


WORDS = ["off", "on", "1e-4", "1E5", "null", "~", "true", "400_000", "017", "0o7", "1:30", "2024-01-31", "=", "<<"]
ODD = ["", " x", "a: b", "# a", "'", '"', "*a", "&a", "- a", "\n", "tab\t", "é", "\u2028", "1e999", "[", "@x", "nan"]
FLOATS = [1e-05, 1e16, 1e300, 5e-324, 0.1, -0.0, 1.0, 0.1 + 0.2, math.inf, -math.inf]


@pytest.mark.parametrize("value", [*WORDS, *ODD, *FLOATS, True, False, None, 0, -3, 2**70, [], {}, [[]], {"a": [1]}])
def test_what_is_dumped_is_loaded_again(value: Any) -> None:
    found = parse_yaml(dump_yaml({"key": value}))["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("value", [*WORDS, *FLOATS, 400_000, True])
def test_what_is_dumped_is_read_alike_by_other_readers_of_yaml(value: Any) -> None:
    yaml = pytest.importorskip("yaml")  # reads YAML 1.1
    found = yaml.safe_load(dump_yaml({"key": value}))["key"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_dumped_and_loaded_as_nan() -> None:
    assert math.isnan(parse_yaml(dump_yaml({"key": math.nan}))["key"])


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(WORDS),
    st.from_regex(r"[-+]?[0-9_]{0,3}[.:]?[0-9_]{0,3}([eE][-+]?[0-9]{1,2})?", fullmatch=True),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(WORDS)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@settings(max_examples=60, deadline=None)
@given(TREES)
@example({"<<": 1})
@example({"a": "x\x85y"})
def test_any_tree_is_dumped_and_loaded_again(tree: Any) -> None:
    assert parse_yaml(dump_yaml(tree)) == tree


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text("[]{}:,-?&*!|>'\"%@`#\n\t 0123456789.eabtrue<=_"))
def test_any_text_is_loaded_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):
        assert isinstance(parse_yaml(text), dict | list | str | int | float | None)
    assert isinstance(parse_value(text), dict | list | str | int | float | None)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"data.name": "text", "data.path": "off"},
        {"data.name": "table", "data.path": "null", "data.column": "1e-4"},
        {"data.name": "lines", "data.path": "dir: a/*.txt # all"},
        {"optimizer.lr": 1e-05, "clip.max_norm": 1e16, "run.compile": "off", "run.seed": 2**62},
        {"optimizer.name": "sgd", "schedule.name": "wsd", "clip.name": "none", "tokenizer.name": "chars"},
    ],
)
def test_every_configuration_is_dumped_and_loaded_again(values: dict[str, Any]) -> None:
    config = updated(TrainConfig(), values)
    tree = parse_yaml(dump_yaml(config.model_dump(mode="json")))
    assert TrainConfig.model_validate(tree) == config
