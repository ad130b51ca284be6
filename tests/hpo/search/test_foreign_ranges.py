"""Ranges of W&B, Optuna and Ray Tune: read, or refused with the range to write instead."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from hpo.config.validation import explain_errors
from hpo.config.yaml import parse_yaml
from hpo.study.spec import StudyFile

LOG = "{low: 1e-05, high: 0.1, log: true}"
LINEAR = "{low: 1e-05, high: 0.1}"


def rule(entry: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        StudyFile.model_validate({"space": {"x": entry}})
    (problem,) = explain_errors(caught.value, StudyFile)
    assert problem[0] == "space.x"
    return problem[1]


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        *((word, LOG) for word in ("loguniform", "log-uniform", "log_uniform", "LogUniformDistribution", "lograndint")),
        *((word, LOG) for word in ("log", "hp.loguniform", "suggest_loguniform", "inv_log_uniform_values")),
        ("q_log_uniform_values", f"{LOG}, which has no steps, or choices"),
        *((word, LINEAR) for word in ("float", "int", "randint", "FloatDistribution", "real")),
        ("quniform", "{low: 1e-05, high: 0.1, step: Q}"),
        *((word, f"{LINEAR}, because only uniform") for word in ("normal", "lognormal", "q_beta")),
        ("choice", "{choices: "),
    ],
)
def test_a_distribution_of_another_program_is_refused_with_ours(word: str, remedy: str) -> None:
    said = rule({"min": 1e-5, "max": 0.1, "distribution": word})
    assert f"got {word!r}; use {remedy}" in said
    assert "did you mean" not in said
    written = re.search(r"use (\{.*?\})", said)
    assert written is not None
    if "A" not in written[1] and "Q" not in written[1]:
        StudyFile.model_validate({"space": {"x": parse_yaml(written[1])}})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"choices": [[1, 2], [3, 4]]}, "use choices: [1, 2, 3, 4] for single values, or texts, such as"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "probabilities must be omitted"),
        ({"type": "loguniform", "low": 1, "high": 2}, "type must not be in a range, got 'loguniform'; use {low: 1, "),
        ({"low": 1, "high": 2, "scale": "log"}, "scale must not be in a range, got 'log'; use {low: 1, high: 2, log: "),
        ({"lower": 1, "upper": 2}, "use low instead of lower, high instead of upper"),
        ({"options": [1, 2]}, "use choices instead of options"),
        ({"distribution": "log_uniform", "min": -10, "max": 0}, "use {low: 4.54e-05, high: 1, log: true}"),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0}, "q_uniform must have q, the distance between values"),
        ({"distribution": "int_uniform", "min": 0.5, "max": 2}, "int_uniform must have whole numbers, got 0.5 and 2"),
        ({"distribution": "categorical", "min": 0, "max": 2}, "distribution categorical must have values"),
        ({"distribution": "uniform", "values": [1, 2]}, "must not have both distribution uniform and a list of values"),
        ({"distribution": "constant", "value": 3}, "set the field in base"),
        ({"parameters": {"lr": {"min": 0, "max": 1}}}, "use a dotted field for each"),
        (3, "must be a mapping, got 3; use {low: A, high: B} or {choices: [...]}, or set the field in base"),
        ([0.1, 0.2], "use {choices: [0.1, 0.2]} or {low: 0.1, high: 0.2}"),
        ("loguniform(1e-5, 1e-1)", f"use {LOG}"),
        ("uniform", "use {low: A, high: B}"),
    ],
)
def test_a_range_in_another_form_is_refused_with_ours(entry: Any, said: str) -> None:
    assert said in rule(entry)


@pytest.mark.parametrize(
    ("entry", "texts"),
    [
        ({"choices": [[1, 2], [3, 4]]}, '"1-2", "3-4"'),
        ({"values": [{"a": 1, "b": 2}]}, '"1-2"'),
        ({"choices": [1, [2]]}, '"1", "2"'),
        ([[1, 2], [3, 4]], '"1-2", "3-4"'),
        ({"choices": [["\x1b[2J", 1]]}, r'"\u001b[2J-1"'),
    ],
)
def test_choices_that_are_lists_are_refused_with_texts_to_use(entry: Any, texts: str) -> None:
    said = rule(entry)
    assert f"choices: [{texts}]" in said
    assert "\x1b" not in said
    assert "must be a mapping" in said or "must be numbers, text, true, false or null" in said
