"""Attributes of a study that someone who can write the storage has changed."""

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.storage.stored_json import MAX_VALUES, parse_attributes
from tests.support.cases import covering, exhaustive
from tests.support.command import finished_study, hpo, trivial

COMMANDS = ("status", "show 1", "export", "worker", "launch --study trivial --quiet")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory.mktemp("launched"))


def changed(launched: Path, folder: Path, key: str, change: Callable[[Any], Any]) -> Path:
    """Return a copy of the folder whose study has a changed attribute; a text is stored as it is."""
    copy = Path(shutil.copytree(launched, folder / "copy"))
    with contextlib.closing(sqlite3.connect(copy / "runs/hpo.db")) as connection:
        query = "SELECT study_user_attribute_id, value_json FROM study_user_attributes WHERE key = ?"
        row, text = connection.execute(query, (key,)).fetchone()
        value = change(json.loads(text))
        text = value if isinstance(value, str) else json.dumps(value)
        connection.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?", (text, row)
        )
        connection.commit()
    return copy


DAMAGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a million choices": (
        "hpo:spec",
        lambda spec: spec | {"space": {"lr": {"choices": list(range(1_000_000))}}},
        "values",
    ),
    "nesting": ("hpo:spec", lambda spec: "[" * 100_000 + "]" * 100_000, "is nested too deeply"),
    "half a value": ("hpo:anchors", lambda anchors: '{"a', "is not JSON"),
    "budget": ("hpo:budget", lambda budget: {"trials": 10**30}, "has an invalid budget.trials: 1000000"),
}


@pytest.mark.parametrize(("damage", "command"), covering(list(DAMAGES), COMMANDS))
def test_commands_refuse_an_attribute_at_once_with_the_reason(
    launched: Path, tmp_path: Path, damage: str, command: str
) -> None:
    key, change, message = DAMAGES[damage]
    folder = changed(launched, tmp_path, key, change)
    before = time.monotonic()
    refused = hpo(*command.split(), cwd=folder, status=2).stderr
    assert f"study trivial: the attribute {key} in the storage" in refused
    assert message in refused
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("damage", [*list(DAMAGES)[:1], *map(exhaustive, list(DAMAGES)[1:])])
def test_other_studies_of_the_storage_go_on_and_doctor_names_the_attribute(
    launched: Path, tmp_path: Path, damage: str
) -> None:
    folder = changed(launched, tmp_path, *DAMAGES[damage][:2])
    assert "study trivial: the attribute" in hpo("doctor", cwd=folder, status=1).stdout
    trivial(folder, "other")
    hpo("launch", "--study", "other", "--quiet", cwd=folder)
    assert hpo("studies", cwd=folder).stdout.splitlines()[1].startswith("other")


VALID = {
    "name": "s",
    "objective": "loss",
    "rungs": 3,
    "budget": {"trials": 4},
    "space": {},
    "base": {},
    "seed": 0,
    "train": "a:b",
    "config": "a:C",
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("hpo:spec", VALID | change)
            for change in ({"rungs": "x"}, {"rungs": 0}, {"rungs": 10**30}, {"rungs": True})
        ),
        *(("hpo:spec", VALID | change) for change in ({"space": 7}, {"space": {"x": 1}}, {"objective": ["x"]})),
        *(
            ("hpo:spec", VALID | change)
            for change in ({"targets": {"a": "b"}}, {"budget": {"hours": "x"}}, {"seed": ""})
        ),
        *(("hpo:spec", {k: v for k, v in VALID.items() if k != missing}) for missing in VALID),
        ("hpo:spec", []),
        ("hpo:started", "now"),
        ("hpo:started", float("nan")),
        ("hpo:state", 7),
        ("hpo:protocol", "2"),
        ("hpo:anchors", {"unigram": []}),
        ("hpo:budget", [1]),
        ("hpo:any", [0] * (MAX_VALUES + 1)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_attribute_of_another_form_is_left_out_with_the_reason(key: str, value: Any) -> None:
    attrs, problems = parse_attributes([(key, json.dumps(value)), ("hpo:uid", '"u"'), ("other", "[1]"), ("bad", "{")])
    assert attrs == {"hpo:uid": "u", "other": [1]}
    assert len(problems) == 1
    assert problems[0].startswith(f"the attribute {key} in the storage ")
    assert len(problems[0]) < 200


def test_valid_attributes_are_returned() -> None:
    rows = {"hpo:spec": VALID, "hpo:started": 1.5, "hpo:budget": None, "hpo:anchors": {"unigram": 5.3}}
    assert parse_attributes((key, json.dumps(value)) for key, value in rows.items()) == (rows, [])
