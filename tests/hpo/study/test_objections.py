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


COMMAND: dict[str, Any] = {"command": ["sh", "-c", "echo {lr}"], "space": {"lr": {"low": 0.1, "high": 1.0}}}


@pytest.mark.parametrize(
    ("objective", "pattern", "said"),
    [
        ("seconds", "(?P<seconds>.)", "objective: must use another name than rung, seconds, step, which hpo writes"),
        ("step", "(?P<step>.)", "objective: must use another name than rung, seconds, step, which hpo writes"),
        ("loss", "(?P<loss>.) (?P<rung>.)", "metric.pattern: must use another name than rung, seconds, step"),
        (
            ["loss", "memory"],
            "(?P<loss>.)",
            "metric.pattern: must have a group for each objective, (?P<memory>\\S+) is",
        ),
        (["loss", "acc"], "(?P<loss>.) (?P<acc>.)", "objective: after the first, must list metrics of which a smaller"),
    ],
)
def test_an_objective_that_a_command_cannot_report_is_refused(
    tmp_path: Path, objective: Any, pattern: str, said: str
) -> None:
    tree = COMMAND | {"objective": objective, "metric": {"pattern": pattern}, "baseline": [{"lr": 0.5}]}
    (tmp_path / "s.yaml").write_text(dump_yaml(tree))
    assert f"s.yaml: {said}" in hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr


def test_a_command_may_have_the_seconds_of_its_trials_as_a_further_objective(tmp_path: Path) -> None:
    tree = COMMAND | {"objective": ["loss", "seconds"], "metric": {"pattern": "(?P<loss>.)"}, "baseline": [{"lr": 0.5}]}
    (tmp_path / "s.yaml").write_text(dump_yaml(tree))
    assert "ok; 1 hyperparameter" in hpo("check", "s.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize("path", ["manualSeed", "rng", "seed_value", "data.split_seed"])
def test_a_seed_is_known_by_its_name_and_not_searched(tmp_path: Path, path: str) -> None:
    tree = COMMAND | {"command": "x {flags}", "space": {path: {"low": 1, "high": 9}}, "baseline": [{path: 1}]}
    (tmp_path / "s.yaml").write_text(dump_yaml(tree))
    assert f"s.yaml: space.{path}: must not be searched, because the best seed is luck" in (
        hpo("check", "s.yaml", cwd=tmp_path, status=2).stderr
    )
