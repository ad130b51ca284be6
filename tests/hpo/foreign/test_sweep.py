"""W&B sweeps become study files that pass `hpo check`; what has no counterpart is named with its line."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from hpo.commands.check import check_file
from hpo.commands.import_sweep import import_sweep
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.foreign.sweep import Converted, convert_sweep
from tests.support.command import hpo
from tests.support.schemas import assert_schema_agrees

SWEEP: dict[str, Any] = {
    "program": "train.py",
    "method": "bayes",
    "metric": {"name": "val_loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"}},
    "run_cap": 20,
}


def converted(**keys: Any) -> Converted:
    return convert_sweep(dump_yaml(SWEEP | keys), "sweep.yaml")


def notes_about(found: Converted, key: str) -> list[str]:
    return [note for note in found.notes if re.match(rf"sweep\.yaml:\d+: {re.escape(key)}: ", note)]


def entry(given: dict[str, Any]) -> Any:
    return converted(parameters={"x": given, "lr": SWEEP["parameters"]["lr"]}).tree["space"].get("x")


# The distributions of https://docs.wandb.ai/models/sweeps/sweep-config-keys
RANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min": 1, "max": 9}, {"low": 1, "high": 9}),
    ({"min": 1.0, "max": 9}, {"low": 1.0, "high": 9.0}),
    ({"min": 0, "max": 1, "distribution": "uniform"}, {"low": 0.0, "high": 1.0}),
    ({"min": 0.5, "max": 9.5, "distribution": "int_uniform"}, {"low": 1, "high": 9}),
    ({"min": 16, "max": 64, "q": 16, "distribution": "q_uniform"}, {"low": 16, "high": 64, "step": 16}),
    ({"min": 0, "max": 0.55, "q": 0.1, "distribution": "q_uniform"}, {"low": 0.0, "high": 0.6, "step": 0.1}),
    ({"min": 1, "max": 100, "distribution": "log_uniform_values"}, {"low": 1.0, "high": 100.0, "log": True}),
    ({"min": "1e-4", "max": "1e-2", "distribution": "log_uniform_values"}, {"low": 1e-4, "high": 1e-2, "log": True}),
    ({"min": 1, "max": 64, "distribution": "q_log_uniform_values"}, {"low": 1, "high": 64, "log": True}),
    ({"min": 0.1, "max": 10.0, "distribution": "inv_log_uniform_values"}, {"low": 0.1, "high": 10.0, "log": True}),
    ({"distribution": "categorical", "values": ["a", "b"]}, {"choices": ["a", "b"]}),
    ({"values": [1, 2, 1]}, {"choices": [1, 2]}),
    ({"values": [[1, 2], [3]]}, {"choices": ["[1, 2]", "[3]"]}),
]


@pytest.mark.parametrize(("given", "ours"), RANGES)
def test_distributions_become_ranges(given: dict[str, Any], ours: dict[str, Any]) -> None:
    found = entry(given)
    assert found == ours
    assert [type(value) for value in found.values()] == [type(value) for value in ours.values()]


def test_exponents_of_e_become_values() -> None:
    plain, inverse = (entry({"min": -9.0, "max": -4.0, "distribution": f"{p}log_uniform"}) for p in ("", "inv_"))
    assert [plain["low"], plain["high"]] == pytest.approx([math.exp(-9), math.exp(-4)], rel=1e-5)
    assert [inverse["low"], inverse["high"]] == pytest.approx([math.exp(4), math.exp(9)], rel=1e-5)


@pytest.mark.parametrize("word", ["normal", "q_normal", "log_normal", "beta"])
def test_distributions_without_counterpart_are_ranges_with_a_note(word: str) -> None:
    found = converted(parameters={"x": {"distribution": word, "mu": 1.0, "sigma": 0.5, "a": 1, "b": 2}})
    assert len(notes_about(found, "parameters.x.distribution")) == 1
    x = found.tree["space"]["x"]
    assert x["low"] < x["high"]
    if "normal" in word:
        assert x["prior"]["at"] == pytest.approx(math.e if word == "log_normal" else 1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, ["python", "train.py", "{flags}"]),
        (["${env}", "python3", "${program}", "--n", 3, "${args}"], ["python3", "train.py", "--n", "3", "{flags}"]),
        ("${env} python ${program} ${args}", ["python", "train.py", "{flags}"]),
        (["${program}", "${args_no_hyphens}"], ["train.py", "lr={lr}", "model.n={model.n}", "flag={flag}"]),
        (["${program}", "${args_no_boolean_flags}"], ["train.py", "--lr={lr}", "--model.n={model.n}", "--flag"]),
        (["${program}", "${args_json_file}"], ["train.py", "{config.json}"]),
        (
            ["${program}", "--dir=${run_name}", "{a}", "${args}"],
            ["train.py", "--dir=${{run_name}}", "{{a}}", "{flags}"],
        ),
    ],
)
def test_macros_of_a_command_become_words(command: Any, words: list[str]) -> None:
    nested = {"n": {"min": 1, "max": 4}}
    parameters = SWEEP["parameters"] | {"model": {"parameters": nested}, "flag": {"value": True}}
    found = converted(parameters=parameters, **({} if command is None else {"command": command}))
    assert found.tree["command"] == words
    assert found.tree["base"] == {"flag": True}
    assert len(notes_about(found, "parameters.model")) == 1
    assert len([note for note in found.notes if "run_name" in note]) == ("${run_name}" in str(command))


def test_names_that_a_command_cannot_have_are_changed_and_reach_the_script_unchanged() -> None:
    lr = SWEEP["parameters"]["lr"]
    found = converted(parameters={"train/lr": lr, "opt.name": {"values": ["a", "b"]}, "dir": {"value": "out"}})
    assert list(found.tree["space"]) == ["train_lr", "opt_name"]
    assert found.tree["command"][2:] == ["--train/lr={train_lr}", "--opt.name={opt_name}", "--dir={dir_value}"]
    assert len(found.notes) == 4  # and that of the metric


def test_early_terminate_is_halving_at_the_same_iterations() -> None:
    rule = {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True}
    found = converted(early_terminate=rule, parameters=SWEEP["parameters"] | {"epochs": {"value": 45}})
    # W&B ends runs after 5, 15 and 45 iterations.
    assert found.tree["steps"] == {"last": 45, "rungs": 9}
    assert found.tree["pruner"] == {"name": "halving", "min_rungs": 1, "factor": 3}
    assert notes_about(found, "early_terminate.strict")
    # With s brackets below max_iter: 27 / 3^2 = 3.
    found = converted(early_terminate={"type": "hyperband", "s": 2, "eta": 3, "max_iter": 27})
    assert found.tree["steps"] == {"last": 27, "rungs": 9}
    unknown = converted(early_terminate=rule)
    assert unknown.tree["pruner"] == "none"
    assert "steps" not in unknown.tree
    assert notes_about(unknown, "early_terminate")


def test_method_budget_target_and_seed_have_counterparts() -> None:
    assert converted(method="grid").tree["sampler"] == "grid"
    assert converted(method="random").tree["sampler"] == "random"
    found = converted(metric={"name": "acc", "goal": "maximize", "target": 0.9, "impute": "worst"})
    assert (found.tree["objective"], found.tree["direction"]) == ("acc", "maximize")
    assert found.tree["budget"] == {"trials": 20, "target": "target"}
    assert found.tree["targets"] == {"target": 0.9}
    assert notes_about(found, "metric.impute")
    seeds = converted(parameters=SWEEP["parameters"] | {"seed": {"values": [7, 8]}})
    assert seeds.tree["base"] == {"seed": 7}
    assert notes_about(seeds, "parameters.seed")


def test_notes_name_the_line_of_the_key() -> None:
    text = (
        "method: random\nname: x\nsettings: 3\nparameters:\n  a:\n    values: [1, 2]\n    probabilities: [0.1, 0.9]\n"
    )
    found = convert_sweep(text, "s.yaml")
    assert any(note.startswith("s.yaml:3: settings: ") for note in found.notes)
    assert any(note.startswith("s.yaml:7: parameters.a.probabilities: ") for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune:\n  num_samples: 3\n", "s.yaml:1: tune: must be a W&B sweep"),
        ("method: grid\n", "s.yaml:1: parameters: required"),
        ("method: grid\nparameters:\n  lr: 0.1\n", "s.yaml:3: lr: must be a mapping, such as {value: 0.1}, got 0.1"),
        (
            "method: grid\nparameters:\n  a: [1, 2]\n",
            "s.yaml:3: a: must be a mapping, such as {values: [1, 2]}, got [1, 2]",
        ),
        ("parameters:\n  lr: {min: 1, max: 0.1}\n", "s.yaml:2: lr: min must be less than max"),
        ("parameters:\n  lr: {min: 0.1}\n", "s.yaml:2: lr: distribution uniform"),
        (
            "parameters:\n  lr: {min: 0, max: 1, distribution: log_uniform_values}\n",
            "s.yaml:2: lr: min must be greater",
        ),
        ("parameters:\n  lr:\n    distribution: lognormal\n", "s.yaml:3: lr: distribution must be one of"),
        ("parameters:\n  lr: {value: 3}\n", "s.yaml:1: parameters: must have one"),
        ("parameters:\n  lr: {values: 3}\n", "s.yaml:2: lr: values must be a list"),
        ("a: [", "s.yaml: line 1"),
        ("- 1", "s.yaml: must be a W&B sweep"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_line(text: str, message: str) -> None:
    if "min: 0.1}" in text:
        text, message = text.replace("min: 0.1", "min: x"), message
    with pytest.raises(Problem, match=f"^{re.escape(message)}"):
        convert_sweep(text, "s.yaml")


def test_the_written_study_passes_the_check_and_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    sweep = SWEEP | {
        "description": "Which rate?",
        "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2},
        "parameters": {f"x{i}": given for i, (given, _) in enumerate(RANGES)}
        | {"model": {"parameters": {"width": {"values": [32, 64]}}}, "steps": {"value": "off"}},
    }
    Path("sweep.yaml").write_text(json.dumps(sweep))
    import_sweep(Path("sweep.yaml"), Path("study.yaml"))
    text = Path("study.yaml").read_text()
    tree = parse_yaml(text)
    assert tree == convert_sweep(json.dumps(sweep), "sweep.yaml").tree
    assert check_file("study.yaml", []).startswith(f"study.yaml: ok; {len(RANGES) + 1} hyperparameters, 9 rungs")
    assert_schema_agrees(tree, accepted=True)
    assert re.search(r"^# yaml-language-server: \$schema=(.*)$", text, re.M)
    with pytest.raises(Problem, match="must be a new file"):
        import_sweep(Path("sweep.yaml"), Path("study.yaml"))


def test_import_prints_the_study_on_standard_output_and_notes_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    done = hpo("import", "sweep.yaml", cwd=tmp_path)
    assert parse_yaml(done.stdout) == converted().tree
    assert all(line.startswith("note: sweep.yaml:1: ") for line in done.stderr.splitlines())
    refused = hpo("import", "sweep.yaml", "--study", "x", cwd=tmp_path, status=2)
    assert refused.stderr.startswith("hpo: --study: must be omitted with a sweep, sweep.yaml")
