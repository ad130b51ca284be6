"""pydantic's errors come out as key, rule, value, remedy."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from hpo.config.validation import error_messages, explain_errors, field_paths
from hpo.search.ranges import Space
from model.section import Decay, Positive, Section


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta2: Decay = 0.95


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    momentum: Decay = 0.9


class Run(Section):
    rungs: Annotated[int, Field(gt=0)] = 8
    compile: Literal["on", "off"] = "off"
    wait: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _even(self) -> "Run":
        if self.rungs == 7:
            raise ValueError("rungs must not be seven")
        return self


class Config(Section):
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = AdamW()
    run: Run = Run()


class File(BaseModel):
    model_config = {"extra": "forbid"}
    base: Config = Config()
    space: Space = {}
    trials: int


def problems(kind: type[BaseModel], given: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(given)
    return dict(explain_errors(caught.value, kind))


@pytest.mark.parametrize(
    ("given", "key", "rule"),
    [
        ({"optimizer": {"name": "adamw", "beta2": 1.5}}, "optimizer.beta2", "must be less than 1, got 1.5"),
        ({"optimizer": {"name": "adamw", "lr": 0}}, "optimizer.lr", "must be greater than 0, got 0"),
        (
            {"optimizer": {"name": "sgd", "lrr": 1}},
            "optimizer.lrr",
            "no such field; did you mean optimizer.lr?",
        ),
        (
            {"optimizer": {"name": "adamw", "momentum": 1}},
            "optimizer.momentum",
            "no such field while optimizer.name is 'adamw'",
        ),
        ({"lr": 1}, "lr", "no such field; did you mean optimizer.lr?"),
        ({"optimiser": {}}, "optimiser", "no such field; did you mean optimizer?"),
        ({"zzz": {}}, "zzz", "no such field"),
        (
            {"optimizer": {"name": "adamww"}},
            "optimizer.name",
            "must be one of 'adamw', 'sgd', got 'adamww'; did you mean 'adamw'?",
        ),
        ({"optimizer": {"lr": 1}}, "optimizer.name", "required"),
        ({"run": 3}, "run", "must be a mapping, got 3"),
        ({"run": {"rungs": 1.5}}, "run.rungs", "must be a whole number, got 1.5"),
        ({"run": {"wait": 0}}, "run.wait", "must be at least 1, got 0"),
        ({"run": {"rungs": 7}}, "run", "rungs must not be seven"),
        (
            {"run": {"compile": False}},
            "run.compile",
            "must be one of 'on', 'off', got False",
        ),
    ],
)
def test_problem_names_the_key_as_written_then_the_rule_then_the_value(
    given: dict[str, Any], key: str, rule: str
) -> None:
    assert problems(Config, given) == {key: rule}


def test_all_problems_come_together() -> None:
    found = problems(File, {"base": {"optimizer": {"name": "sgd", "lr": -1}, "run": {"rungs": "x"}}, "seed": 3})
    assert found == {
        "base.optimizer.lr": "must be greater than 0, got -1",
        "base.run.rungs": "must be a whole number, got 'x'",
        "trials": "required",
        "seed": "no such field",
    }


@pytest.mark.parametrize("text", ["1e-4", "1E5", "3.5e2", "12", "0.5", "-.5"])
def test_text_that_looks_like_a_number_was_quoted(text: str) -> None:
    found = problems(File, {"trials": 1, "space": {"optimizer.lr": {"low": text, "high": 1.0}}})
    assert found == {"space.optimizer.lr.low": f"must be a number, got {text!r}; remove the quotes"}


@pytest.mark.parametrize("value", [True, "off", "e5"])
def test_a_value_that_does_not_look_like_a_number_gets_no_remedy(value: Any) -> None:
    found = problems(File, {"trials": 1, "space": {"optimizer.lr": {"low": value, "high": 2}}})
    assert found["space.optimizer.lr.low"] == f"must be a number, got {value!r}"


def test_infinite_number_is_distinguished_from_text() -> None:
    found = problems(File, {"trials": 1, "space": {"optimizer.lr": {"low": 0.1, "high": float("inf")}}})
    assert found["space.optimizer.lr.high"] == "must be a finite number, got inf"


def test_messages_put_the_file_or_section_in_front_of_the_key() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"run": {"rungs": 0}})
    assert error_messages(caught.value, Config, "base") == ["base.run.rungs: must be greater than 0, got 0"]


def test_paths_list_the_fields_of_all_members_of_a_union() -> None:
    assert {"optimizer.beta2", "optimizer.momentum", "run.wait"} < set(field_paths(Config))
    assert len(field_paths(Config)) == len(set(field_paths(Config))) == 7
