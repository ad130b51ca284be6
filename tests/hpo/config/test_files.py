"""A base is a configuration with a name: studies begin from it, `hpo train` trains it."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config import files
from hpo.config.discovery import find_base, find_study, is_ledger, list_studies, shipped_folder
from hpo.config.files import read_config
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.study.load import load_study
from hpo.study.stored import study_from_spec
from model.config import TrainConfig
from model.section import flat
from tests.support.command import hpo, write_base

BASE: dict[str, Any] = {
    "tokenizer": {"name": "bytes"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16},
    "optimizer": {"name": "adamw", "lr": 3e-3, "beta2": 0.9},
    "run": {"tokens": 2048, "rungs": 2, "batch_size": 4},
}
SHIPPED = sorted((shipped_folder() / "bases").glob("*.yaml"))
SYSTEMS = ("mainrun", "blueberry", "microgpt", "unet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one base of its own."""
    write_base(tmp_path, "mine", BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(**tree: Any) -> TrainConfig:
    return files.resolve_base(tree, TrainConfig)


def write(base: dict[str, Any]) -> str:
    space = {"run.grad_accum": {"choices": [1, 2]}}
    Path("s.yaml").write_text(dump_yaml({"base": base, "space": space, "budget": {"trials": 2}}))
    return "s.yaml"


def test_fields_beside_from_replace_those_of_the_base_and_no_others() -> None:
    whole = flat(resolved(**{"from": "mine"}))
    assert whole["optimizer.beta2"] == 0.9
    changed = flat(resolved(**{"from": "mine", "optimizer": {"lr": 1e-2}, "run": {"seed": 7, "rungs": 4}}))
    assert {key for key in whole if whole[key] != changed[key]} == {"optimizer.lr", "run.seed", "run.rungs"}


def test_another_component_keeps_what_the_base_says_and_it_has() -> None:
    sgd = resolved(**{"from": "mine", "optimizer": {"name": "sgd", "momentum": 0.5}}).optimizer
    assert (sgd.name, sgd.lr, flat(sgd)["momentum"]) == ("sgd", 3e-3, 0.5)
    assert "beta2" not in flat(sgd)


def test_base_is_found_by_path_too() -> None:
    assert resolved(**{"from": "studies/bases/mine.yaml"}) == resolved(**{"from": "mine"})


def test_mapping_without_from_is_a_configuration_as_before() -> None:
    assert resolved(optimizer={"lr": 2e-3}) == TrainConfig.model_validate({"optimizer": {"lr": 2e-3}})


def test_whole_base_travels_in_the_study() -> None:
    study = load_study(write({"from": "mine", "optimizer": {"lr": 1e-2}}))
    spec = parse_yaml(dump_yaml(study.spec()))
    assert "from" not in spec["base"]
    Path("studies/bases/mine.yaml").unlink()
    again = study_from_spec(spec)
    assert again.base == study.base
    assert flat(again.base)["optimizer.beta2"] == 0.9
    assert flat(again.base)["run.align"] == 128  # two accumulated batches: rungs fit the whole space


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ({"from": "mien"}, "s.yaml: base.from: no base 'mien'; did you mean mine? (there are "),
        ({"from": "bases/mine.yaml"}, "s.yaml: base.from: no such file: bases/mine.yaml; did you mean mine?"),
        ({"from": 3}, "s.yaml: base.from: must be the name of a base, got 3"),
        ({"from": "mine", "optimizer": {"lrr": 1}}, "s.yaml: base.optimizer.lrr: no such field; did you mean"),
        (
            {"from": "mine", "optimizer": {"lr": 0.1}, "optimizer.lr": 0.2},
            "s.yaml: base.optimizer.lr: must be given once, "
            "got a field of a section and a dotted field; remove one of them",
        ),
        ({"from": "mine", "optimizer": 3}, "s.yaml: base.optimizer: must be a mapping, got 3"),
        ({"from": "mine", "optimiser": {"lr": 3}}, "s.yaml: base.optimiser: no such field; did you mean optimizer?"),
        ({"from": "mine", "optimizer": {"lr": -1}}, "s.yaml: base.optimizer.lr: must be greater than 0, got -1"),
    ],
)
def test_mistake_in_a_base_is_one_line(base: dict[str, Any], line: str) -> None:
    with pytest.raises(Problem) as caught:
        load_study(write(base))
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


def test_mistake_in_the_file_of_a_base_names_that_file() -> None:
    Path("studies/bases/mine.yaml").write_text("optimizer: {lrr: 1}")
    with pytest.raises(Problem, match=r"^s.yaml: base.from: studies/bases/mine.yaml: optimizer.lrr: no such field"):
        load_study(write({"from": "mine"}))


def test_train_takes_a_base_by_name(folder: Path) -> None:
    done = hpo("train", "mine", "--set", "run.rungs=1", cwd=folder)
    assert done.stdout.startswith("rung 1 ")
    assert (folder / "runs/train/mine/config.yaml").is_file()
    assert "config: no base 'mien'; did you mean mine?" in hpo("train", "mien", cwd=folder, status=2).stderr
    assert "no such file: mien.yaml" in hpo("train", "mien.yaml", cwd=folder, status=2).stderr


def test_base_is_no_study_and_neither_is_a_ledger(folder: Path) -> None:
    said = "study: mine must be a study, got a base; use `base: {from: mine}` in a study file, or `hpo train mine`"
    assert said in hpo("check", "mine", cwd=folder, status=2).stderr
    said = "claims.yaml: must be a study, got a ledger of claims; use `hpo check claims` to validate the ledger"
    assert said in hpo("launch", "--study", "claims", cwd=folder, status=2).stderr
    with pytest.raises(Problem) as caught:
        find_study("nothing-like-it")
    listed = str(caught.value).partition("there are ")[2].partition(";")[0].split(", ")
    assert listed == [path.stem for path in list_studies(shipped_folder())]
    assert not {"claims", "mine", "mainrun"} & set(listed)
    assert is_ledger(find_study("claims"))


def test_there_are_four_systems_each_in_two_sizes() -> None:
    assert {path.stem for path in SHIPPED} == {name + size for name in SYSTEMS for size in ("", "-small")}
    for path in SHIPPED:
        assert find_base(path.stem, "base") == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_base_is_a_configuration_that_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# ")
    tree, provenance = read_config(path)
    assert provenance == {}
    config = TrainConfig.model_validate(tree)
    assert config.marks()[-1] * config.update_tokens() == config.run.tokens
