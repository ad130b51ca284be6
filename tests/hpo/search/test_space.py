"""What a study varies: ranges, their scales, their checks, and fields that exist only sometimes."""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, TypeAdapter, ValidationError

from hpo.config.validation import explain_errors
from hpo.search.ranges import Choices, Entry, Range, Space, discrete_values, is_inside, spaced_values
from hpo.search.space import (
    applies,
    components_first,
    field_type,
    params_in_range,
    space_problems,
    suggest_values,
    unconditional,
)
from hpo.study.spec import StudyFile
from model.section import Count, Decay, Fraction, Positive, Section, flat, updated


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta2: Decay = 0.95


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1)] = 0.1
    momentum: Decay = 0.9
    nesterov: bool = False


class Run(Section):
    batch_size: Count = 8
    dropout: Fraction = 0.0
    wait: float | None = None
    grow: int | float = 1
    precision: Literal["fp32", "bf16"] = "fp32"


class Config(Section):
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = AdamW()
    run: Run = Run()


def space(**entries: Any) -> Space:
    return TypeAdapter(Space).validate_python({k.replace("__", "."): v for k, v in entries.items()})


BETA2 = {"low": 0.8, "high": 0.999, "complement_log": True}
NAMES = {"choices": ["adamw", "sgd"]}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"low": 2, "high": 1}, "low must be less than high, got low 2 and high 1"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low must be greater than 0 for log, got 0.0"),
        ({"low": 0.1, "high": 1.0, "complement_log": True}, "high must be less than 1 for complement_log, got 1.0"),
        (
            {"low": 0.1, "high": 0.9, "complement_log": True, "log": True},
            "must not have both log and complement_log; remove one of them",
        ),
        (
            {"low": 1, "high": 9, "log": True, "step": 1},
            "step must not be combined with log or complement_log; remove one of them",
        ),
        ({"low": 0.0, "high": 1.0, "step": -0.1}, "step must be greater than 0, got -0.1"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "high must be low plus a multiple of step, got 1.0; use 0.9"),
        ({"value": 3}, "value must not be in a space, because it is not a range; set the field in base"),
        (
            {"min": 1, "max": 2, "distribution": "log_uniform"},
            "distribution must be one of uniform, int_uniform, q_uniform, log_uniform_values, categorical, "
            "got 'log_uniform'; use {low: 1, high: 2, log: true}",
        ),
    ],
)
def test_range_that_cannot_be_is_refused_with_the_rule_and_the_value(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StudyFile.model_validate({"space": {"x": given}})
    assert [r for _, r in explain_errors(caught.value, StudyFile)] == [rule]


@pytest.mark.parametrize("given", [{"choices": []}, {"choices": [1, True]}, {"choices": [[1]]}, {"choices": 3}])
def test_choices_are_distinct_scalars(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        space(x=given)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"values": [1, 2]}, Choices(choices=(1, 2))),
        ({"distribution": "categorical", "values": ["a"]}, Choices(choices=("a",))),
        ({"min": 0.0, "max": 1.0}, Range(low=0.0, high=1.0)),
        ({"distribution": "uniform", "min": 0.0, "max": 1.0}, Range(low=0.0, high=1.0)),
        ({"distribution": "int_uniform", "min": 1, "max": 4}, Range(low=1, high=4)),
        ({"distribution": "log_uniform_values", "min": 0.1, "max": 1.0}, Range(low=0.1, high=1.0, log=True)),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}, Range(low=0.0, high=1.0, step=0.25)),
    ],
)
def test_sweep_files_words_mean_what_they_mean_there(theirs: dict[str, Any], ours: Entry) -> None:
    assert space(x=theirs)["x"] == ours


def test_space_survives_a_round_trip_through_json() -> None:
    ours = space(optimizer__beta2=BETA2, optimizer__name=NAMES, run__batch_size={"low": 1, "high": 9, "step": 2})
    adapter = TypeAdapter(Space)
    assert adapter.validate_json(adapter.dump_json(ours)) == ours


def test_distribution_is_that_of_the_fields_type_and_the_plain_value() -> None:
    assert Range(low=1, high=4).distribution(int) == IntDistribution(1, 4)
    assert Range(low=1, high=8, log=True).distribution(int) == IntDistribution(1, 8, log=True)
    assert Range(low=0, high=1).distribution(float) == FloatDistribution(0.0, 1.0)
    assert Range(**BETA2).distribution(float) == FloatDistribution(0.8, 0.999)
    assert Choices(choices=(1, None)).distribution(int) == CategoricalDistribution((1, None))


def test_field_type_is_read_from_the_component_in_place() -> None:
    assert field_type(Config(), "optimizer.lr") is float
    assert field_type(Config(), "run.batch_size") is int
    assert field_type(Config(), "run.wait") is float
    assert field_type(Config(), "run.grow") is float
    assert field_type(Config(), "run.precision") is str
    assert field_type(Config(optimizer=SGD()), "optimizer.nesterov") is bool


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("optimizer.lrr", "no such field; did you mean optimizer.lr?"),
        ("optimiser.lr", "no such field; did you mean optimizer.lr?"),
        ("lr", "no such field; did you mean optimizer.lr?"),
        ("optimizer.momentum", "no such field while optimizer.name is 'adamw'"),
        ("optimizer", "no such field"),
        ("run.batch_size.x", "no such field"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_one(path: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("?", r"\?")):
        field_type(Config(), path)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (
            {"optimizer__beta2": {"low": 0.5, "high": 1.5}},
            "space.optimizer.beta2.high: must be less than 1, got 1.5",
        ),
        ({"optimizer__lrr": BETA2}, "space.optimizer.lrr: no such field; did you mean optimizer.lr?"),
        ({"run__batch_size": {"low": 0.5, "high": 4}}, "space.run.batch_size.low: must be a whole number, got 0.5"),
        (
            {"run__batch_size": {"low": 1, "high": 2, "step": 0.5}},
            "space.run.batch_size.step: must be a whole number, got 0.5",
        ),
        (
            {"run__precision": {"low": 1, "high": 4}},
            "space.run.precision: must be choices, because the field is not a number",
        ),
        ({"run__dropout": {"choices": [0.1, 1.2]}}, "space.run.dropout.choices: must be at most 1, got 1.2"),
        (
            {"run__dropout": {"choices": ["1e-4"]}},
            "space.run.dropout.choices: must be a number, got '1e-4'; remove the quotes",
        ),
        (
            {"run__dropout": {"choices": [True]}},
            "space.run.dropout.choices: must be a number, got True",
        ),
        (
            {"optimizer__name": {"choices": ["adamw", "sdg"]}},
            "space.optimizer.name.choices: must be one of 'adamw', 'sgd', got 'sdg'; did you mean 'sgd'?",
        ),
        (
            {"optimizer__name": NAMES, "optimizer__lr": {"low": 0.1, "high": 2.0}},
            "space.optimizer.lr.high: must be at most 1, got 2.0",
        ),
    ],
)
def test_check_builds_the_configuration_at_both_ends_of_every_range(entries: dict[str, Any], problem: str) -> None:
    assert space_problems(Config(), space(**entries)) == [problem]


def test_check_reports_all_problems_together() -> None:
    bad = space(optimizer__lrr=BETA2, run__dropout={"low": -1.0, "high": 2.0})
    assert len(space_problems(Config(), bad)) == 3


def test_field_of_another_component_is_accepted_where_its_name_is_a_choice() -> None:
    both = space(optimizer__momentum={"low": 0.0, "high": 0.9}, optimizer__name=NAMES, optimizer__beta2=BETA2)
    assert space_problems(Config(), both) == []
    del both["optimizer.name"]
    assert space_problems(Config(), both) == ["space.optimizer.momentum: no such field while optimizer.name is 'adamw'"]


def test_unconditional_parameters_are_those_that_every_component_has() -> None:
    varied = space(
        optimizer__name=NAMES,
        optimizer__beta2=BETA2,
        optimizer__lr={"low": 1e-4, "high": 1e-2, "log": True},
        run__dropout={"low": 0.0, "high": 0.3},
    )
    assert set(unconditional(Config(), varied)) == {"optimizer.name", "optimizer.lr", "run.dropout"}
    del varied["optimizer.name"]
    assert set(unconditional(Config(), varied)) == {"optimizer.beta2", "optimizer.lr", "run.dropout"}


def test_components_are_suggested_first_and_their_fields_only_where_they_exist(tmp_path: Path) -> None:
    varied = space(
        optimizer__beta2=BETA2, optimizer__momentum={"low": 0.0, "high": 0.9}, optimizer__name=NAMES, run__wait=BETA2
    )
    assert components_first(varied)[0] == "optimizer.name"
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/hpo.db", sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(12):
        trial = study.ask()
        found = suggest_values(trial, Config(), varied)
        config = updated(Config(), found)
        assert all(applies(config, path) and flat(config)[path] == value for path, value in found.items())
        assert study.trials[trial.number].params == found
        seen.add(tuple(sorted(found)))
    assert seen == {
        ("optimizer.beta2", "optimizer.name", "run.wait"),
        ("optimizer.momentum", "optimizer.name", "run.wait"),
    }


def test_suggested_whole_number_is_an_int() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = suggest_values(study.ask(), Config(), space(run__batch_size={"low": 1, "high": 64, "log": True}))
    assert isinstance(found["run.batch_size"], int)


def test_held_leaves_out_what_lies_outside_the_space() -> None:
    varied = space(
        optimizer__lr={"low": 0.01, "high": 0.1},
        optimizer__beta2=BETA2,
        run__batch_size={"choices": [1, 2]},
        optimizer__momentum={"low": 0.0, "high": 0.9},
    )
    assert {path: value for path, (value, _) in params_in_range(Config(), varied).items()} == {"optimizer.beta2": 0.95}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (FloatDistribution(0, 1), 1.0, True),
        (FloatDistribution(0, 1), 1.1, False),
        (FloatDistribution(0, 1), "1", False),
        (FloatDistribution(0, 1, step=0.1), 0.3, True),
        (FloatDistribution(0, 1, step=0.1), 0.35, False),
        (IntDistribution(1, 9, step=2), 4, False),
        (CategoricalDistribution(("a", None)), None, True),
        (CategoricalDistribution(("a", None)), "b", False),
    ],
)
def test_inside_agrees_with_what_a_distribution_can_yield(kind: Any, value: Any, expected: bool) -> None:
    assert is_inside(kind, value) is expected


def test_values_are_evenly_spaced_on_the_ranges_own_scale_with_both_ends() -> None:
    linear = spaced_values(Range(low=0.0, high=1.0), 5)
    log = spaced_values(Range(low=1e-4, high=1e-2, log=True), 5)
    complement = spaced_values(Range(low=0.9, high=0.999, complement_log=True), 5)
    assert linear == [0.0, 0.25, 0.5, 0.75, 1.0]
    for found, scale, ends in (log, math.log, (1e-4, 1e-2)), (complement, lambda x: math.log(1 - x), (0.9, 0.999)):
        assert (found[0], found[-1]) == ends
        gaps = [scale(b) - scale(a) for a, b in itertools.pairwise(found)]
        assert gaps == pytest.approx([gaps[0]] * 4)


@pytest.mark.parametrize(
    ("entry", "kind", "expected"),
    [
        (Range(low=1, high=4), int, [1, 2, 3, 4]),
        (Range(low=0, high=100), int, [0, 25, 50, 75, 100]),
        (Range(low=1, high=9, step=4), int, [1, 5, 9]),
        (Range(low=1, high=16, log=True), int, [1, 2, 4, 8, 16]),
        (Range(low=1, high=3, log=True), int, [1, 2, 3]),
        (Range(low=0.0, high=0.3, step=0.1), float, [0.0, 0.1, 0.2, 0.3]),
        (Choices(choices=("a", "b", None)), str, ["a", "b", None]),
    ],
)
def test_values_of_a_discrete_range_are_distinct_members_of_it(entry: Entry, kind: type, expected: list[Any]) -> None:
    assert spaced_values(entry, 5, kind) == expected


def test_discrete_is_none_for_a_continuous_range_only() -> None:
    assert discrete_values(Range(low=0.0, high=1.0), float) is None
    assert list(discrete_values(Range(low=0.0, high=1.0, step=0.5), float) or ()) == [0.0, 0.5, 1.0]
    assert discrete_values(Range(low=1, high=10**12), int) == range(1, 10**12 + 1)
