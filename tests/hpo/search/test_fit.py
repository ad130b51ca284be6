"""Values of a space that are valid only together: refused where no combination fits, and only there."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, model_validator

from hpo.config.yaml import dump_yaml
from hpo.search.ranges import Space
from hpo.search.space import space_problems
from hpo.study.spec import StudyFile
from tests.support.command import hpo

BASE = {"model": {"n_embd": 64, "n_head": 4}}


def study(folder: Path, space: dict[str, Any], **keys: Any) -> str:
    (folder / "s.yaml").write_text(dump_yaml({"base": BASE, "space": space, **keys}))
    return "s.yaml"


@pytest.mark.parametrize(
    "space",
    [
        {"model.n_head": {"choices": [6]}, "model.n_embd": {"choices": [96, 192]}},
        {"model.n_embd": {"choices": [96, 192]}, "model.n_head": {"choices": [6, 12]}},
        {"model.n_head": {"low": 2, "high": 6}, "model.n_embd": {"low": 48, "high": 96, "step": 48}},
    ],
)
def test_a_space_whose_values_fit_only_together_is_accepted(tmp_path: Path, space: dict[str, Any]) -> None:
    assert "ok; 2 hyperparameters" in hpo("check", study(tmp_path, space), cwd=tmp_path).stdout


def test_a_choice_that_fits_no_combination_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    space = {"model.n_head": {"choices": [6, 7]}, "model.n_embd": {"choices": [96, 192]}}
    refused = hpo("check", study(tmp_path, space), cwd=tmp_path, status=2).stderr
    (line,) = refused.splitlines()
    assert line.startswith("hpo: s.yaml: space.model.n_head.choices: model n_embd must be a multiple of n_head")
    assert "and 7" in line


def test_a_baseline_that_does_not_fit_is_named(tmp_path: Path) -> None:
    space = {"model.n_head": {"choices": [6]}, "model.n_embd": {"choices": [96, 192]}}
    refused = hpo("check", study(tmp_path, space, baseline=[{"model.n_head": 6}]), cwd=tmp_path, status=2).stderr
    assert refused.strip() == "hpo: s.yaml: baseline.0.model: n_embd must be a multiple of n_head, got 64 and 6"


class Ends(BaseModel):
    low: float = Field(default=0.2, ge=0, le=1)
    high: float = Field(default=0.8, ge=0, le=1)
    third: int = 0
    fourth: int = 0

    @model_validator(mode="after")
    def _check_order(self) -> "Ends":
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self


def problems(**space: Any) -> list[str]:
    return space_problems(Ends(), StudyFile.model_validate({"space": space}).space)


ALL = {"low": 0.0, "high": 1.0}


def test_ranges_without_a_common_end_are_accepted_if_some_values_fit() -> None:
    assert problems(low=ALL, high=ALL) == []
    assert problems(low={"low": 0.5, "high": 0.9}, high={"low": 0.3, "high": 0.6}) == []


def test_ranges_of_which_no_values_fit_together_are_refused() -> None:
    (line,) = problems(low={"low": 0.9, "high": 1.0}, high={"low": 0.1, "high": 0.3})[:1]
    assert line.startswith("space.low.low: low must be below high, got 0.9 and 0.8; no other values in the space")


def test_a_bound_of_the_field_itself_is_refused_whatever_else_is_searched() -> None:
    assert problems(low={"low": 0.0, "high": 1.5}, high=ALL) == ["space.low.high: must be at most 1, got 1.5"]


def test_a_large_space_is_searched_at_its_corners_and_at_random() -> None:
    many = {"low": 0, "high": 10**9}
    assert problems(low={"choices": [0.9, 0.95]}, high={"low": 0.92, "high": 1.0}, third=many, fourth=many) == []
    space: Space = {}
    assert space_problems(Ends(), space) == []
