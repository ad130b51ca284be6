"""What the documents say to type works, and what they name exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from hpo.config.yaml import parse_yaml
from hpo.study.spec import StudyFile
from model.config import TrainConfig
from tests.support.tiny import text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# A tour that takes seconds: fewer trials and seeds of a smaller network, nothing else changed.
SMALLER = ["--trials", "4", "--set", "run.tokens=8192", "--set", "model.n_embd=16", "--set", "model.context=16"]


def typed(text: str) -> list[list[str]]:
    """Return the commands behind a prompt in console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    return [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_readme_runs_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "my-notes.txt").write_text(text(lines=1500))
    tour = typed(README)
    assert len(tour) >= 10
    own_text = tour[0]
    assert own_text[-4:] == ["--set", "data.name=text", "--set", "data.path=my-notes.txt"]
    for command in tour:
        words = list(command)
        if words[1] == "launch":
            words += SMALLER
        if words[1] in ("confirm", "ablate"):
            words += ["--seeds", "3"]
        if command == own_text:
            words += ["--storage", "own.db"]
        asked = [sys.executable, "-m", *words]
        found = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == 0, f"{shlex.join(words)}\n{found.stdout}{found.stderr}"


def test_every_command_is_named_in_the_documents_and_every_named_one_exists() -> None:
    env = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    shown = subprocess.run([sys.executable, "-m", "hpo", "--help"], capture_output=True, text=True, env=env, check=True)
    commands = set(re.findall(r"^\W*([a-z]+)  ", shown.stdout.partition("Run:")[2], re.M))
    assert len(commands) >= 13
    everything = README + "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert commands - set(re.findall(r"hpo ([a-z]+)", everything)) == set()
    mentioned = set(re.findall(r"`hpo ([a-z]+)", everything)) | {words[1] for words in typed(everything)}
    assert mentioned <= commands


def test_the_study_in_the_readme_is_the_shipped_one() -> None:
    shipped = (ROOT / "studies" / "beta2_sweep.yaml").read_text("utf-8")
    quoted = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert quoted
    assert parse_yaml(quoted[0]) == parse_yaml(shipped)


def test_every_component_is_named_in_the_readme() -> None:
    for field in ("sampler", "pruner"):
        names = [kind.model_fields["name"].default for kind in StudyFile.model_fields[field].annotation.__args__]  # type: ignore[union-attr]
        assert [name for name in names if f"`{name}`" not in README] == []
    for field in TrainConfig.model_fields.values():
        kinds = get_args(field.annotation)
        assert [kind for kind in kinds if f"`{kind.model_fields['name'].default}`" not in README] == []


def test_every_shipped_study_and_base_is_named_in_the_readme() -> None:
    shipped = [path.stem for path in (ROOT / "studies").glob("*.yaml") if path.stem != "claims"]
    bases = [path.stem for path in (ROOT / "studies/bases").glob("*.yaml") if not path.stem.endswith("-small")]
    assert [name for name in shipped + bases if f"`{name}`" not in README] == []
    assert all((ROOT / f"studies/bases/{name}-small.yaml").is_file() for name in bases)


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    assert [t for t in targets if "://" not in t and not (path.parent / t).exists()] == []
