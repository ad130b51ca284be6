"""`hpo --help` lists every command in a panel, each with a summary that fits on one line of 80 columns."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hpo.cli.panels import CONTROL, EVIDENCE, INSPECT, RUN, SETUP
from tests.support.command import COMMANDS, ROOT, environment, hpo

PANELS = {
    RUN: "launch worker track train sample",
    INSPECT: "studies status trials show why logs best export report dashboard compare",
    CONTROL: "pause resume stop kill retry enqueue fork",
    EVIDENCE: "confirm ablate claims transfer replay",
    SETUP: "data check limits doctor init import schema",
}


@pytest.fixture(scope="module")
def shown() -> str:
    return hpo("--help", cwd=ROOT, COLUMNS="80").stdout


def test_help_lists_all_commands_by_panel(shown: str) -> None:
    sections = re.findall(r"^(\w[\w ]*):\n((?:  .*\n)+)", shown, re.M)
    listed = {title: re.findall(r"^  ([a-z]+)  ", body, re.M) for title, body in sections if title in PANELS}
    assert listed == {title: names.split() for title, names in PANELS.items()}
    assert list(listed) == list(PANELS)
    assert {name for names in listed.values() for name in names} == set(COMMANDS.commands)  # type: ignore[attr-defined]


def test_first_sentence_of_every_command_fits_on_one_line(shown: str) -> None:
    lines = shown.splitlines()
    assert "..." not in shown.partition(f"{RUN}:")[2]
    assert all(len(line) <= 80 for line in lines)
    for name in " ".join(PANELS.values()).split():
        (line,) = [text for text in lines if text.startswith(f"  {name} ")]
        assert line.endswith("."), line


def test_help_is_plain_text(shown: str) -> None:
    coloured = hpo("--help", cwd=ROOT, COLUMNS="80", NO_COLOR="", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert coloured == shown
    assert shown.isascii()


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert hpo("--version", cwd=tmp_path).stdout == f"hpo {version}\n"


def test_shell_completion_is_offered(tmp_path: Path, shown: str) -> None:
    assert "--install-completion" in shown
    # The name of the program is part of the completion's environment variable.
    program = "import sys; sys.argv[0] = 'hpo'; from hpo.cli.main import main; main()"
    for words, expected in (
        ("hpo st", "studies\nstatus\nstop\n"),
        ("hpo confirm --st", "--study\n--storage\n--storage-file\n"),
    ):
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_HPO_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment(**typed), capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, expected)
