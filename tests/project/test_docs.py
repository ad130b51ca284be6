"""What the documents say to type works, and what they name exists."""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

from hpo.cli.reference import commands
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.study.spec import StudyFile
from model.config import TrainConfig
from tests.support.command import environment, hpo, run_in_process, write_base
from tests.support.tiny import text, tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
# A tour that takes seconds: fewer trials and seeds of a smaller network, nothing else changed.
# Fewer documents also make the validation set small, on which each rung is evaluated.
SMALLER = shlex.split(
    "--trials 4 --set run.tokens=4096 --set model.n_embd=16 --set model.context=16 --set data.max_documents=200"
)


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
    assert parse_yaml(quoted[-1]) == parse_yaml(shipped)


def test_every_component_has_a_row_in_the_documents() -> None:
    reference = (ROOT / "docs/configuration.md").read_text("utf-8")
    for field in ("sampler", "pruner"):
        names = [kind.model_fields["name"].default for kind in StudyFile.model_fields[field].annotation.__args__]  # type: ignore[union-attr]
        assert [name for name in names if f"`{name}`" not in README or f"name: {name}`" not in reference] == []
    for key, field in TrainConfig.model_fields.items():
        kinds = get_args(field.annotation)
        names = [kind.model_fields["name"].default for kind in kinds]
        assert [name for name in names if f"### `{key}.name: {name}`" not in reference] == []


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_of_the_python_reference_exist() -> None:
    names = re.findall(r"^::: (\S+)", (ROOT / "docs/python.md").read_text("utf-8"), re.M)
    assert len(names) > 5
    for module, _, name in (path.rpartition(".") for path in names):
        assert hasattr(importlib.import_module(module), name)


# A study under the name that the examples use, which trains in no time
SWEEP_MODULE = """
from pydantic import BaseModel


class Optimizer(BaseModel):
    lr: float = 0.1


class Run(BaseModel):
    tokens: int = 100_000


class Config(BaseModel):
    optimizer: Optimizer = Optimizer()
    run: Run = Run()
    seed: int = 0


def train(config):
    for rung in 1, 2, 3:
        yield rung, (config.optimizer.lr - 0.3) ** 2 + config.seed % 7 / 100 + 1 / rung
"""
SWEEP = {
    "train": "sweep:train",
    "config": "sweep:Config",
    "objective": "loss",
    "rungs": 3,
    "space": {"optimizer.lr": {"low": 0.0, "high": 1.0}},
    "pruner": {"name": "none"},
    "budget": {"trials": 9},
}
SCRIPT = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
for step in 1, 2, 3:
    print(f"step {step}: val_loss {parser.parse_args().lr / step}")
"""
WANDB_SWEEP = {
    "program": "train.py",
    "method": "random",
    "metric": {"name": "val_loss", "goal": "minimize"},
    "parameters": {"lr": {"min": 0.01, "max": 1.0}},
}
# What an example needs to end in seconds here
SHORTER = {"confirm": ["--seeds", "3", "--top", "1"], "ablate": ["--seeds", "3"], "claims": ["--list"]}
OWN_PROCESS = {
    "track",
    "launch",
    "worker",
    "confirm",
    "ablate",
    "transfer",
    "kill",
    "doctor",
}  # others answer in this process as well


def test_every_example_of_the_command_reference_runs(tmp_path: Path) -> None:
    sweep, gpt = tmp_path / "sweep", tmp_path / "gpt"
    sweep.mkdir()
    (sweep / "sweep.py").write_text(SWEEP_MODULE)
    for name in ("beta2_sweep", "new"):
        (sweep / f"{name}.yaml").write_text(dump_yaml(SWEEP))
    (sweep / "train.py").write_text(SCRIPT)
    (sweep / "sweep.yaml").write_text(dump_yaml(WANDB_SWEEP))
    # The examples that need the data or the configuration of a GPT run in a folder of their own.
    write_base(gpt, "mainrun-small", tiny().model_dump(mode="json"))
    study = {"base": {"from": "mainrun-small"}, "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}}
    (gpt / "beta2_sweep.yaml").write_text(dump_yaml(study))
    (gpt / "best.yaml").write_text((gpt / "studies/bases/mainrun-small.yaml").read_text())
    examples = [shlex.split(command.example)[1:] for command in commands()]
    for words in sorted(examples, key=lambda words: words[0] == "sample"):  # after `hpo train`
        if words[0] == "dashboard":
            with served_dashboard(sweep, words) as line:
                assert "http://127.0.0.1" in line
        elif words[0] in ("data", "train", "sample", "limits"):
            assert hpo(*words, cwd=gpt).stdout
        elif words[0] in OWN_PROCESS:
            # Trial 7 has ended already, and trackers are not installed.
            status = 2 if words[0] == "kill" or (words[0] == "track" and find_spec("mlflow") is None) else 0
            hpo(*words, *SHORTER.get(words[0], []), cwd=sweep, status=status)
        else:
            run_in_process(*words, *SHORTER.get(words[0], []), cwd=sweep)


@contextlib.contextmanager
def served_dashboard(folder: Path, words: list[str]) -> Iterator[str]:
    """Start the dashboard as a person does; yield its first line."""
    command = [sys.executable, "-m", "hpo", *words[:1], "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        yield process.stderr.readline()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_claims_file_of_the_configuration_reference_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(claims:.*?)```", (ROOT / "docs/configuration.md").read_text("utf-8"), re.S)
    (tmp_path / "mine.yaml").write_text(example)
    assert "1 claims, 2 arms of 1, 0 arithmetic" in run_in_process("check", "mine.yaml", cwd=tmp_path)


def test_every_shipped_study_and_base_is_named_in_the_documents() -> None:
    shipped = [path.stem for path in (ROOT / "studies").glob("*.yaml") if path.stem != "claims"]
    bases = [path.stem for path in (ROOT / "studies/bases").glob("*.yaml") if not path.stem.endswith("-small")]
    listed = README + "".join((ROOT / "docs" / page).read_text("utf-8") for page in ("studies.md", "reports.md"))
    assert [name for name in shipped + bases if f"`{name}`" not in listed] == []
    assert all((ROOT / f"studies/bases/{name}-small.yaml").is_file() for name in bases)


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    assert [t for t in targets if "://" not in t and not (path.parent / t).exists()] == []
