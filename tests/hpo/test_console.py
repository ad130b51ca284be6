"""Free text reaches a terminal without being interpreted and without being lost."""

import json
import os
import shlex
import subprocess
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.console import (
    Format,
    Rounded,
    command_line,
    fixed,
    format_number,
    format_value,
    print_record,
    print_records,
    print_yaml,
    printable,
    say,
    with_columns,
)
from hpo.errors import error_summary
from tests.support.command_lines import examples

NASTY = ["\x1b[2J", "\x1b]0;title\x07", "\r", "\u202eabc", "\u2066", "\x9b31m", "\x7f", "[/INST]", "[bold red]", "\x00"]
TEXTS = st.lists(st.sampled_from(NASTY) | st.characters(codec="utf-8").map(str), max_size=4).map("".join)
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def shows(text: str, output: str) -> bool:
    """Return whether an output contains a text in which each hidden character is an escape."""
    escaped = "".join(c if unicodedata.category(c) not in HIDDEN else repr(c)[1:-1] for c in text)
    assert not any(unicodedata.category(c) in HIDDEN for c in output.replace("\n", ""))
    return escaped in output


@examples(1)
@given(text=TEXTS)
def test_no_text_is_interpreted_in_any_format(text: str) -> None:
    records = [{"name": text, text + "column": 1}]
    with pytest.MonkeyPatch.context() as patch:
        for format in (Format.table, Format.json, Format.yaml):
            for print_data in (print_records, lambda data, format: print_record(data[0], format)):
                output = printed(patch, print_data, records, format)
                if format is Format.table:
                    assert shows(text, output), output
                else:
                    loaded = json.loads(output) if format is Format.json else parse_yaml(output)
                    assert loaded in (records, records[0])
                    assert not any(unicodedata.category(c) in HIDDEN - {"Cs"} for c in output.replace("\n", ""))


def printed(patch: pytest.MonkeyPatch, print_data: Any, *arguments: Any) -> str:
    """Return what a function prints, without a pipe."""
    from io import StringIO

    stream = StringIO()
    patch.setattr("sys.stdout", stream)
    print_data(*arguments)
    return stream.getvalue()


def test_two_choices_that_differ_in_brackets_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([{"path": "data/[ab]*.txt"}, {"path": "data/[cd]*.txt"}, {"path": "[/INST]"}], Format.table)
    assert capsys.readouterr().out.split() == ["path", "data/[ab]*.txt", "data/[cd]*.txt", "[/INST]"]


def test_messages_keep_their_lines_and_nothing_else_that_a_terminal_interprets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("one\n\ttwo \x1b[31mred\x1b[0m \u202e back")
    assert capsys.readouterr().err == "one\n\ttwo \\x1b[31mred\\x1b[0m \\u202e back\n"


@examples(0.5)
@given(words=st.lists(TEXTS.filter(lambda text: "\0" not in text and "\ud800" not in text), min_size=1, max_size=3))
def test_printed_command_is_read_by_a_shell_as_its_words(words: list[str]) -> None:
    text = command_line("printf", "%s\\n", *words)
    assert printable(text, keep="") == text
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert os.fsdecode(done.stdout) == "".join(f"{word}\n" for word in words)


def test_name_of_a_file_that_is_not_text_is_quoted_too() -> None:
    done = subprocess.run(["bash", "-c", command_line("printf", "%s", "a\udcff")], capture_output=True, check=True)
    assert done.stdout == b"a\xff"


def test_ordinary_words_are_quoted_as_usual() -> None:
    assert command_line("hpo", "launch", "--study", "my study", "a;b") == "hpo launch --study 'my study' 'a;b'"
    assert shlex.split(command_line("x", "it's")) == ["x", "it's"]


@pytest.mark.parametrize("value", [1e308, -1e308, Rounded(1e308, 2), Rounded(1e17, 0), 10**300])
def test_huge_number_is_printed_with_an_exponent(value: float) -> None:
    assert len(format_value(value)) < 14
    assert float(format_value(value)) == pytest.approx(float(value), rel=1e-3)
    assert len(fixed(float(value), 4)) < 14
    assert format_number(12345678.0) == "12,345,678"


def test_column_of_the_user_does_not_replace_one_of_the_table() -> None:
    row = with_columns({"number": 1, "kind": "search"}, {"kind": "a", "lr": 2}, "params")
    assert row == {"number": 1, "kind": "search", "params.kind": "a", "lr": 2}


def test_yaml_that_the_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import BytesIO, TextIOWrapper

    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    print_yaml(dump_yaml({"é": "日本"}))
    assert parse_yaml(stream.buffer.getvalue().decode("ascii")) == {"é": "日本"}  # type: ignore[attr-defined]


SYNTAX = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    x\n'


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("", ""),
        ("one line", "one line"),
        ("several problems\nsecond", "several problems"),
        (f"{SYNTAX}RuntimeError: boom\nline2\n", "RuntimeError: boom"),
        (f"{SYNTAX}ValueError: x\n\nThe above exception was ...\n\n{SYNTAX}E: y\n  more\nhttps://z", "E: y"),
        (f"{SYNTAX}RuntimeError: \nboom", "RuntimeError: boom"),
        (f"{SYNTAX}KeyError\n", "KeyError"),
        (f"{SYNTAX}RuntimeError: a worker failed:\n{SYNTAX}OSError: x\n", "RuntimeError: a worker failed:"),
        (f"{SYNTAX}RuntimeError: a\nTraceback was lost\n", "RuntimeError: a"),
        (f"{SYNTAX}A: x\n\nDuring handling of the above exception, ...\n\n{SYNTAX}B: y\n{SYNTAX}C: z\n", "B: y"),
        (f"line of a log\n{SYNTAX}A: x\nline\n{SYNTAX}B: y\n", "B: y"),
        (f"A: x\n...\n{SYNTAX}B: y\n", "A: x"),
        ("    code of a shortened traceback\nTypeError: x", "TypeError: x"),
        (
            "  + Exception Group Traceback (most recent call last):\n  |   File 'a', line 1\n"
            "  | ExceptionGroup: g (1)\n  +-+---------------- 1 ----------------\n    | ValueError: x\n",
            "ExceptionGroup: g (1)",
        ),
    ],
)
def test_summary_of_an_error_is_its_type_and_first_line(text: str, summary: str) -> None:
    assert error_summary(text) == summary
