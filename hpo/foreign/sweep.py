"""Convert a W&B sweep file to a study file. What has no counterpart is named, with its line."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hpo.config.foreign_names import component_name
from hpo.config.validation import nearest, shown_value
from hpo.config.yaml import YamlError, parse_yaml
from hpo.errors import Problem
from hpo.foreign.lines import Notes, Path, key_lines
from hpo.foreign.sweep_command import read_command, study_name
from hpo.foreign.sweep_pruner import read_pruner
from hpo.foreign.sweep_ranges import constant, constant_value, parameters, read_entry
from hpo.study.command import SEED

KEYS = (
    *("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity"),
)
OTHER_TOOLS = {"tune": "Ray Tune", "hydra": "Hydra", "spec": "Kubernetes", "searchSpace": "NNI", "defaults": "Hydra"}
OBJECTIVE = "val_loss"  # if the sweep names no metric

Entries = dict[str, Any]


class Converted(NamedTuple):
    """A study file, with the notes about what differs from the sweep, and lines of comments by key."""

    tree: dict[str, Any]
    notes: list[str]
    comments: dict[str, list[str]]
    header: list[str]


def convert_sweep(text: str, source: str) -> Converted:
    """Return the study file of a W&B sweep file.

    source: name of the file in messages.

    Raises:
        Problem: the file is no sweep, or a parameter cannot be converted.
    """
    sweep, notes = _read(text, source)
    names, flags, base, space = _read_parameters(sweep["parameters"], notes)
    tree: dict[str, Any] = {"command": read_command(sweep, names, flags, notes)}
    tree |= {"base": base} if base else {}
    tree["space"] = space
    comments: dict[str, list[str]] = {}
    _read_method(sweep, space, tree, notes)
    _read_metric(sweep, tree, notes, comments)
    read_pruner(sweep, base, tree, notes, comments)
    _read_other(sweep, notes)
    about = [str(sweep[key]) for key in ("name", "description") if sweep.get(key)]
    header = [f"{': '.join(about) or 'Search'} (from the W&B sweep {source})".replace("\n", " ")]
    return Converted(tree, notes.texts, comments, header)


def _read_parameters(tree: Mapping[str, Any], notes: Notes) -> tuple[dict[str, str], dict[str, Any], Entries, Entries]:
    """Return the names of the parameters in the study, the flags, the constants and the space.

    Names and flags: see `read_command`.

    Raises:
        Problem: a parameter cannot be converted, two have the same name in the study, or none is searched.
    """
    places: dict[str, Path] = {}  # name in the study -> path in the file
    names: dict[str, str] = {}
    flags: dict[str, Any] = {}
    base: Entries = {}
    space: Entries = {}
    for parameter, place, entry in parameters(tree, notes):
        name = names[parameter] = study_name(parameter)
        _check_distinct(name, places.setdefault(name, place), place, notes)
        if name != parameter:
            notes.add(place, f"is called {name} in the study; the script receives it as {parameter}")
        values = [constant_value(entry)] if constant(entry) else entry.get("values", [])
        if isinstance(values, list) and values and all(isinstance(value, bool) for value in values):
            flags[parameter] = values[0] if constant(entry) else None
        if constant(entry):
            base[name] = _plain(values[0])
        elif name == SEED or name.endswith(f".{SEED}"):
            notes.add(place, "is not searched, because the best seed is luck; `hpo confirm` runs other seeds")
            base[name] = values[0] if isinstance(values, list) and values else 0
        else:
            space[name] = read_entry(entry, place, notes)
    if not space:
        where = notes.place(("parameters",))
        raise Problem(f"{where}: parameters: must have one with min and max, or with several values, to search")
    return names, flags, base, space


def _check_distinct(name: str, first: Path, place: Path, notes: Notes) -> None:
    """Check that a parameter is the first one with its name in the study.

    Raises:
        Problem: another parameter of the sweep has this name in the study.
    """
    if first != place:
        one, other = (".".join(map(str, path[1:])) for path in (first, place))
        rule = f"must have a name of its own, but {one} and {other} are both called {name} in the study"
        raise notes.problem(place, f"{rule}; rename one of them in the sweep and in the script")


def _read(text: str, source: str) -> tuple[dict[str, Any], Notes]:
    try:
        tree = parse_yaml(text)
    except YamlError as error:
        raise Problem(f"{source}: {error}") from None
    lines = key_lines(text)
    if isinstance(tree, dict) and isinstance(tree.get("sweep"), dict) and "parameters" not in tree:
        notes = Notes(source, lines, inner=("sweep",))
        for key in tree.keys() - {"sweep"}:
            Notes(source, lines, notes.texts).add((key,), "is left out; it is not part of the sweep")
        tree = tree["sweep"]
    else:
        notes = Notes(source, lines)
    if not isinstance(tree, dict):
        raise Problem(f"{source}: must be a W&B sweep, a mapping with the keys method and parameters")
    for key, tool in OTHER_TOOLS.items():
        if key in tree and "parameters" not in tree:
            raise Problem(
                f"{notes.place((key,))}: {key}: must be a W&B sweep with the key parameters, got a file of {tool}; "
                "write its ranges as parameters: {NAME: {min: A, max: B}}, or start with `hpo init`"
            )
    if not isinstance(tree.get("parameters"), dict) or not tree["parameters"]:
        raise Problem(
            f"{notes.place(('parameters',))}: parameters: required, a mapping such as {{lr: {{min: 1e-4, max: 1e-2}}}}"
            + ("; a sweep of another scheduler defines them in its code" if "scheduler" in tree else "")
        )
    return tree, notes


def _plain(value: Any) -> Any:
    """Return a constant as a value that a flag can have: W&B writes lists and mappings as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _read_method(sweep: Mapping[str, Any], space: Mapping[str, Any], tree: dict[str, Any], notes: Notes) -> None:
    method = str(sweep.get("method", "random"))
    if "method" not in sweep:
        notes.add(("method",), "is missing; the study uses random")
    name = component_name(method)
    if name not in ("tpe", "random", "grid"):
        notes.add(("method",), f"{shown_value(method)} has no counterpart; the study uses tpe")
        name = "tpe"
    tree["sampler"] = name
    cap = sweep.get("run_cap")
    sizes = [len(entry["choices"]) for entry in space.values() if "choices" in entry]
    if cap is not None and (type(cap) is not int or cap <= 0):
        rule = f"must be a whole number greater than 0, got {shown_value(cap)}"
        raise notes.problem(("run_cap",), f"{rule}; write a number, or omit the key")
    if cap is not None:
        tree["budget"] = {"trials": cap}
    elif name == "grid" and len(sizes) == len(space):
        tree["budget"] = {"trials": math.prod(sizes)}
    else:
        notes.add(("run_cap",), "is missing, and W&B runs until someone stops it; the study ends after 24 trials")
        tree["budget"] = {"trials": 24}
    if name == "grid" and len(sizes) < len(space):
        notes.add(("method",), "tries 5 values of each range, see sampler.points")


def _read_metric(sweep: Mapping[str, Any], tree: dict[str, Any], notes: Notes, comments: dict[str, list[str]]) -> None:
    metric = sweep.get("metric")
    metric = metric if isinstance(metric, Mapping) else {}
    name = metric.get("name")
    if not isinstance(name, str) or not name:
        notes.add(("metric",), f"has no name; the study has objective: {OBJECTIVE}, so write the name of your metric")
        name = OBJECTIVE
    tree["objective"] = name
    goal = str(metric.get("goal", "minimize"))
    if goal not in ("minimize", "maximize"):
        notes.add(("metric", "goal"), f"must be minimize or maximize, got {shown_value(goal)}; the study minimizes")
        goal = "minimize"
    tree["direction"] = goal
    if "target" in metric:
        target = metric["target"]
        if isinstance(target, bool) or not isinstance(target, int | float) or not math.isfinite(target):
            rule = f"must be a finite number, got {shown_value(target)}"
            raise notes.problem(("metric", "target"), f"{rule}; write the value to reach, or omit the key")
        tree["targets"] = {"target": target}
        tree["budget"]["target"] = "target"
    for key in metric.keys() - {"name", "goal", "target"}:
        notes.add(("metric", key), "is left out; a failed trial counts as pruned, whatever its metric")
    key = ("metric", "name") if metric else ("metric",)
    notes.add(key, f"wandb.log does not reach hpo; {_reporting(name)}")
    comments["objective"] = [
        "hpo reads the metric from the output of the script, from a file, or from hpo.current_trial().report:",
        f"metric: {{pattern: 'step (?P<step>\\d+) .*{_group(name)}'}}",
        *([] if name.isidentifier() else ["objective: loss"]),
    ]


def _group(name: str) -> str:
    return f"(?P<{name}>\\S+)" if name.isidentifier() else "(?P<loss>\\S+)"


def _reporting(name: str) -> str:
    values = f"{name}=..." if name.isidentifier() else f"**{{{name!r}: ...}}"
    return f"in the script, call hpo.current_trial().report(step, {values}), or give metric in the study file"


def _read_other(sweep: Mapping[str, Any], notes: Notes) -> None:
    for key in sweep.keys() - set(KEYS):
        notes.add((key,), f"is left out; it has no counterpart{nearest(key, KEYS)}")
    for key in ("project", "entity"):
        if key in sweep:
            notes.add((key,), "is left out; `--track wandb` sends trials to W&B")
