"""Names of new studies follow one rule, and studies with other names continue under them."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpo.queue.registry import register_study
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.study.names import name_problem
from tests.support.command import environment, hpo, trivial

INVALID = [
    "my study",
    "a;b",
    "..",
    ".hidden",
    "-x",
    "a/b",
    "a\nb",
    "\x1b[31m",
    "",
    "x" * 101,
    "é" * 101,
    "a.yaml",
    "[b]",
]


@pytest.mark.parametrize("name", ["a", "beta2_sweep", "_x", "A-b.c_1", "Größe", "cafe\u0301", "日本語", "x" * 100])
def test_letters_digits_and_a_few_signs_make_a_valid_name(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("name", INVALID)
def test_other_names_are_refused(name: str) -> None:
    assert (name_problem(name) or "").startswith("must be a name")


@pytest.mark.parametrize("file", ["my study.yaml", "a;b.yaml", "...yaml", "-x.yaml", "mk[b].yaml"])
def test_new_study_with_an_invalid_name_is_refused_before_anything_is_created(file: str, tmp_path: Path) -> None:
    trivial(tmp_path).rename(tmp_path / file)
    for command in (["launch", "--study", f"./{file}"], ["check", f"./{file}"]):
        failed = hpo(*command, cwd=tmp_path, status=2)
        assert "the name of the file must be a name of letters, digits, '-', '_' and '.'" in failed.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path.parent / "study.yaml").exists()


def test_study_that_has_another_name_continues_and_can_be_confirmed(here: Path) -> None:
    path = trivial(here, "my study")
    with (here / "trivial.py").open("a") as module:
        module.write("\n\nclass Config(Config):\n    seed: int = 0\n")
    study = load_study(str(path))
    (here / "runs").mkdir()
    with open_store(f"sqlite:///{here}/runs/hpo.db", create=True) as store:
        register_study(store, study, None, {})
    done = hpo("launch", "--study", "my study.yaml", "--plain", cwd=here)
    printed = next(line for line in done.stdout.splitlines() if "hpo confirm" in line)
    assert printed.strip() == "hpo confirm --study 'my study' --workers 1"
    script = f"{sys.executable} -m {printed.strip()} --seeds 6 --top 1 --quiet"
    confirmed = subprocess.run(["bash", "-c", script], cwd=here, env=environment(), capture_output=True, text=True)
    assert confirmed.returncode == 0, confirmed.stderr
    assert "my study-confirm" in hpo("studies", "--format", "json", cwd=here).stdout
