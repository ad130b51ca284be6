"""The place of the data is not part of a study: a moved project continues, and --set data.path gives a new place."""

import json
from pathlib import Path

import pytest

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.storage.attributes import SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.studies import study_attrs
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.load import load_study
from hpo.study.places import at_places, place_options
from tests.support.command import hpo, run_in_process
from tests.support.tiny import text, tiny

WORKER = ("--workers", "1", "--quiet")


def write_project(folder: Path) -> Path:
    """Write a study of a text beside it, with a path relative to the folder."""
    folder.mkdir()
    (folder / "words.txt").write_text(text(5), "utf-8")
    base = tiny({"data.path": "words.txt"}).model_dump(mode="json")
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    tree = {"base": base, "space": space, "sampler": {"name": "random"}, "pruner": {"name": "none"}}
    (folder / "moved.yaml").write_text(dump_yaml({**tree, "budget": {"trials": 2}}))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose study has run."""
    project = write_project(tmp_path / "one")
    hpo("launch", "--study", "moved.yaml", *WORKER, cwd=project)
    return project


def stored_path(project: Path) -> str:
    with open_readonly(f"sqlite:///{project}/runs/hpo.db") as store:
        return str(study_attrs(store, 1)[SPEC]["base"]["data"]["path"])


def n_complete(project: Path) -> int:
    return int(
        json.loads(run_in_process("status", "--study", "moved", "--format", "json", cwd=project))["trials"]["complete"]
    )


def test_moved_project_continues_and_another_text_is_refused_by_its_hash(project: Path, tmp_path: Path) -> None:
    project = project.rename(tmp_path / "two")
    hpo("launch", "--study", "moved.yaml", "--trials", "3", *WORKER, cwd=project)
    assert n_complete(project) == 3
    assert stored_path(project) == str(project / "words.txt")
    (project / "words.txt").write_text(text(6), "utf-8")
    refused = hpo("launch", "--study", "moved.yaml", "--trials", "4", *WORKER, cwd=project, status=2).stderr
    assert "study moved: its data has the hash" in refused


def test_every_command_names_the_way_to_give_a_new_place_and_takes_it(project: Path, tmp_path: Path) -> None:
    hpo("export", "-o", "best.yaml", cwd=project)
    (project / "moved.yaml").rename(tmp_path / "moved.yaml")
    (project / "words.txt").rename(tmp_path / "my words #1.txt")
    (project / "study.yaml").write_text((tmp_path / "moved.yaml").read_text())
    commands = [
        ("launch", "--study", "moved", "--trials", "3", *WORKER),
        ("worker", "--study", "moved"),
        ("train", "best.yaml"),
        ("confirm", "--seeds", "3", "--dry-run"),
        ("ablate", "--seeds", "3", "--dry-run"),
        ("fork", "study.yaml", "--from", "moved", "--as", "other"),
    ]
    for command in commands:
        refused = hpo(*command, cwd=project, status=2).stderr
        assert "data.path: no such file: " in refused, refused
        assert "; --set data.path=PATH gives the place of the data on this machine" in refused, refused
    for command in commands:
        hpo(*command, "--set", 'data.path="../my words #1.txt"', cwd=project)
    assert n_complete(project) == 3
    assert stored_path(project) == str(tmp_path / "one" / ".." / "my words #1.txt")


def test_only_places_of_a_stored_study_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path / "one"))
    study = load_study("moved.yaml")
    with pytest.raises(Problem, match=r"--set run.tokens: must be omitted, .* only data.path can be set"):
        at_places(study, ["data.path=words.txt", "run.tokens=100"])
    moved = at_places(study, ["data.path=elsewhere.txt"])
    assert spec_fingerprint(moved.spec()) == spec_fingerprint(study.spec())
    assert place_options(moved) == ["--set", f'data.path="{tmp_path}/one/elsewhere.txt"']
