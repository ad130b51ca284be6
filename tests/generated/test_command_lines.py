"""Thousands of made-up command lines: the right exit status, no traceback, nothing written that was not asked for."""

import pytest
from hypothesis import given

from tests.generated.made_lines import Line, hidden, lines
from tests.generated.right_status import due
from tests.support.command_lines import Workspace, examples, prepare_workspace, run_command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return prepare_workspace(tmp_path_factory.mktemp("place"))


@examples(0.6)
@given(line=lines())
def test_whatever_is_typed_is_answered_or_refused_with_the_right_status(line: Line, place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, *line.path, *line.words)
    assert ended.status in due(line), (line, ended)
    assert "Traceback" not in ended.err
    assert "s3cret" not in ended.out + ended.err
    assert not hidden(ended.err)
    assert not hidden(ended.out) or "csv" in line.words or "--format=csv" in line.words
    if ended.status in (2, 3, 4):
        if line.path != ("doctor",):  # whose findings are its answer, also where the storage is away
            said = [text for text in ended.err.splitlines() if not text.startswith("note: ")]  # such as of an old name
            assert said[0].startswith(("hpo: ", "Usage: ", "Error: ", "warning: ")), ended.err
            assert ended.out == ""
        assert place.state() == place.before, "a refused command changed something"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["nonsense"], 2),
        ([""], 2),
        (["--format", "json", "status"], 2),
        (["--nonsense", "status"], 2),
        (["data", "nonsense"], 2),
        (["--", "status", "--study", "trivial"], 0),
        (["status", "--watch", "--study", "trivial"], 0),
        (["status", "--watch", "--study", "nope"], 2),
        (["sta", "--study", "trivial"], 2),
        (["STATUS", "--study", "trivial"], 2),
    ],
)
def test_commands_are_distinguished_from_options_and_nonsense(words: list[str], status: int, place: Workspace) -> None:
    place.restore()
    assert run_command(place.folder, *words).status == status


@pytest.mark.parametrize("storage", ["x" * 300 + ".db", "sqlite:///" + "x/" * 3000, "sqlite:///a\udcff.db", "\udcff"])
@pytest.mark.parametrize("command", ["studies", "pause", "doctor"])
def test_name_that_no_file_can_have_is_no_storage(command: str, storage: str, place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, command, "--storage", storage)
    assert (ended.status, ended.err[:13]) == (4, "hpo: storage:")


@pytest.mark.parametrize("words", [["doctor"], ["logs", "0", "--study", "trivial"], ["train", "best.yaml"]])
def test_folder_that_no_file_system_can_have_is_refused(words: list[str], place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, *words, "--out", "x" * 300)
    assert ended.status == 2
    assert "Invalid value for '--out': File name too long, got 'xxx" in ended.err


@pytest.mark.parametrize("words", [["train"], ["limits"], ["sample"], ["export", "--study", "trivial", "-o"]])
def test_file_that_no_file_system_can_have_is_refused(words: list[str], place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, *words, "x" * 300)
    assert ended.status == 2
    assert "File name too long, got 'xxx" in ended.err


def test_reason_that_no_storage_can_hold_is_refused(place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, "pause", "--study", "trivial", "--because", "a\udcff")
    assert (ended.status, ended.err) == (2, "hpo: --because: must be text in UTF-8, got 'a\\udcff'\n")


@pytest.mark.parametrize("words", [["check", "beta2_sweep"], ["train", "best.yaml"], ["enqueue", "--study", "trivial"]])
def test_component_of_a_section_that_is_not_there_is_an_unknown_field(words: list[str], place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, *words, "--set", "optimiser.name=sgd")
    assert ended.status == 2
    assert "--set optimiser" in ended.err
    assert "no such field" in ended.err


@pytest.mark.parametrize("number", ["1025", "9" * 30])
def test_more_workers_than_a_machine_can_have_are_refused_before_they_are_listed(number: str, place: Workspace) -> None:
    place.restore()
    ended = run_command(place.folder, "launch", "--dry-run", "--study", "trivial.yaml", "--workers", number)
    assert ended.status == 2
    assert "'--workers': Input should be less than or equal to 1024" in ended.err
