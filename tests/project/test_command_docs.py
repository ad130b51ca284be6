"""The examples of docs/command.md and of README: scripts that do not know hpo, and their study files."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from hpo.config.yaml import parse_yaml
from hpo.runs.metrics import read_metrics
from hpo.study.spec import StudyFile
from tests.support.command import hpo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8").partition("## Use your own training code")[2]


# The word `python` of a command is the first one of PATH, as in a shell.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def block(text: str, language: str) -> str:
    """Return the first block of a language in a document."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)[0]


@pytest.mark.exhaustive
def test_worked_example_of_a_script_in_the_style_of_nanogpt(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block(PAGE, "python"))
    (tmp_path / "nanogpt.yaml").write_text(block(PAGE, "yaml"))
    typed = [shlex.split(line[2:]) for line in block(PAGE, "console").splitlines()]
    assert [words[1] for words in typed] == ["check", "launch", "confirm", "export", "train"]
    hpo(*typed[0][1:], cwd=tmp_path, PATH=PATH)
    hpo(*typed[1][1:], "--trials", "2", "--quiet", cwd=tmp_path, PATH=PATH)
    rows = list(read_metrics(tmp_path / "runs/nanogpt/trials/0000/metrics.jsonl"))
    assert [(row["rung"], row["step"]) for row in rows] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] < 5
    assert rows[-1]["train_loss"] < 5
    hpo(*typed[3][1:], cwd=tmp_path, PATH=PATH)
    trained = hpo(*typed[4][1:], cwd=tmp_path, PATH=PATH).stdout
    value = parse_yaml((tmp_path / "best.yaml").read_text())["provenance"]["value"]
    assert f"rung 4  val_loss {value:.4f}" in trained


@pytest.mark.exhaustive
def test_worked_example_is_confirmed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block(PAGE, "python"))
    (tmp_path / "nanogpt.yaml").write_text(block(PAGE, "yaml"))
    for line in block(PAGE, "console").splitlines():
        hpo(*shlex.split(line[2:])[1:], cwd=tmp_path, PATH=PATH)


def test_readme_shows_the_output_of_its_search_of_a_script(tmp_path: Path) -> None:
    study = block(README, "yaml")
    assert len(study.strip().splitlines()) <= 6
    (tmp_path / "train.py").write_text(block(PAGE.partition("## A script of 30 lines")[2], "python"))
    (tmp_path / "waves.yaml").write_text(study)
    done = hpo("launch", "--study", "waves", "--quiet", cwd=tmp_path, PATH=PATH)
    shown = [re.sub(r"after \S+ s", "after", line) for line in block(README, "text").strip().splitlines()]
    found = [re.sub(r"after \S+ s", "after", line) for line in (done.stderr + done.stdout).splitlines()]
    assert [line for line in shown if line not in found] == []


def test_every_study_file_of_the_page_is_valid() -> None:
    files = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    assert len(files) >= 3
    for text in files:
        tree = parse_yaml(text)
        StudyFile.model_validate({"space": {"lr": {"low": 1.0, "high": 2.0}}} | tree)
