"""`hpo init`: write a commented study file, from answers to five questions or from a training script."""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hpo.commands.check import check_file
from hpo.commands.import_sweep import write_study
from hpo.config.yaml import parse_value
from hpo.errors import Problem
from hpo.foreign.script import VALUE, Script, read_script
from hpo.foreign.script_ranges import length_of, propose
from hpo.foreign.study_text import flow, study_text
from hpo.study.objections import is_maximized

Ask = Callable[[str, str], str]  # (question, default) -> answer
TRIALS = 24
RUNGS = 8
_PARAMETER = re.compile(r"([^\s=]+)=(\S+)")


class Draft(NamedTuple):
    """A study file before it is written: its keys, and the lines of comments above them."""

    tree: dict[str, Any]
    comments: dict[str, list[str]]


def init_study(output: Path, script: Path | None, ask: Ask) -> str:
    """Write a study file that passes `hpo check`; return the line of the check.

    script: training script to read, None to ask. ask: asks the user a question.

    Raises:
        Problem: the file exists, the script cannot be read, or an answer gives no valid study.
    """
    if output.exists():
        raise Problem(f"--output: must be a new file, got {output}, which exists; use another name")
    draft = _ask_all(ask) if script is None else _from_script(script)
    source = "the answers to hpo init" if script is None else str(script)
    write_study(study_text([f"Which configuration is best? (from {source})"], draft.tree, draft.comments), output)
    try:
        return check_file(str(output), [])
    except Problem:
        output.unlink()
        raise


def _ask_all(ask: Ask) -> Draft:
    command = ask("Command that trains one configuration; {flags} passes the parameters", "python train.py {flags}")
    ranges = ask(
        "Parameters to search, as NAME=LOW..HIGH or NAME=A,B,C; log after a range for a logarithmic scale",
        "lr=1e-4..1e-2log",
    )
    objective = ask("Name of the metric", "val_loss")
    default = "maximize" if is_maximized(objective) else "minimize"
    direction = ask("minimize or maximize", default)
    trials = ask("Number of trials", str(TRIALS))
    tree: dict[str, Any] = {"command": shlex.split(command), "space": _space(ranges)}
    tree |= {"objective": objective, "direction": direction, "budget": {"trials": parse_value(trials)}}
    return Draft(tree | {"pruner": "none"}, _COMMENTS | {"objective": _metric_comment(objective), "pruner": _PRUNING})


def _space(text: str) -> dict[str, Any]:
    """Return the ranges of an answer such as `lr=1e-4..1e-2log layers=2..8 act=relu,gelu`.

    Raises:
        Problem: a word is no range.
    """
    space: dict[str, Any] = {}
    for word in text.replace(", ", ",").split():
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise Problem(f"parameters: must be NAME=LOW..HIGH or NAME=A,B,C, such as lr=1e-4..1e-2log, got {word!r}")
        name, values = match.groups()
        low, dots, high = values.removesuffix("log").partition("..")
        if dots:
            space[name] = {"low": parse_value(low), "high": parse_value(high)}
            space[name] |= {"log": True} if values.endswith("log") else {}
        else:
            space[name] = {"choices": [parse_value(value) for value in values.split(",")]}
    return space


def _from_script(path: Path) -> Draft:
    script = read_script(path)
    found = propose(script.parameters)
    if not found.space:
        raise Problem(
            f"--from: {path} must have options of argparse with numbers as defaults, or global variables that "
            "--name=value replaces; got none; `hpo init` without --from asks for the parameters"
        )
    has_seed = any(parameter.name == "seed" for parameter in script.parameters)
    words = ["python", str(path), *(["--seed={seed}"] if has_seed else []), "{flags}"]
    objective = script.objective or "val_loss"
    tree: dict[str, Any] = {"command": words, "space": found.space, "baseline": [found.baseline]}
    comments = dict(_COMMENTS)
    if found.others:
        comments["baseline"] = ["Other parameters of the script, which may be added to the space:"]
        comments["baseline"] += [f"  {name}: {flow(entry)}" for name, entry in found.others.items()]
    comments["baseline"] = [*comments.get("baseline", []), "The defaults of the script run first."]
    tree |= _metric(script, objective, comments)
    tree |= {"objective": objective, "direction": "maximize" if is_maximized(objective) else "minimize"}
    length = length_of(script.parameters)
    tree |= _steps(length, comments) if "metric" in tree or script.reports else {"pruner": "none"}
    return Draft(tree | {"budget": {"trials": TRIALS}}, comments)


def _metric(script: Script, objective: str, comments: dict[str, list[str]]) -> dict[str, Any]:
    if script.reports:
        return {}
    if script.pattern is None:
        comments["objective"] = _metric_comment(objective)
        return {}
    comments["metric"] = ["This pattern is that of a line that the script prints. Its groups are the metrics."]
    return {"metric": {"pattern": script.pattern}}


def _steps(length: float | None, comments: dict[str, list[str]]) -> Mapping[str, Any]:
    if length is None:
        comments["pruner"] = _PRUNING
        return {"pruner": "none"}
    comments["steps"] = ["A trial may be ended early at each of the rungs. `last` is the last step that is reported."]
    return {"steps": {"rungs": min(RUNGS, int(length)), "last": length}, "pruner": "median"}


def _metric_comment(objective: str) -> list[str]:
    return [
        "The script reports the metric with hpo.current_trial().report(step, NAME=VALUE), or hpo reads it:",
        f"metric: {{pattern: 'step (?P<step>\\d+).*{objective} (?P<{objective}>{VALUE})'}}",
    ]


_COMMENTS = {
    "command": ["{flags} stands for all parameters as --NAME=VALUE, {NAME} for one of them, {dir} for an own folder."],
    "space": ["{low, high}, with log: true for rates and complement_log: true for decays, or {choices: [...]}"],
    "budget": ["When the search ends: trials, hours, or both."],
}
_PRUNING = [
    "To end weak trials early, write the last step that the script reports, and remove `pruner: none`:",
    "steps: {rungs: 8, last: 1000}",
]
