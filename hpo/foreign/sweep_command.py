"""The command of a W&B sweep as the command of a study."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from hpo.config.validation import shown_value
from hpo.foreign.lines import Notes, Path
from hpo.study.command import FLAGS, JSON, PLACEHOLDERS, SEED
from hpo.study.command_config import name_problem

DEFAULT = ["${env}", "${interpreter}", "${program}", "${args}"]
PYTHON = "python"
_MACRO = re.compile(r"\$\{([^}]*)\}")
_REMEDY = "write the words, such as [${interpreter}, ${program}, ${args}], or omit the key, which stands for them"


def study_name(path: str) -> str:
    """Return the name of a parameter that a command can have, similar to the name in the sweep."""
    name = re.sub(r"[^\w.-]", "_", path).strip("._-")
    name = re.sub(r"\.name$", "_name", name)
    name = ".".join(part if not part[:1].isdigit() else f"p{part}" for part in name.split(".")) or "parameter"
    is_taken = (name in PLACEHOLDERS and name != SEED) or name_problem(name) is not None
    return f"{name}_value" if is_taken else name


def read_command(
    tree: Mapping[str, Any], names: Mapping[str, str], flags: Mapping[str, Any], notes: Notes
) -> list[str]:
    """Return the words of the command of a study.

    names: parameter of the sweep -> parameter of the study. flags: parameters that are true or false: the value, or
    None for one that is searched.

    Raises:
        Problem: the command or the program is not given as words.
    """
    words = list(_given_words(tree.get("command", DEFAULT), notes))
    if "program" in tree and not (isinstance(tree["program"], str) and tree["program"].strip()):
        got = f"must be the path of a script, such as train.py, got {shown_value(tree['program'])}"
        raise notes.problem(("program",), f"{got}; write the path, or omit the key")
    if "program" not in tree and any("${program}" in word for word in words):
        notes.add(
            ("program",), "is missing; the study file has train.py in its place, so write the name of your script"
        )
    program = tree.get("program", "train.py")
    command = [new for i, word in enumerate(words) for new in _word(word, i, program, names, flags, notes) if new]
    if not command:
        raise notes.problem(("command",), f"must name a program, got {shown_value(tree.get('command'))}; {_REMEDY}")
    named = any("{" in word.replace("{{", "") for word in command)
    if not named and names:
        notes.add(("command",), "passes no parameter to the script, which must read HPO_CONFIG, a YAML file")
    return command


def _given_words(given: Any, notes: Notes) -> Iterator[str]:
    """Yield the words of the key `command`.

    Raises:
        Problem: the key is neither text nor a list of words, or a quotation has no end.
    """
    if isinstance(given, str):
        yield from _split(given, ("command",), notes)
        return
    if not isinstance(given, list):
        rule = f"must be a list of words, or text, got {shown_value(given)}"
        raise notes.problem(("command",), f"{rule}; {_REMEDY}")
    for i, word in enumerate(given):
        if not isinstance(word, str | int | float):
            rule = f"must be text or a number, got {shown_value(word)}; write it as text in quotes"
            raise notes.problem(("command", i), rule)
        text = str(word)
        yield from [text] if text == text.strip() else _split(text, ("command", i), notes)


def _split(text: str, path: Path, notes: Notes) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = str(error).lower()
        remedy = "close the quotation, or write the command as a list of words"
        raise notes.problem(path, f"must be words, got {shown_value(text)}: {reason}; {remedy}") from None


def _word(
    word: str, i: int, program: str, names: Mapping[str, str], flags: Mapping[str, Any], notes: Notes
) -> Iterator[str]:
    """Yield the words of a study that stand for one word of a sweep."""
    path = ("command", i)
    same = all(ours == theirs for theirs, ours in names.items())
    match word:
        case "${env}":
            return
        case "${interpreter}":
            yield PYTHON
        case "${program}":
            yield _literal(program)
        case "${args}":
            yield from ([f"{{{FLAGS}}}"] if same else (f"--{_literal(t)}={{{o}}}" for t, o in names.items()))
        case "${args_no_hyphens}":
            yield from (f"{_literal(t)}={{{o}}}" for t, o in names.items())
        case "${args_no_boolean_flags}":
            yield from _boolean_flags(names, flags, notes, path)
        case "${args_json_file}":
            yield f"{{{JSON}}}"
        case "${args_json}":
            notes.add(path, f"${{args_json}} has no counterpart; the word is {{{JSON}}}, the path of a JSON file")
            yield f"{{{JSON}}}"
        case _:
            yield _inside(word, path, program, names, notes)


def _boolean_flags(
    names: Mapping[str, str], flags: Mapping[str, Any], notes: Notes, path: tuple[str, int]
) -> Iterator[str]:
    for theirs, ours in names.items():
        if theirs not in flags:
            yield f"--{_literal(theirs)}={{{ours}}}"
        elif flags[theirs] is None:
            text = f"passes {theirs} as a flag without a value; the study passes --{theirs}=True or --{theirs}=False"
            notes.add(path, f"{text}, which the script must read")
            yield f"--{_literal(theirs)}={{{ours}}}"
        elif flags[theirs]:
            yield f"--{_literal(theirs)}"


def _inside(word: str, path: tuple[str, int], program: str, names: Mapping[str, str], notes: Notes) -> str:
    """Return a word that may contain macros beside other text."""
    parts: list[str] = []
    end = 0
    for match in _MACRO.finditer(word):
        parts.append(_literal(word[end : match.start()]))
        end = match.end()
        macro = match[1]
        if macro in ("program", "interpreter"):
            parts.append(_literal(program) if macro == "program" else PYTHON)
        elif macro == "args_json_file":
            parts.append(f"{{{JSON}}}")
        elif macro == "args":
            parts.append(f"{{{FLAGS}}}" if _same(names) else " ".join(f"--{t}={{{o}}}" for t, o in names.items()))
        elif macro == "args_no_hyphens":
            parts.append(" ".join(f"{t}={{{o}}}" for t, o in names.items()))
        elif macro != "env":
            kept = "an environment variable" if macro.startswith("envvar:") else "no macro of hpo"
            notes.add(path, f"{match[0]} is {kept} and stays as text; write its value, or read it in the script")
            parts.append(_literal(match[0]))
    return "".join([*parts, _literal(word[end:])])


def _same(names: Mapping[str, str]) -> bool:
    return all(theirs == ours for theirs, ours in names.items())


def _literal(text: str) -> str:
    """Return text in which braces stand for themselves."""
    return text.replace("{", "{{").replace("}", "}}")
