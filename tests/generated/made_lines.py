"""Made-up command lines over every command and option.

What would train, listen or wait for long is given arguments that end it first: see `held_back`.
"""

import enum
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.support.command import COMMANDS
from tests.support.command_lines import STUDIES

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
