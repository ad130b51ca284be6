"""A damaged SQLite file ends every command with one message and status 4, whatever is damaged in it."""

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from hpo.cli.main import _Output, _run
from hpo.errors import StorageError
from hpo.storage import damage
from hpo.storage.damage import check_damage
from tests.support.cases import covering
from tests.support.command import finished_study, hpo

COMMANDS = [
    "status",
    "studies",
    "trials --format json",
    "show 0",
    "why 1",
    "logs 0",
    "export -o out.yaml",
    "report --html out.html",
    "pause",
    "stop",
    "kill 1",
    "retry 1",
    "enqueue --set lr=0.3",
    "confirm --dry-run",
    "worker --study trivial",
    "launch --study trivial --workers 1 --plain",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study has run to its end."""
    return finished_study(tmp_path_factory.mktemp("finished"))


def garbage(content: bytes) -> bytes:
    """Replace pages by random bytes."""
    pages, rng = bytearray(content), random.Random(3)
    for page in rng.sample(range(1, len(content) // 4096), 12):
        pages[4096 * page : 4096 * (page + 1)] = rng.randbytes(4096)
    return bytes(pages)


def changed(statement: str) -> Callable[[bytes], bytes]:
    """Return a function that changes the content of a database by a statement."""

    def change(content: bytes) -> bytes:
        with sqlite3.connect(":memory:") as connection:
            connection.deserialize(content)
            connection.execute(statement)
            connection.commit()
            return connection.serialize()

    return change


# In the mode WAL, SQLite cannot open a database in memory: bytes 18 and 19 say which mode a file has.
def without_wal(content: bytes) -> bytes:
    return content[:18] + b"\1\1" + content[20:]


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "no database": lambda content: b"a text that is not a database\n" * 500,
    "truncated": lambda content: content[: len(content) // 2 + 1000],
    "garbage pages": garbage,
    "zeros in its pages": lambda content: content[:8192] + bytes(len(content) - 8192),
    "damaged schema": lambda content: content[:100] + b"\xff" * 100 + content[200:],
    "without the table trials": changed("DROP TABLE trials"),
    "without the table version_info": changed("DROP TABLE version_info"),
    "a value that is not UTF-8": changed("UPDATE study_user_attributes SET value_json = CAST(x'22ff' AS TEXT)"),
}


@pytest.mark.parametrize(("command", "kind"), covering(COMMANDS, list(KINDS)))
def test_a_damaged_file_is_one_message(
    command: str,
    kind: str,
    finished: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished, here, dirs_exist_ok=True)
    file = here / "runs" / "hpo.db"
    file.write_bytes(KINDS[kind](without_wal(file.read_bytes())))
    before = file.read_bytes()
    monkeypatch.setattr(damage, "_opened", {})
    monkeypatch.setattr(sys, "argv", ["hpo", *command.split()])
    with _Output(os.open(os.devnull, os.O_WRONLY), "w") as output:
        assert _run(output) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hpo: ")]
    assert len(lines) == 1
    assert lines[0].startswith("hpo: storage sqlite:///runs/hpo.db: ")
    assert "restore a copy of it" in lines[0]
    assert file.read_bytes() == before or "value" in kind


def test_repair_of_a_damaged_file_is_a_command_for_the_shell(finished: Path, here: Path) -> None:
    file = here / "my runs; x.db"
    file.write_bytes(garbage((finished / "runs" / "hpo.db").read_bytes()))
    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)
    with pytest.raises(StorageError) as caught:
        check_damage(engine, f"sqlite:///{file}", 1.0)
    assert str(caught.value).endswith(f"or repair it with `sqlite3 '{file}' .recover`")


def test_doctor_names_the_damage(finished: Path, here: Path) -> None:
    shutil.copytree(finished, here, dirs_exist_ok=True)
    file = here / "runs" / "hpo.db"
    file.write_bytes(garbage(file.read_bytes()))
    assert "the file is damaged" in hpo("doctor", "--fix", cwd=here, status=4).stdout


def test_an_empty_file_has_no_study(here: Path) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "hpo.db").write_bytes(b"")
    assert "no study in sqlite:///runs/hpo.db" in hpo("status", cwd=here, status=4).stderr


def test_a_large_file_is_not_checked_at_every_start(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{finished}/runs/hpo.db"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    check_damage(engine, url, 1.0)
    checks: list[object] = []
    monkeypatch.setattr(damage, "_structure", lambda checked: checks.append(checked) or "ok")
    check_damage(engine, url, 1.0, max_bytes=1000)
    assert checks == []
    check_damage(engine, url, 1.0)
    assert len(checks) == 1


def test_an_error_of_the_program_is_not_called_damage(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "_opened", {f"sqlite:///{finished}/runs/hpo.db": None})
    with pytest.raises(KeyError) as caught:
        raise KeyError("of this test")
    assert damage.explain_failure(caught.value) is None
