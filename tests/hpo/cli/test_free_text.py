"""No free text of a study is interpreted by a terminal, a table, a browser or Markdown, and none is lost."""

import json
import sqlite3
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpo.analysis.snapshot import read_snapshot
from hpo.cli.reference import commands
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.report.publish import note_markdown
from hpo.report.verdict import Verdict
from hpo.storage.engine import open_readonly
from tests.support.command import MODULE, STUDY, environment, hpo, trivial

NASTY = "\x1b[31mred\x1b]0;t\x07 [bold]x[/bold] [/INST] <img src=x onerror=alert(1)> \u202eabc\u2066 \x9b2J\r![a](b)"
VISIBLE = NASTY.encode("unicode_escape").decode("ascii")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
COMMANDS = """studies|status|trials|show 0|show 1|why 0|why 1|logs 0|best|export|pause|resume|doctor|retry 0
compare 0 1|replay --pruner NASTY|replay --runs 1 --seeds 1|transfer --to NASTY=1|ablate --dry-run|ablate --from NASTY
ablate --factor NASTY=text|track tensorboard|track NASTY|import sweep.yaml|import trials.csv --study NAME|import NASTY
init --from NASTY|init --from script.py -o init.yaml|schema NASTY|schema --study trivial.yaml|data list
claims --ledger NASTY|data prepare --set data.name=text --set data.path=NASTY|worker --study NASTY
worker --study NAME --gpus NASTY|stop --because NASTY|stop
enqueue --set text=plain|fork trivial.yaml --from NAME --as forked|report --html report.html|launch --study trivial.yaml
check trivial.yaml|confirm|status --study NAME|pause --study NAME|show 99|kill 1|status --study NASTY
status --NASTY|NASTY|train NASTY|check NASTY|launch --study NASTY|export -o NASTY/x|limits NASTY
sample NASTY|logs 0 --out NASTY|doctor --out NASTY|status --format NASTY|data show --set data.path=NASTY
status --storage NASTY|dashboard --host NASTY"""
LINES = COMMANDS.replace("\n", "|").split("|")


def hidden(text: str) -> set[str]:
    """Return the characters of an output that a terminal or a browser may interpret."""
    return {c for c in text.replace("\n", "").replace("\t", "") if unicodedata.category(c) in HIDDEN}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a study whose name, choices, errors, notes and hosts are nasty; and the name of the study."""
    folder = tmp_path_factory.mktemp("nasty")
    trivial(folder)
    module = MODULE.replace("lr: float = 0.1", "lr: float = 0.1\n    text: str = 'plain'\n    kind: str = 'a'")
    failing = f"    if config.text != 'plain':\n        raise ValueError({NASTY!r} + chr(10) + 'second line')\n"
    (folder / "trivial.py").write_text(module.replace("    for rung", failing + "    for rung"))
    space = {"text": {"choices": [NASTY, "plain"]}, "kind": {"choices": ["b"]}}
    plain = STUDY.replace("space: {lr: {low: 0.0, high: 1.0}}\n", "")
    (folder / "trivial.yaml").write_text(f"{plain}sampler: {{name: grid}}\nbaseline: []\n{dump_yaml({'space': space})}")
    write_foreign_files(folder)
    hpo("launch", "--study", "trivial.yaml", cwd=folder)
    hpo("pause", "--because", NASTY, cwd=folder)
    name = f"study {NASTY}".replace("/", "|")
    with sqlite3.connect(folder / "runs" / "hpo.db") as connection:
        connection.execute("UPDATE studies SET study_name = ?", [name])
        connection.execute("UPDATE hpo_event SET owner = ?", [f"{NASTY}:1:x"])
        worker = json.dumps(f"{NASTY}:1")
        connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'worker'", [worker])
    return folder, name


def write_foreign_files(folder: Path) -> None:
    """Write a W&B sweep, a CSV file of trials and a training script with nasty names and values."""
    parameters = {NASTY: {"values": [NASTY, "b"]}, "lr": {"distribution": "uniform", "min": 0.1, "max": 1.0}}
    sweep = {"name": NASTY, "program": NASTY, "method": "random", "metric": {"name": NASTY}, "parameters": parameters}
    (folder / "sweep.yaml").write_text(dump_yaml(sweep))
    quoted = f'"{NASTY}"'
    (folder / "trials.csv").write_text(f"text,kind,loss,{quoted}\n{quoted},b,0.5,1\nplain,{quoted},0.5,1\n", newline="")
    option = f"parser.add_argument('--lr', type=float, default=0.1, help={NASTY!r})"
    more = f"parser.add_argument('--text', choices=['a', {NASTY!r}], default={NASTY!r})"
    script = ["import argparse", "parser = argparse.ArgumentParser()", option, more, "print('loss', 1.0)", ""]
    (folder / "script.py").write_text("\n".join(script))


def words(line: str, name: str) -> list[str]:
    """Return the words of a command line in which names stand for nasty text."""
    return [word.replace("NASTY", NASTY).replace("NAME", name) for word in line.split()]


def test_every_format_gives_the_text_back_as_it_is(study: tuple[Path, str]) -> None:
    folder, name = study
    for format, read in (("json", json.loads), ("yaml", parse_yaml)):
        output = hpo("trials", "--format", format, cwd=folder).stdout
        assert NASTY in {trial["text"] for trial in read(output)}
        assert {(trial["kind"], trial["params.kind"]) for trial in read(output)} == {("search", "b")}
        assert not hidden(output)
    assert name in {row["study"] for row in json.loads(hpo("studies", "--format", "json", cwd=folder).stdout)}
    table = hpo("trials", cwd=folder).stdout
    assert VISIBLE in table
    assert "params.kind" in table


class Elements(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_shows_the_text_and_has_no_element_of_it(study: tuple[Path, str]) -> None:
    folder, _ = study
    hpo("report", "--html", "report.html", "--no-publish", cwd=folder)
    page = (folder / "report.html").read_text("utf-8")
    before, _, body = page.partition("<body>")
    assert not hidden(body)
    assert not hidden(before.partition("<style>")[0])
    parser = Elements()
    parser.feed(page)
    assert "img" not in parser.elements
    assert "<img src=x onerror=alert(1)>" in parser.text
    assert "\\u202eabc" in parser.text


def test_note_in_the_dashboard_shows_the_text_and_is_no_markup_of_it(study: tuple[Path, str]) -> None:
    folder, _ = study
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        name = read_snapshot(store, None).name
    note = note_markdown(Verdict(f"Best of {name}", [NASTY], [NASTY]))
    assert not hidden(note)
    for markup in ("<img", "[bold]", "![a]", "](b)"):
        assert all(note[i - 1] == "\\" for i in range(len(note)) if note.startswith(markup, i))


def test_every_command_is_among_those_that_are_run() -> None:
    names = {command.name for command in commands()}
    assert not {name for name in names if not any(f"{line} ".startswith(f"{name} ") for line in LINES)}


def test_no_command_prints_a_character_that_a_terminal_interprets(study: tuple[Path, str]) -> None:
    folder, name = study
    shown = ""
    for line in LINES:
        command = [sys.executable, "-m", "hpo", *words(line, name)]
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ("Traceback" in ended.stderr) == (line == "logs 0"), ended.stderr  # the log of the failed trial
        assert not hidden(ended.stdout + ended.stderr), line
        shown += ended.stdout + ended.stderr
    assert VISIBLE in shown
    for form in ("\\x1b[31mred", "[bold]x[/bold] [/INST]", "<img src=x", "\\u202eabc", "\\x9b2J"):
        assert shown.count(form) > 10, form
