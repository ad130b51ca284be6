"""The key `command` of a study file: its checks, its configuration, and the definition that is stored."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config.permission import named_code
from hpo.errors import Problem
from hpo.study.command_config import command_config
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.load import load_study
from hpo.study.omitted import with_stored_values
from hpo.study.spec import Study
from hpo.study.stored import study_file_tree, study_from_spec
from model.section import flat
from tests.support.study_files import write

FILE: dict[str, Any] = {
    "command": "python train.py --lr={lr} --n={n} --seed={seed}",
    "metric": {"pattern": r"step (?P<step>\d+): val loss (?P<val_loss>\S+)"},
    "steps": {"rungs": 4, "last": 100},
    "space": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "n": {"low": 1, "high": 8}},
    "baseline": [{"lr": 3e-4, "n": 2}],
    "budget": {"trials": 4},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    return tmp_path


def loaded(**changes: Any) -> Study:
    tree = {key: value for key, value in {**FILE, **changes}.items() if value is not ...}
    return load_study(write(tree))


def test_command_is_a_list_of_words_or_text() -> None:
    words = ("python", "train.py", "--lr={lr}", "--n={n}", "--seed={seed}")
    assert loaded().file.command == loaded(command=list(words)).file.command == words
    assert loaded().rungs == 4
    assert loaded(steps=...).rungs == 1
    assert loaded(steps={"last": 3}).rungs == 3


def test_whole_numbers_stay_whole_and_other_values_keep_their_type() -> None:
    space = {
        "n": {"low": 1, "high": 8},
        "lr": {"low": 0, "high": 1.0},
        "dropout": {"low": 0, "high": 1},
        "words": {"choices": ["a", "b"]},
        "mixed": {"choices": [2, "b", None, True]},
        "optimizer.beta2": {"low": 0.9, "high": 0.99, "complement_log": True},
    }
    study = loaded(space=space, command="python train.py {flags}", base={"dropout": 0.0, "fixed": [1, 2]}, baseline=...)
    values = {"n": 3, "lr": 1, "dropout": 1, "words": "b", "mixed": True, "optimizer.beta2": 0.95}
    fields = flat(study.configured(values))
    assert {key: repr(value) for key, value in fields.items()} == {
        "dropout": "1.0",
        "fixed": "[1, 2]",
        "n": "3",
        "lr": "1.0",
        "words": "'b'",
        "mixed": "True",
        "optimizer.beta2": "0.95",
    }
    again = study_from_spec(study.spec())
    assert flat(again.configured(values)) == fields
    assert type(again.base) is type(study.base)


def test_seed_is_a_field_only_if_the_command_mentions_it() -> None:
    assert "seed" in flat(loaded().base)
    without = loaded(command="python train.py {flags}")
    assert "seed" not in flat(without.base)
    with pytest.raises(Problem, match=r"baseline_seeds: must be used with \{seed\} in the command"):
        loaded(command="python train.py {flags}", baseline_seeds=2)


def test_baselines_run_first_and_a_file_without_one_has_none() -> None:
    assert loaded().slots()[0] == ("baseline", {"lr": 3e-4, "n": 2})
    assert [kind for kind, _ in loaded(baseline=...).slots()] == ["search"] * 4
    complete = loaded(baseline=..., base={"lr": 3e-4, "n": 2})
    assert complete.slots()[0] == ("baseline", {})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"command": "python train.py --lr={lrr} {n}"}, "command.2: no such parameter: {lrr}; did you mean lr?"),
    ({"command": "python trian.py {flags}"}, "command: no such file in the current folder: trian.py"),
    ({"command": "train"}, "command: must have at least two words or be a path, got 'train'"),
    ({"command": "python 'train.py"}, 'command: must be words, got "python \'train.py": No closing quotation'),
    ({"command": []}, "command: must not be empty"),
    ({"env": {"A": "{x}"}}, "env.A: no such parameter: {x}"),
    ({"env": {"A B": "x"}}, "env.A B"),
    ({"metric": {"pattern": "loss (?P<loss>.*)"}}, "metric.pattern: must have a group of the name of the objective"),
    ({"metric": {"pattern": "loss ("}}, "metric.pattern: must be a regular expression, got 'loss ('"),
    ({"metric": {"file": "../x"}}, "metric.file: must be a path inside the folder {dir}"),
    ({"metric": {}}, "metric: must have either pattern or file"),
    ({"metric": {"name": "val_acc", "goal": "maximize"}}, "metric.name: no such field; use objective: val_acc"),
    ({"steps": {"rungs": 8, "last": 5}}, "steps: rungs must be at most last, 5, got 8"),
    ({"rungs": 4}, "rungs: must be omitted with command; use steps.rungs"),
    ({"train": "a:b"}, "train: must be omitted with command"),
    ({"baseline": [{"lr": 3e-4}]}, "baseline.0: must name every parameter of the space, because a command has no"),
    ({"baseline": [{"lr": 3e-4, "n": 2, "m": 1}]}, "baseline.0.m: no such field"),
    ({"base": {"from": "x"}}, "base.from: must be omitted with command"),
    ({"space": {**FILE["space"], "dir": {"low": 0, "high": 1}}}, "dir: must be another name, because {dir}"),
    ({"space": {**FILE["space"], "a b": {"low": 0, "high": 1}}}, "a b: must be a name of letters"),
    ({"space": {**FILE["space"], "n.x": {"low": 0, "high": 1}}}, "n.x: must not be a part of the parameter n"),
    ({"command": ..., "train": "a:b", "config": "a:B"}, "metric: must be used with command"),
    ({"budget": {"tokens": 100}}, "budget.tokens: must be used with a config that has a method rung_tokens()"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_each_mistake_has_one_clear_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as refused:
        loaded(**changes)
    assert any(line.startswith(f"s.yaml: {message}") for line in refused.value.lines), refused.value


def test_stored_definition_gives_the_same_study_and_file() -> None:
    study = loaded(env={"X": "{lr}"})
    again = study_from_spec(study.spec())
    assert again.spec() == study.spec()
    tree = study_file_tree(study.spec(), study.file.budget.model_dump())
    assert not tree.keys() & {"train", "config", "rungs"}
    assert spec_fingerprint(load_study(write(tree)).spec()) == spec_fingerprint(study.spec())
    other = loaded(command="python train.py --lr={lr} --n={n} --seed={seed} --more")
    assert spec_fingerprint(other.spec()) != spec_fingerprint(study.spec())


def test_definition_of_an_earlier_version_has_no_command() -> None:
    study = load_study("beta2_sweep")
    spec = study.spec()
    old = {key: value for key, value in spec.items() if key not in ("command", "env", "metric", "steps")}
    assert spec_fingerprint(old) == spec_fingerprint(spec)
    assert study_from_spec(old).file.command is None


def test_omitted_fields_of_a_command_keep_their_stored_values() -> None:
    stored = loaded(sampler={"name": "tpe", "startup_trials": 7})
    assert with_stored_values(loaded(), stored).file.sampler == stored.file.sampler


def test_stored_command_is_code_that_must_be_permitted() -> None:
    spec = loaded().spec()
    assert named_code(spec) == {"command": "python train.py '--lr={lr}' '--n={n}' '--seed={seed}'"}
    evil = {**spec, "command": ["sh", "-c", "evil"]}
    with pytest.raises(Problem, match=r"its command sh -c evil is not run, because the storage names it"):
        study_from_spec(evil)
    with pytest.raises(Problem, match=r"LD_PRELOAD=x python train.py"):
        study_from_spec({**spec, "env": {"LD_PRELOAD": "x"}})
    with pytest.raises(Problem, match=r"evil:train"):
        study_from_spec({**spec, "train": "evil:train"})


def test_parameters_may_have_the_names_of_pydantic_methods() -> None:
    kind = command_config((), {}, {"json": 1, "copy": 2, "learning-rate": 0.5}, {})
    assert flat(kind(json=3)) == {"json": 3, "copy": None, "learning-rate": None}
