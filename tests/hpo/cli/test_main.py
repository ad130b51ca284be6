"""The command line answers with data, a message or an exit status, never with a traceback."""

import contextlib
import csv
import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import parse_yaml
from hpo.errors import NothingFeasible, Problem, StorageError
from tests.support.command import COMMANDS, STUDY, environment, finished_study, hpo, run_in_process, trivial


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that has ended."""
    return finished_study(tmp_path_factory.mktemp("done"))


# --- exit statuses


def test_status_1_where_the_work_fails(done: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        failed = hpo("dashboard", "--port", port, cwd=done, status=1)
    assert (
        failed.stderr
        == f"hpo: --port: cannot listen on 127.0.0.1:{port}: Address already in use; choose another port\n"
    )


def test_worker_that_cannot_work_ends_the_launch_with_its_words(tmp_path: Path) -> None:
    trivial(tmp_path)
    # gone between the launcher's check and the worker's start: the module removes itself
    with (tmp_path / "trivial.py").open("a") as file:
        file.write("\nimport os\n\nos.rename('trivial.py', 'moved.py')\n")
    failed = hpo("launch", "--study", "trivial.yaml", cwd=tmp_path, status=2)
    assert "worker 1 ended with status 2" in failed.stderr
    assert "no module 'trivial' in the current folder or installed" in failed.stderr


def test_status_2_where_the_study_is_unknown(tmp_path: Path) -> None:
    failed = hpo("check", "beta2sweep", cwd=tmp_path, status=2)
    assert failed.stderr.startswith("hpo: study: no study 'beta2sweep'; did you mean beta2_sweep?")
    with pytest.raises(Problem, match="no study 'beta2sweep'; did you mean beta2_sweep"):
        run_in_process("launch", "--study", "beta2sweep", cwd=tmp_path)


def test_status_3_where_no_trial_is_complete(tmp_path: Path) -> None:
    path = trivial(tmp_path)
    path.write_text(STUDY.replace("baseline", "#").replace("budget: {trials: 4}", "budget: {trials: 1}"))
    (tmp_path / "trivial.py").write_text(
        (tmp_path / "trivial.py").read_text().replace("for rung in 1, 2, 3:", "for rung in []:")
    )
    said = "study trivial: no trial is complete; `hpo trials` and `hpo show N` say why"
    assert said in hpo("launch", "--study", "trivial.yaml", cwd=tmp_path, status=3).stderr
    nothing = "study trivial: no trial is complete yet; `hpo status` shows the progress"
    failed = hpo("best", cwd=tmp_path, status=3)
    assert (failed.stderr, failed.stdout) == (f"hpo: {nothing}\n", "")
    with pytest.raises(NothingFeasible, match=nothing):
        run_in_process("export", cwd=tmp_path)


def test_status_4_where_the_storage_does_not_answer_and_no_password_is_shown(tmp_path: Path) -> None:
    trivial(tmp_path)
    url = "postgresql://me:s3cr%40t-word@127.0.0.1:1/db"
    failed = hpo("launch", "--study", "trivial.yaml", cwd=tmp_path, status=4, HPO_STORAGE=url)
    assert "Connection refused" in failed.stderr
    assert "me:***@127.0.0.1:1" in failed.stderr
    for word in ("s3cr", "t-word"):
        assert word not in failed.stderr + failed.stdout


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///none.db", "no storage at none.db; `hpo launch` creates it"),
        ("mysql://me:s3cret@h/db", "got mysql://me:***@h/db"),
        ("redis://h", "a journal in Redis has no transactions for leases"),
        ("sqlite:///:memory:", "storage: must be a file that workers can share"),
        ("some words", "some words is no storage"),
        ("empty.db", "`hpo launch` creates the tables"),
        ("text.db", "file is not a database"),
        (".", ": . is no storage"),
    ],
)
def test_status_4_where_the_storage_is_none(tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "empty.db").write_text("")
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(StorageError) as caught:
        run_in_process("status", "--storage", url, cwd=tmp_path)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_status_4_where_there_is_no_storage(tmp_path: Path) -> None:
    assert hpo("status", cwd=tmp_path, status=4).stderr == "hpo: no storage at runs/hpo.db; `hpo launch` creates it\n"


def test_status_4_where_the_storage_cannot_be_written(tmp_path: Path) -> None:
    trivial(tmp_path)
    failed = hpo(
        "launch", "--study", "trivial.yaml", "--storage", "sqlite:////proc/none/hpo.db", cwd=tmp_path, status=4
    )
    assert "hpo: storage: /proc/none cannot be written: No such file or directory" in failed.stderr


def test_status_2_where_the_runs_cannot_be_written(tmp_path: Path) -> None:
    trivial(tmp_path)
    failed = hpo("launch", "--study", "trivial.yaml", "--out", "/proc/none", cwd=tmp_path, status=2)
    assert "hpo: cannot write /proc/none/trivial/study.yaml: No such file or directory" in failed.stderr


# --- what is printed


def parsed(text: str, format: str) -> Any:
    if format == "json":
        return json.loads(text)
    if format == "yaml":
        return parse_yaml(text)
    rows = list(csv.reader(io.StringIO(text)))
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.mark.parametrize("command", [["studies"], ["status"], ["trials"], ["show", "1"], ["best"], ["logs", "0"]])
def test_every_format_is_read_back_and_says_the_same(
    done: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {f: run_in_process(*command, "--format", f, cwd=done) for f in ("table", "json", "yaml", "csv")}
    assert capsys.readouterr().err == ""
    found = {f: parsed(printed[f], f) for f in ("json", "yaml", "csv")}
    assert found["json"] == found["yaml"]
    assert len(found["csv"]) == (len(found["json"]) if isinstance(found["json"], list) else 1)
    first = found["json"][0] if isinstance(found["json"], list) else found["json"]
    for key, value in first.items():
        if not isinstance(value, dict):
            assert found["csv"][0][key] == ("" if value is None else str(value))
    assert printed["table"].strip()


def test_status_as_json_has_exactly_these_keys(done: Path) -> None:
    printed = hpo("status", "--format", "json", cwd=done)
    assert printed.stderr == ""
    status = json.loads(printed.stdout)
    assert list(status) == ["study", "objective", "trials", "budget", "tokens", "best", "baseline"]
    assert list(status["trials"]) == ["complete", "pruned", "failed", "running", "waiting"]
    assert list(status["tokens"]) == ["trained", "saved_by_pruning"]
    assert list(status["best"]) == list(status["baseline"]) == ["number", "value", "params"]
    assert sum(status["trials"].values()) == status["budget"]["trials"] == 4


def test_launch_prints_the_answer_as_data_and_nothing_else_where_it_is_to_be_quiet(done: Path) -> None:
    again = hpo("launch", "--study", "trivial.yaml", "--quiet", cwd=done)  # nothing is left to run
    assert again.stdout.startswith("best: trial ")
    assert "worker" not in again.stderr


def test_dry_run_makes_nothing(tmp_path: Path) -> None:
    trivial(tmp_path)
    assert "budget 4 trials" in hpo("launch", "--study", "trivial.yaml", "--dry-run", cwd=tmp_path).stderr
    assert not (tmp_path / "runs").exists()


def test_reader_that_stops_reading_gets_no_traceback(done: Path) -> None:
    for command in ("trials", "export"):
        line = f'"{sys.executable}" -m hpo {command} | head -n 1 && exit "${{PIPESTATUS[0]}}"'
        piped = subprocess.run(["bash", "-c", line], cwd=done, env=environment(), capture_output=True, text=True)
        assert (piped.returncode in (0, 1), piped.stderr) == (True, "")  # click ends with 1 on a broken pipe
        assert len(piped.stdout.splitlines()) == 1
    command = [sys.executable, "-m", "hpo", "trials"]
    closed = subprocess.Popen(command, cwd=done, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert closed.stdout is not None
    assert closed.stderr is not None
    closed.stdout.close()
    assert closed.stderr.read() == b""
    closed.wait(60)
    closed.stderr.close()


@pytest.mark.parametrize("number", ["4", "-1"])
@pytest.mark.parametrize("command", [["show", "--"], ["logs", "--"], ["export", "--trial"]])
def test_trial_that_is_not_there_is_refused_with_those_that_exist(done: Path, command: list[str], number: str) -> None:
    with pytest.raises(Problem) as caught:
        run_in_process(*command, number, cwd=done)
    assert str(caught.value) == f"trial: study trivial has no trial {number}; it has trials 0 to 3"


def documented(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = getattr(command, "commands", {})
    return [path] + [p for name, child in inner.items() for p in documented(child, (*path, name))]


@pytest.mark.parametrize("path", documented(COMMANDS), ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        COMMANDS.main([*path, "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "Usage:" in shown
    command: Any = COMMANDS
    for name in path:
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), (path, parameter.name)


def test_commands_are_those_of_the_manual() -> None:
    names = {path[0] for path in documented(COMMANDS) if path}
    looking = {"check", "studies", "status", "trials", "show", "logs", "best"}
    assert names >= looking | {"launch", "worker", "export", "train", "sample", "dashboard", "data"}
