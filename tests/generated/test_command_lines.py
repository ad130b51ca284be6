"""Thousands of made-up command lines over every command and option: the right exit status, no traceback.

What would train, listen or wait for long is given arguments that end it first: see `held_back`.
"""

import enum
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command import COMMANDS
from tests.support.command_lines import STUDIES, Workspace, examples, prepare_workspace, run_command

Path_ = tuple[str, ...]


def commands(group: Any = COMMANDS, path: Path_ = ()) -> dict[Path_, Any]:
    """Return every command by the words that call it."""
    if not hasattr(group, "commands"):
        return {path: group}
    return {p: c for name, child in group.commands.items() for p, c in commands(child, (*path, name)).items()}


ALL = commands()
# A command that is not here is only typed wrongly or asked for help, until somebody has seen that it answers at once.
NAMES = """studies, status, trials, show, why, logs, best, export, pause, resume, stop, kill, retry, enqueue, fork,
    check, doctor, data list, launch, confirm, ablate, claims, worker, dashboard, train, limits, sample, report,
    data prepare, data show"""
QUICK = {tuple(name.split()) for name in NAMES.split(",")}

ODD = st.one_of(
    st.sampled_from(["", " ", "-", "--", "-1", "é", "\udcff", "x" * 300, "x" * 5000, "../..", "[1", "{a: 1}", "\n"]),
    st.sampled_from(["\x1b[31mred", "[/INST]", "[bold]x", "\u202eabc", "a;b", "my study", "\x9b2J", "...yaml", "<b>x"]),
    st.text(st.characters(exclude_characters="\0/"), max_size=6),
)
STORAGES = [  # none of them can be used
    *("none.db", "sqlite:///none.db", "sqlite:///empty", "sqlite:///hollow.db", "sqlite:///other.db", "sqlite://"),
    *("sqlite:///:memory:", "sqlite:///notes.txt", "sqlite://host/x.db", "mysql://me:s3cret@h/db", "redis://h", "x"),
    *("é.db", "postgresql://me:s3cret@127.0.0.1:1/db", "postgresql://me:s3cret@h:port/db", "postgresql://", "://"),
    *("postgresql://127.0.0.1:1/db?password=s3cret", "postgresql://127.0.0.1:1/db?nonsense=1", "x" * 5000 + ".db"),
    *("sqlite:///" + "x" * 300, "http://[::1", "file:runs/hpo.db", "sqlite:///runs", "\udcff.db", "nonsense://"),
    *("postgresql://me:s3cret@h/\udcff", "mysql://:s3cret@\udcff"),
    *("sqlite:///a\udcff.db", "journal://x", "postgresql+asyncpg://h/db", "sqlite+pysqlcipher://:s3cret@/x.db"),
]
GOOD = ("trivial.yaml", "fresh", "beta2_sweep", "claims", "./trivial.yaml")
BAD = (
    "broken.yaml",
    "best.yaml",
    "bytes.yaml",
    "notes.txt",
    "empty",
    "empty/",
    "nope",
    "./my study.yaml",
    "./...yaml",
    "no/such.yaml",
    "mainrun",
)
FILES = dict.fromkeys(GOOD, 0) | dict.fromkeys(BAD, 2)
SETS = [
    "lr=\x1b[31m",
    "lr=[/INST]",
    "\u202e=1",
    "lr=0.2",
    "lr=-3",
    "lr=x",
    "lr",
    "=1",
    "x.name=1",
    "lr.x=1",
    "lr={a: 1}",
    "lr=[",
    "lr=1e400",
    "lr=.nan",
    "é=1",
]
WRITTEN = {"html", "csv", "json", "output"}  # options with a file that may be refused: a folder, a study, a database
PATHS = ["empty", "notes.txt", "new", "new/deep/x.yaml", ".", "/dev/null/x", "notes.txt/x", "", "x" * 300, "\udcff"]


@dataclass
class Line:
    """A command line under construction, what it says, and whether it can be taken apart."""

    path: Path_
    words: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    unread: bool = False

    @property
    def misfit(self) -> bool:
        """Tell whether a part is missing, or not what its option or argument takes."""
        command = ALL[self.path]
        missing = [p for p in command.params if p.required and p.name not in self.values]
        return bool(missing) or any(
            not fits(p, self.values[p.name]) for p in command.params if p.name in self.values and not flag(p)
        )


def hidden(text: str) -> set[str]:
    """Return the characters of an output that a terminal interprets."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}


def flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def texts(path: Path_, parameter: Any) -> st.SearchStrategy[str]:
    """Return values for an option or argument, good ones and bad ones."""
    kind, name = parameter.type_descriptor.annotation, parameter.name
    known: dict[str, list[str]] = {
        "storage": ["runs/hpo.db", "sqlite:///runs/hpo.db", *STORAGES],
        "overrides": SETS,
        "file": [name for name in FILES if name != "beta2_sweep"],  # whose text takes seconds to prepare
        "origin": [*STUDIES, "nope"],
        "config": ["best.yaml", "broken.yaml", "notes.txt", "bytes.yaml", "empty", "nope", "trivial.yaml"],
        "run": ["empty", "nope", "notes.txt", "best.yaml"],
        "study": [*STUDIES, "nope", "trivial.yaml"],
        "gpus": ["0", "x", "0,,1", "99"],
        "allow_train": ["trivial:train"],
    }
    if name == "study" and path[0] in ("check", "launch", "data"):
        known["study"] = [*FILES] if path[0] == "check" else known["file"]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return mostly(str(member.value) for member in kind) | st.sampled_from(["JSON", "xml", ""])
    if kind is int:
        return mostly("012345") | st.sampled_from(["-1", "1.5", "1e3", "x", "9" * 30, "0x1", ""])
    if kind is float:
        return st.sampled_from(["0", "1.5", "-1", "nan", "inf", "1e308", "x", "", "0,5"]) | ODD
    if name in known:
        return mostly(known[name]) if name != "storage" else st.sampled_from(known[name])
    return st.sampled_from(PATHS) if issubclass(kind, Path) else ODD


def mostly(good: Iterable[str]) -> st.SearchStrategy[str]:
    """Return one of these, or now and then anything."""
    known = list(good)
    return st.integers(0, 7).flatmap(lambda n: st.sampled_from(known) if n else ODD)


def fits(parameter: Any, text: str) -> bool:
    """Return whether an option or argument takes a text, by its declared type."""
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return text in [member.value for member in kind]
    if kind not in (int, float):
        return kind is not Path or len(text) < 256
    try:
        number = kind(text)
    except ValueError:
        return False
    low, high = parameter.min, parameter.max
    return not (low is not None and number < low) and not (high is not None and number > high)


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """Return a command line over some options of any command, with up to four of them and some slips."""
    line = Line(draw(st.sampled_from(sorted(ALL))))
    parameters = ALL[line.path].params
    unsaid = ("watch", "follow", "pdf")  # of what never ends, of what starts a browser
    options = [p for p in parameters if p.param_type_name == "option" and p.name not in unsaid]
    chosen = draw(st.lists(st.sampled_from(options), max_size=4)) if options else []
    if draw(st.integers(0, 3)):  # most refusals would be for want of a study
        chosen += [option for option in options if option.name == "study"]
    for option in chosen:
        _say(draw, line, option)
    match draw(st.integers(0, 20)):
        case 0:
            line.words.append(draw(st.sampled_from(["--nonsense", "--nonsense=1", "-Q"])))
            line.unread = True
        case 1:
            line.words.append("--help")
            line.values["help"] = "--help"
    line = held_back(line)
    _place(draw, line, [p for p in parameters if p.param_type_name == "argument"])
    if draw(st.integers(0, 30)) == 0 and "--" not in line.words and (valued := [p for p in options if not flag(p)]):
        line.words.append(draw(st.sampled_from(valued)).opts[0])  # the last word, so it takes no other one
        line.unread = True
    return line


def _say(draw: st.DrawFn, line: Line, option: Any) -> None:
    """Add an option; of two, the last counts."""
    word = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
    if flag(option):
        line.values[option.name] = word
        wrong = draw(st.integers(0, 15)) == 0
        line.words.append(f"{word}=x" if wrong else word)
        line.unread |= wrong
        return
    text = draw(texts(line.path, option))
    line.values[option.name] = text
    line.sets += [text] if option.multiple else []
    line.words += [f"{word}={text}"] if word.startswith("--") and draw(st.booleans()) else [word, text]


def _place(draw: st.DrawFn, line: Line, arguments: list[Any]) -> None:
    """Add the arguments, before the options or behind them, perhaps one too few or too many."""
    wanted = [p for p in arguments if p.required or draw(st.booleans())]
    wanted = wanted[: draw(st.sampled_from([0, *[len(wanted)] * 12]))]
    said = [draw(texts(line.path, p)) for p in wanted] + ["surplus"] * (draw(st.integers(0, 15)) == 0)
    line.values |= {p.name: text for p, text in zip(arguments, said, strict=False)}
    line.unread |= len(said) > len(arguments) and "help" not in line.values
    if any(text.startswith("-") for text in said):
        line.words += ["--", *said]
    else:
        line.words = [*said, *line.words] if draw(st.booleans()) else [*line.words, *said]


def held_back(line: Line) -> Line:
    """Put in a line what ends its command before it trains, listens or waits for long.

    First come words that nothing later can take back, last those that replace what was said before.
    """
    first: list[str] = []
    last: list[str] = []
    match line.path:
        case ("launch" | "confirm" | "ablate" | "claims",):
            first = ["--dry-run"]
        case ("dashboard",):
            last, line.values["storage"] = ["--storage=sqlite:///none.db"], "sqlite:///none.db"
        case ("data", "prepare" | "show"):
            last, line.values["study"] = ["--study=trivial.yaml"], "trivial.yaml"  # its text is its own business
        case path if path not in QUICK:
            last, line.unread = ["--not-yet"], True
    line.words = [*first, *line.words, *last]
    return line


# --- what must come of a line


def due(line: Line) -> set[int]:
    """Return the exit statuses that are right, as the manual has them: one, but for what only a trial can tell."""
    if line.unread:
        return {2}
    if "help" in line.values:
        return {0}
    if line.misfit:
        return {2}
    name, of = " ".join(line.path), line.values
    if of.get("allow_train", "trivial:train") != "trivial:train":  # none of the others has the form module:name
        return {2, 4} if "storage_file" in of else {2}
    if "allow_train" in of:  # an earlier one may not have the form
        return {0, 1, 2, 3, 4}
    if "storage_file" in of:  # none of the paths is a file that holds a URL, and --storage excludes it
        return {2, 4}
    match name:
        case "worker":
            return _of_worker(of)
        case "limits" | "sample" | "data prepare" | "data show":
            return {2}
        case "claims":  # odd names, ledgers and files of data are most of what is typed
            return {0, 2} | ({4} if of.get("storage") in STORAGES else set()) | ({1} if "write" in of else set())
        case "confirm" | "ablate":  # what they make of a study is what only its trials can tell
            return {4} if of.get("storage") in STORAGES else {0, 2, 3}
        case "dashboard":
            return {2, 4}  # the address may be refused before the storage
        case "data list":
            return {0}
        case "check" | "launch":
            return _of_file(name, line)
        case "train":
            plain = of["config"] == "best.yaml" and not of.keys() & {"out", "resume", "overrides"}
            odd = {4} if of.get("storage") in STORAGES else set()  # as for a launch
            return odd | ({2} if of["config"] != "best.yaml" else {0} if plain else {0, 1, 2})
    if of.get("storage", "runs/hpo.db") in STORAGES:
        return {4} | ({2} if of.keys() & WRITTEN else set())
    return _of_study(name, of)


def _of_file(name: str, line: Line) -> set[int]:
    free = {"study", "storage", "out", "seed", "pack", "dry_run", "quiet", "plain"}
    found = FILES.get(line.values["study"], 2)
    if name == "launch" and line.values["study"] == "claims":
        found = 2
    # A storage is opened by a real launch only, but what cannot be the name of one is seen before.
    odd = {4} if name == "launch" and line.values.get("storage") in STORAGES else set()
    return odd | {found} | ({2} if line.values.keys() - free else set())


def _of_worker(of: dict[str, str]) -> set[int]:
    if of.get("storage") in STORAGES:
        return {2, 4}
    if of.get("study") not in STUDIES:  # of three, one must be named
        return {2}
    return {0, 2} if of["study"] == "trivial" else {0, 1, 2, 3}  # the others have trials to run, perhaps in odd places


def _of_study(name: str, of: dict[str, str]) -> set[int]:
    study = of.get("study", "").removesuffix(".yaml")
    match name:
        case "studies":
            return {0}
        case "doctor":
            return {0, 1} if "study" not in of or study in STUDIES else {0, 1, 2}
        case "fork":
            return {0, 2} if FILES.get(of["file"], 2) == 0 and of["origin"] in STUDIES else {2}
    if study not in STUDIES:  # of three, one must be named
        return {2}
    number = int(of.get("number", of.get("trial", 0)))
    there = 0 <= number < STUDIES[study]
    match name:
        case "show" | "why" | "logs":
            return {0} if there else {2}
        case "kill":
            return {0} if there and study == "held" else {2}
        case "best" | "export" if "trial" not in of and of.get("by", "loss") != "loss":  # the only objective
            return {2}
        case "best" | "export" if "trial" not in of and study != "trivial":
            return {3}
        case "report":
            refused = {2} if of.keys() & WRITTEN else set()
            return refused | ({0, 1} if study == "trivial" else {0, 1, 3})
        case "export":
            return {0, 1, 2} if there or "trial" not in of else {2}
        case "retry" | "enqueue":
            return {0, 2}
    return {0}


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
