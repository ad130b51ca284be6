"""Sweeps with values that W&B does not accept are refused with one message, or converted to a valid study."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.foreign import sweep as sweep_module
from hpo.foreign.sweep import KEYS, convert_sweep
from hpo.foreign.sweep_ranges import _CONVERTERS
from hpo.study.spec import StudyFile
from tests.support.command import hpo

ODD = {
    "null": None,
    "list": [1, "x"],
    "nested list": [[1], {"a": None}],
    "empty list": [],
    "mapping": {"a": 1},
    "empty mapping": {},
    "bool": True,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "large": 10**300,
    "small": 5e-324,
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "nan": float("nan"),
    "empty text": "",
    "open quotation": "python 'x",
    "long text": "x " * 5000,
}
LR = {"min": 0.1, "max": 1.0}
RULE = {"type": "hyperband", "min_iter": 1}
RANGE = {"min": 1, "max": 9, "mu": 1, "sigma": 0.5, "q": 1}
ENTRY_KEYS = ("distribution", *RANGE, "a", "b", "value", "values", "probabilities")


def sweeps(odd: Any) -> Iterator[dict[str, Any]]:
    """Yield sweeps with one odd value, at each key that a sweep may have."""
    sweep = {"program": "train.py", "method": "random", "metric": {"name": "loss"}, "parameters": {"lr": LR}}
    yield from (sweep | {key: odd} for key in (*KEYS, "sweep", "scheduler", "other"))
    yield sweep | {"command": [odd, "${args}"]}
    yield from (sweep | {"metric": {"name": "loss", key: odd}} for key in ("name", "goal", "target", "impute"))
    for rule in (RULE, RULE | {"max_iter": 27}, {"type": "hyperband", "max_iter": 27, "s": 2}):
        for key in ("type", "min_iter", "max_iter", "s", "eta", "strict", "other"):
            yield sweep | {"early_terminate": rule | {key: odd}}
    yield sweep | {"early_terminate": RULE, "parameters": {"lr": LR, "epochs": {"value": odd}}}
    for key in ("x", "seed"):
        yield from (sweep | {"parameters": {"lr": LR, key: x}} for x in (odd, {"parameters": odd}, {"values": odd}))
        yield sweep | {"parameters": {"lr": LR, key: {"parameters": {"y": odd}}}}
    for word in (*_CONVERTERS, "categorical", "constant"):
        for key in ENTRY_KEYS:
            x = RANGE | {"distribution": word, key: odd}
            yield sweep | {"parameters": {"lr": LR, "x": x}}
        yield sweep | {"parameters": {"lr": LR, "n": {"parameters": {"x": RANGE | {"distribution": word, "q": odd}}}}}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_value_at_any_key_is_refused_with_one_message_or_converted(
    odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "key_lines", lambda text: {})  # most of the time; not the subject of this test
    for tree in sweeps(odd):
        monkeypatch.setattr(sweep_module, "parse_yaml", lambda text, tree=tree: tree)
        lines = message_lines()
        assert len(lines) <= 1, tree
        assert all(re.match(r"s\.yaml:1: [\w.]+: \w", line) and len(line) < 700 for line in lines), tree


def message_lines() -> Sequence[str]:
    """Return the message about the sweep, no line if it becomes a study file."""
    try:
        tree = convert_sweep("", "s.yaml").tree
    except Problem as problem:
        return problem.lines
    with contextlib.suppress(ValidationError):  # `hpo import` prints it as a message
        StudyFile.model_validate(tree)
    return []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("command:", "command: must be a list of words, or text, got None; write the words, such as [${interpreter}, "),
        ("command: {a: 1}", "command: must be a list of words, or text, got {'a': 1}; write"),
        ("command: []", "command: must name a program, got []; write"),
        ("command: ${env}", "command: must name a program, got '${env}'; write"),
        ("command: [python, [1]]", "command.1: must be text or a number, got [1]; write it as text in quotes"),
        (
            'command: "python \'x"',
            'command: must be words, got "python \'x": no closing quotation; close the quotation, or write the',
        ),
        ("program: 3", "program: must be the path of a script, such as train.py, got 3; write the path"),
        ("run_cap: 1.5", "run_cap: must be a whole number greater than 0, got 1.5"),
        ("metric: {target: .inf}", "metric.target: must be a finite number, got inf; write the value to reach"),
        (
            "early_terminate: 3",
            "early_terminate: must be a mapping such as {type: hyperband, min_iter: 3}, got 3; omit",
        ),
        (
            "early_terminate: {type: hyperband, eta: .inf, min_iter: 1}",
            "early_terminate.eta: must be a finite number greater than 0, got inf; write a number, or omit the key",
        ),
        ("early_terminate: {type: hyperband, s: 1.5}", "early_terminate.s: must be a whole number greater than 0, got"),
    ],
)
def test_key_with_an_odd_value_is_named_with_its_line_the_rule_and_a_remedy(line: str, message: str) -> None:
    with pytest.raises(Problem, match=f"^{re.escape(f's.yaml:2: {message}')}"):
        convert_sweep(f"parameters: {{lr: {{min: 0.1, max: 1.0}}}}\n{line}\n", "s.yaml")


def test_import_of_a_sweep_without_words_in_its_command_ends_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("parameters: {lr: {min: 0.1, max: 1.0}}\ncommand:\n")
    refused = hpo("import", "s.yaml", cwd=tmp_path, status=2)
    assert refused.stderr.startswith("hpo: s.yaml:2: command: must be a list of words")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"train/lr": LR, "train_lr": {"min": 5.0, "max": 9.0}}, "train/lr and train_lr are both called train_lr"),
        ({"train/lr": LR, "train_lr": {"value": 5.0}}, "train/lr and train_lr are both called train_lr"),
        ({"a.b": LR, "a": {"parameters": {"b": LR}}}, "a.b and a.parameters.b are both called a.b"),
    ],
)
def test_parameters_with_one_name_in_the_study_are_refused(parameters: dict[str, Any], names: str) -> None:
    with pytest.raises(Problem, match=rf"^s\.yaml:\d+: parameters\..*{re.escape(names)} in the study; rename one"):
        convert_sweep(dump_yaml({"parameters": parameters}), "s.yaml")
