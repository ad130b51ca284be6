"""A command whose output nobody can read, or whose terminal lacks characters, ends without a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import parse_yaml
from tests.support.cases import exhaustive, sparse
from tests.support.command import MODULE, STUDY, environment, hpo, trivial

COMMANDS = """--help|--version|studies|status|trials|show 0|why 0|logs 0|best|export|check trivial.yaml|doctor|data list
trials --format json|trials --format csv|export --help|pause|resume|nonsense|show 99|report --html r.html"""
LINES = [line.split() for line in COMMANDS.replace("\n", "|").split("|")]


ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that has ended, whose names have characters that ASCII lacks."""
    folder = tmp_path_factory.mktemp("done")
    trivial(folder)
    (folder / "trivial.py").write_text(MODULE.replace("lr: float = 0.1", 'lr: float = 0.1\n    kind: str = "é"'))
    (folder / "trivial.yaml").write_text(
        STUDY.replace("high: 1.0}}", 'high: 1.0}, kind: {choices: ["é", "日本[b]", "a\\eb"]}}')
    )
    hpo("launch", "--study", "trivial.yaml", "--plain", cwd=folder)
    return folder


def started(words: list[str], cwd: Path, shell: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell that redirects its streams."""
    script = f'"$0" "$@" {shell}'
    command = ["bash", "-c", script, sys.executable, "-m", "hpo", *words]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", sparse(LINES, 4), ids=" ".join)
def test_command_whose_output_cannot_be_written_says_so(words: list[str], done: Path) -> None:
    full = hpo_to(words, done, "/dev/full", "stdout")
    fails = words[0] in ("pause", "resume", "nonsense", "report") or words == ["show", "99"]
    assert full.returncode == (2 if words[0] == "nonsense" or words == ["show", "99"] else 0 if fails else 1)
    message = "standard output cannot be written: No space left on device"
    assert (message in full.stderr) == (not fails)
    assert hpo_to(words, done, "/dev/full", "stderr").returncode in (0, 2)


def hpo_to(words: list[str], cwd: Path, file: str, stream: str) -> subprocess.CompletedProcess[str]:
    """Run a command with one of its streams redirected to a file."""
    with open(file, "w") as target:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: target}
        command = [sys.executable, "-m", "hpo", *words]
        ended = subprocess.run(command, cwd=cwd, env=environment(), text=True, timeout=120, **streams)
    assert "Traceback" not in (ended.stderr or "") + (ended.stdout or "")
    assert "Exception ignored" not in (ended.stderr or "")
    return ended


def test_output_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    """The output is ours: it neither fails a trial nor ends a run."""
    trivial(tmp_path)
    hpo("launch", "--study", "trivial.yaml", "--trials", "1", cwd=tmp_path)
    hpo("enqueue", "--set", "lr=0.5", cwd=tmp_path)
    for words in (["worker"], ["train", "runs/trivial/best.yaml"]):
        ended = hpo_to(words, tmp_path, "/dev/full", "stdout")
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1] == "hpo: standard output cannot be written: No space left on device"
    table = hpo("trials", "--format", "csv", cwd=tmp_path).stdout
    assert [line.split(",")[1] for line in table.splitlines()[1:]] == ["complete", "complete"]
    rungs = (tmp_path / "runs/train/best/metrics.jsonl").read_text().splitlines()
    assert len(rungs) == 3


@pytest.mark.usefixtures("new_interpreters")
def test_training_ends_at_its_rung_if_the_reader_of_its_output_leaves(tmp_path: Path) -> None:
    trivial(tmp_path)
    hpo("launch", "--study", "trivial.yaml", "--trials", "1", cwd=tmp_path)
    left = started(["train", "runs/trivial/best.yaml"], tmp_path, "| true; exit ${PIPESTATUS[0]}")
    assert left.returncode == 128 + signal.SIGPIPE
    assert left.stderr.splitlines()[-1] == "stopped; the run has no checkpoint"


@pytest.mark.usefixtures("new_interpreters")
def test_closed_output_and_a_reader_that_leaves_end_without_a_traceback(done: Path) -> None:
    closed = started(["trials"], done, ">&-")
    assert (closed.returncode, closed.stderr) == (1, "hpo: standard output cannot be written: Bad file descriptor\n")
    silent = started(["trials", "--format", "json"], done, "2>&-")
    assert (silent.returncode, silent.stderr, silent.stdout[:1]) == (0, "", "[")
    left = started(["trials"], done, "| true; exit ${PIPESTATUS[0]}")
    assert (left.returncode, left.stderr) == (0, "")


@pytest.mark.usefixtures("new_interpreters")
@pytest.mark.parametrize("more", [{"PYTHONIOENCODING": "ascii"}, exhaustive(ASCII_LOCALE)], ids=["encoding", "locale"])
def test_output_that_is_forced_to_ascii_loses_nothing(more: dict[str, str], done: Path) -> None:
    table = started(["trials"], done, "", **more)
    assert table.returncode == 0
    assert table.stdout.isascii()
    assert {"\\xe9", "\\u65e5\\u672c[b]", "a\\x1bb"} & set(table.stdout.split())
    for trial in range(4):
        exported = started(["export", "--trial", str(trial)], done, "", **more)
        assert parse_yaml(exported.stdout)["kind"] in ("é", "日本[b]", "a\x1bb")


@pytest.mark.parametrize(
    ("option", "file", "message"),
    [
        ("export -o", ".", "must be the name of a file, got the folder '.'"),
        ("export -o", "/dev/null", "must be the name of a file, got the device '/dev/null'"),
        ("export -o", "trivial.yaml", "which may be a study file; use another name"),
        ("report --html", "trivial.yaml", "which may be a study file; use another name"),
        ("report --csv", "runs/hpo.db", "must not replace the database 'runs/hpo.db'"),
        ("report --json", ".", "must be the name of a file"),
    ],
)
def test_output_never_replaces_a_study_a_database_or_a_folder(option: str, file: str, message: str, done: Path) -> None:
    before = (done / "trivial.yaml").read_bytes()
    assert message in hpo(*option.split(), file, cwd=done, status=2).stderr
    assert (done / "trivial.yaml").read_bytes() == before


def test_dash_is_the_standard_output_and_no_file(done: Path) -> None:
    assert "provenance" in parse_yaml(hpo("export", "-o", "-", cwd=done).stdout)
    assert not (done / "-").exists()


def test_exported_file_may_be_exported_again(done: Path) -> None:
    for _ in range(2):
        hpo("export", "-o", "again.yaml", cwd=done)
    assert os.path.getsize(done / "again.yaml")
