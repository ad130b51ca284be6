"""Which training code a command imports for a study of the storage, whose rows anyone who can write it may change."""

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cases import covering
from tests.support.command import environment, hpo, trivial

# Every command that reads a study, and its exit status where the study names code that the user has not named
COMMANDS = {
    "studies": 0,
    "status": 0,
    "trials": 0,
    "show 1": 0,
    "why 1": 0,
    "logs 1": 0,
    "best": 0,
    "report": 0,
    "doctor": 0,
    "export": 2,
    "worker": 2,
    "launch --study trivial --dry-run": 0,  # describes the file
    "launch --study trivial": 2,
    "confirm --dry-run": 2,
    "ablate --dry-run": 2,
    "enqueue --set lr=0.5": 2,
    "fork other.yaml --from trivial --as other": 2,
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of four trials that has ended, and with a module that says when it is imported."""
    folder = tmp_path_factory.mktemp("launched")
    trivial(folder)
    hpo("launch", "--study", "trivial", "--quiet", cwd=folder)
    (folder / "evil.py").write_text("open('imported', 'w').close()\nfrom trivial import *\n")
    return folder


@pytest.fixture
def folder(launched: Path, tmp_path: Path) -> Path:
    """A copy of this folder."""
    return Path(shutil.copytree(launched, tmp_path / "copy"))


def change(folder: Path, **keys: Any) -> None:
    """Change the definition of the study as someone who can write the storage could."""
    with contextlib.closing(sqlite3.connect(folder / "runs/hpo.db")) as connection:
        row, text = connection.execute(
            "SELECT study_user_attribute_id, value_json FROM study_user_attributes WHERE key = 'hpo:spec'"
        ).fetchone()
        changed = json.dumps(json.loads(text) | keys)
        connection.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?", (changed, row)
        )
        connection.commit()


def test_no_command_imports_code_that_only_the_storage_names(folder: Path) -> None:
    change(folder, train="evil:train", config="evil:Config")
    (folder / "other.yaml").write_text((folder / "trivial.yaml").read_text())
    for command, status in COMMANDS.items():
        found = hpo(*command.split(), cwd=folder, status=status)
        if status and "launch" not in command:
            assert "its training code evil:train and evil:Config is not imported" in found.stderr, command
    assert not (folder / "imported").exists()


ADDRESSES: list[dict[str, Any]] = [
    {"train": "evil:train", "config": "model.config:TrainConfig"},
    {"train": "model.train.trainer:Trainer", "config": "evil:Config"},
    {"train": "os:system", "config": "subprocess:Popen"},
    {"config": "trivial:train"},
    {"config": "trivial.os:system"},
    {"config": "../evil:Config"},
    {"train": 7},
]


@pytest.mark.parametrize(("code", "command"), covering(ADDRESSES, ("export", "worker", "confirm --dry-run")))
def test_no_form_of_a_stored_address_is_imported(folder: Path, code: dict[str, Any], command: str) -> None:
    change(folder, **code)
    refused = hpo(*command.split(), cwd=folder, status=2).stderr
    assert re.search(r"is not imported|must be module:name|must be a pydantic model|has an invalid", refused)
    assert not (folder / "imported").exists()


def test_message_names_the_option_that_permits_the_code_and_the_option_does(folder: Path, tmp_path: Path) -> None:
    (folder / "trivial.yaml").rename(tmp_path / "trivial.yaml")
    for command in ("export", "worker", "enqueue --set lr=0.5", "launch --study trivial"):
        refused = hpo(*command.split(), cwd=folder, status=2).stderr
        assert "its training code trivial:train and trivial:Config is not imported" in refused
        _, _, option = refused.strip().rpartition("add ")
        assert option == "--allow-train trivial:train"
        hpo(*command.split(), *option.split(), cwd=folder)
    assert "hpo: --allow-train: must be module:name" in hpo("export", "--allow-train", "x", cwd=folder, status=2).stderr
    # any study file in the folder that names the code is a permission too
    (folder / "another.yaml").write_text((tmp_path / "trivial.yaml").read_text())
    assert "train: trivial:train" in hpo("export", cwd=folder).stdout


def test_follower_serves_the_code_that_an_option_names_and_no_other(folder: Path) -> None:
    hpo("retry", "1", cwd=folder, status=2)
    hpo("enqueue", "--set", "lr=0.25", cwd=folder)
    command = [sys.executable, "-m", "hpo", "worker", "--follow"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for allowed, expected in (([], "trivial: skipped for 60 s"), (["--allow-train", "trivial:train"], "trivial: ")):
        with subprocess.Popen([*command, *allowed], cwd=folder, env=environment(), **streams) as process:  # type: ignore[call-overload]
            line = process.stdout.readline()
            assert line.startswith(expected), line
            assert ("is not imported" in line) == (not allowed), line
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 130


OUTSIDE = ("../../outside", "{folder}/outside", "..", "a/b", "")
STATUSES = {"worker": 2, "report": 2, "logs 1": 2, "status": 0, "doctor --fix": 1}


@pytest.mark.parametrize(("name", "command"), covering(OUTSIDE, list(STATUSES)))
def test_study_whose_name_leads_out_of_the_folder_of_runs_writes_nothing_there(
    folder: Path, name: str, command: str
) -> None:
    name = name.format(folder=folder.parent)
    before = sorted(str(path) for path in folder.parent.rglob("*"))
    with contextlib.closing(sqlite3.connect(folder / "runs/hpo.db")) as connection:
        connection.execute("UPDATE studies SET study_name = ?", (name,))
        connection.commit()
    change(folder, name=name)
    (folder / "trivial.yaml").rename(folder / "file.yaml")
    found = hpo(*command.split(), cwd=folder, status=STATUSES[command])
    if command != "status":
        assert "must have the name of a folder in --out" in found.stdout + found.stderr
    after = [path for path in sorted(str(path) for path in folder.parent.rglob("*")) if "__pycache__" not in path]
    assert [path for path in after if path not in before and not path.startswith(str(folder / "runs/hpo.db"))] == [
        str(folder / "file.yaml")
    ]
