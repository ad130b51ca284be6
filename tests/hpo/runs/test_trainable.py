"""A training function of the user's own is searched as the GPT is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import Problem
from hpo.runs.generators import GeneratorRuns
from hpo.runs.trainable import build_runs, parse_report
from tests.support.command import ROOT, hpo, run_in_process

MODULE = """
from typing import NamedTuple

from pydantic import BaseModel, Field


class Rule(BaseModel):
    lr: float = Field(default=0.1, gt=0, le=1)


class Config(BaseModel):
    kind: str = "number"
    rule: Rule = Rule()


class Measured(NamedTuple):
    loss: float
    size: int


def loss(config, rung):
    return (config.rule.lr - 0.3) ** 2 + 1 / rung


def number(config):
    for rung in 1, 2, 3:
        yield rung, loss(config, rung)


def mapping(config):
    for rung in 1, 2, 3:
        yield rung, {"loss": loss(config, rung), "size": rung}


def named(config):
    for rung in 1, 2, 3:
        yield rung, Measured(loss(config, rung), rung)


def each(config):
    yield from {"number": number, "mapping": mapping, "named": named}[config.kind](config)


def fickle(config):
    yield 1, 1.0
    if config.kind == "raises":
        raise RuntimeError("the cable is out")
    if config.kind == "ends":
        return
    if config.kind == "garbage":
        yield "two", 0.9
    if config.kind == "keyless":
        yield 2, {"size": 3}
    yield 2, float("nan") if config.kind == "nan" else 0.9
    yield 3, 0.8
"""
STUDY = """
train: own:{train}
config: own:Config
objective: loss
rungs: 3
space: {space}
baseline: {baseline}
budget: {{trials: {trials}}}
pruner: {{name: none}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(MODULE)
    return tmp_path


def study(
    folder: Path, train: str, trials: int, space: str = "{rule.lr: {low: 0.01, high: 1.0}}", baseline: str = "[{}]"
) -> str:
    text = STUDY.format(train=train, trials=trials, space=space, baseline=baseline)
    (folder / "s.yaml").write_text(text)
    return "s.yaml"


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_in_process("trials", "--format", "json", cwd=folder))
    return found


def test_function_may_yield_numbers_mappings_or_named_tuples(folder: Path) -> None:
    baseline = "[{kind: number}, {kind: mapping}, {kind: named}]"
    hpo("launch", "--study", study(folder, "each", 5, baseline=baseline), cwd=folder)
    found = rows(folder)
    assert [(row["state"], row["rung"]) for row in found] == [("complete", 3)] * 5
    assert [row["rule.lr"] for row in found[:3]] == [0.1] * 3
    for row in found:
        assert row["loss"] == (row["rule.lr"] - 0.3) ** 2 + 1 / 3
    for number, sizes in enumerate([[None] * 3, [1, 2, 3], [1, 2, 3]]):
        logged = json.loads(run_in_process("logs", str(number), "--format", "json", cwd=folder))
        assert [line["rung"] for line in logged] == [1, 2, 3]
        assert [line.get("size") for line in logged] == sizes


def test_bounds_of_the_users_own_configuration_are_enforced_in_the_space(folder: Path) -> None:
    name = study(folder, "number", 3, "{rule.lr: {low: 0.0, high: 2.0}, rule.rate: {low: 1, high: 2}}")
    assert hpo("check", name, cwd=folder, status=2).stderr.splitlines() == [
        "hpo: s.yaml: space.rule.lr.low: must be greater than 0, got 0.0",
        "s.yaml: space.rule.lr.high: must be at most 1, got 2.0",
        "s.yaml: space.rule.rate: no such field",
    ]


@pytest.mark.parametrize("pack", ["1", "3"])
def test_run_that_goes_wrong_says_how_and_the_others_go_on(folder: Path, pack: str) -> None:
    kinds = ["number", "raises", "ends", "garbage", "keyless", "nan"]
    baseline = "[" + ", ".join(f"{{kind: {kind}}}" for kind in kinds) + "]"
    done = hpo("launch", "--study", study(folder, "fickle", 7, baseline=baseline), "--pack", pack, cwd=folder)
    assert "7 trials" in done.stderr
    assert [row["state"] for row in rows(folder)] == [
        "complete", "error", "error", "error", "error", "diverged", "complete"
    ]  # fmt: skip
    reasons = {
        1: "RuntimeError: the cable is out",
        2: "the training function ended before its last rung",
        3: "TypeError: a training function must yield (rung, value), rung = 1, 2, ..., got ('two', 0.9)",
        4: "TypeError: metrics must hold the objective, loss, got size",
    }
    for number, reason in reasons.items():
        shown = json.loads(run_in_process("show", str(number), "--format", "json", cwd=folder))
        assert shown["reason"] == reason
        assert f"trial {number}: error at rung 1/3: {reason}" in done.stderr
    trace = (folder / "runs/s/trials/0001/stderr.log").read_text()
    assert "Traceback" in trace
    assert 'raise RuntimeError("the cable is out")' in trace


def test_function_that_fails_ends_hpo_train_with_one_line(folder: Path) -> None:
    (folder / "c.yaml").write_text(
        "kind: raises\nprovenance: {train: own:fickle, config: own:Config, objective: loss}\n"
    )
    failed = hpo("train", "c.yaml", cwd=folder, status=1)
    assert re.fullmatch(r"hpo: own:fickle: RuntimeError: the cable is out \(own.py line \d+\)\n", failed.stderr), (
        failed.stderr
    )
    assert hpo("train", "c.yaml", "--set", "kind=number", cwd=folder).stdout.splitlines() == [
        "rung 1  loss 1", "rung 2  loss 0.9000", "rung 3  loss 0.8000"
    ]  # fmt: skip


@pytest.mark.parametrize("item", [3, None, (0, 1.0), (1.5, 1.0), ("1", 2), (1, 2, 3), [1, 2.0], (True, 1.0)])
def test_what_is_no_pair_of_rung_and_value_is_refused(item: Any) -> None:
    def train(config: Any) -> Any:
        yield item

    (_, reports) = next(iter(GeneratorRuns(train, [None])))
    with pytest.raises(TypeError, match=r"must yield \(rung, value\), rung = 1, 2, \.\.\., got"):
        parse_report(reports[0], "loss")


@pytest.mark.parametrize("value", ["0.5", None, [0.5], object()])
def test_value_that_is_no_number_is_refused(value: Any) -> None:
    def train(config: Any) -> Any:
        yield 1, value

    ((_, reports),) = GeneratorRuns(train, [None])
    with pytest.raises(TypeError, match="metrics must be a number, a mapping or a named tuple, got"):
        parse_report(reports[0], "loss")


def test_generators_go_on_while_a_neighbour_ends_or_is_stopped() -> None:
    def train(last: Any) -> Any:
        for rung in range(1, last + 1):
            yield rung, float(last)

    together = GeneratorRuns(train, [1, 3, 3])
    found = []
    for _, reports in together:
        found.append({lane: parse_report(report, "loss")[:2] for lane, report in reports.items()})
        if len(found) == 1:
            together.stop(1)
    assert found == [{0: (1, 1.0), 1: (1, 3.0), 2: (1, 3.0)}, {2: (2, 3.0)}, {2: (3, 3.0)}]


def test_something_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(Problem, match="train: must be a function, got math:pi"):
        build_runs("math:pi", [])


TEXT = (ROOT / "docs" / "own-training.md").read_text("utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def test_the_example_of_the_manual_runs_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "sine.py").write_text(block("python"))
    (tmp_path / "sine.yaml").write_text(block("yaml"))
    commands = [line.removeprefix("$ hpo ").split() for line in block("console").splitlines()]
    assert [command[0] for command in commands] == ["check", "launch", "export", "train"]
    outputs = [hpo(*command, cwd=tmp_path) for command in commands]
    status = json.loads(run_in_process("status", "--format", "json", cwd=tmp_path))
    ended = {state: n for state, n in status["trials"].items() if n}
    assert ended.keys() <= {"complete", "pruned"}
    assert sum(ended.values()) == 12
    assert status["best"]["value"] < status["baseline"]["value"]
    name, shown = outputs[-1].stdout.split()[-2:]
    assert name == "error"
    assert float(shown) == pytest.approx(status["best"]["value"], rel=1e-3), "four digits are shown"
