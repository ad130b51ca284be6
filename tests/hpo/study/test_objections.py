"""What only a new study is refused for: words for booleans. For seeds and directions see test_direction.py."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import dump_yaml, parse_yaml
from tests.support.command import hpo


@pytest.mark.parametrize(
    ("choice", "instead"),
    [("yes", "true"), ("no", "false"), ("on", "true"), ("off", "false"), ("True", "true"), (1, "true")],
)
def test_a_word_for_a_boolean_is_refused_with_the_boolean(tmp_path: Path, choice: Any, instead: str) -> None:
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": {"model.bias": {"choices": [choice]}}}))
    said = hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr
    assert f"s.yaml: space.model.bias.choices: must be true or false, got {choice!r}" in said
    assert said.rstrip().endswith(f"; write {instead}")


def test_booleans_and_words_of_fields_that_are_no_booleans_are_accepted(tmp_path: Path) -> None:
    space = parse_yaml("{model.bias: {choices: [true, false]}, run.compile: {choices: [on, off]}}")
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": space}))
    assert "ok; 2 hyperparameters" in hpo("check", "s.yaml", cwd=tmp_path).stdout


def test_the_same_words_are_refused_with_the_component_of_their_field(tmp_path: Path) -> None:
    space = {"optimizer.name": {"choices": ["muon"]}, "optimizer.nesterov": {"choices": ["yes"]}}
    (tmp_path / "s.yaml").write_text(dump_yaml({"space": space}))
    assert (
        "space.optimizer.nesterov.choices: must be true or false"
        in hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr
    )
