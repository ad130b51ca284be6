"""Check that the keys of a study file that belong to `command` fit together, before its configuration is built."""

import sys
from pathlib import Path

from hpo.config.permission import COMMAND
from hpo.config.validation import nearest, shown_value
from hpo.search.ranges import Choices
from hpo.study.command import CONFIG, FLAGS, JSON, PLACEHOLDERS, SEED, placeholders
from hpo.study.command_config import command_config, name_problem
from hpo.study.spec import StudyFile
from model.section import flat, flatten

COMMAND_KEYS = ("env", "metric", "steps")  # that mean something for a command only
OTHER_KEYS = ("train", "config", "rungs")  # that a command replaces
SCRIPTS = (".py", ".sh")


def command_problems(file: StudyFile) -> list[str]:
    """Return the problems of a command and of the keys that belong to it."""
    given = file.model_fields_set
    if file.command is None:
        return [f"{key}: must be used with command, got {key} without it" for key in COMMAND_KEYS if key in given]
    problems = [
        f"{key}: must be omitted with command; {remedy}"
        for key, remedy in zip(OTHER_KEYS, ("remove it", "remove it", "use steps.rungs"), strict=True)
        if getattr(file, key) != COMMAND.get(key)
    ]
    if file.limits.memory_gb is not None and sys.platform != "linux":
        problems.append("limits.memory_gb: must be omitted with command, because only Linux shows what processes use")
    if "from" in file.base:
        problems.append("base.from: must be omitted with command; give the parameters that do not vary in base")
    names = _names(file)
    named = {path: name_problem(path) for path in names}
    problems += [f"{path}: {rule}, got {shown_value(path)}" for path, rule in named.items() if rule]
    problems += [
        f"{path}: must be another name, because {{{path}}} of a command has a meaning of its own; "
        f"one of {', '.join(PLACEHOLDERS)}"
        for path in names
        if path in PLACEHOLDERS and path != SEED
    ]
    problems += [
        f"{path}: must not be a part of the parameter {other}; rename one of them"
        for path in names
        for other in names
        if path.startswith(f"{other}.")
    ]
    return problems or [*_word_problems(file, names), *_metric_problems(file), *_baseline_problems(file)]


def command_notes(file: StudyFile) -> list[str]:
    """Return a note if a command does not mention searched parameters, so that the script must read them itself."""
    words = set(placeholders([*(file.command or ()), *file.env.values()]))
    if file.command is None or file.metric is None or words & {FLAGS, CONFIG, JSON}:
        return []
    names = [path for path in file.space if path not in words]
    braces = ", ".join(f"{{{name}}}" for name in names)
    return [f"the command does not mention {braces}; the script must read HPO_CONFIG"] if names else []


def missing_script(file: StudyFile) -> str | None:
    """Return the script of a command that does not exist in the current folder, None if it is there.

    Only a word directly after the program is a script, as in `python train.py`.
    """
    script = next(iter((file.command or ())[1:2]), "")
    if script.endswith(SCRIPTS) and not placeholders([script]) and not Path(script).is_file():
        return script
    return None


def _names(file: StudyFile) -> list[str]:
    arms = [path for arm in (file.arms or {}).values() for path in flatten(arm)]
    return list(dict.fromkeys([*flatten(file.base), *file.space, *arms]))


def _word_problems(file: StudyFile, names: list[str]) -> list[str]:
    assert file.command is not None
    known = [*names, *PLACEHOLDERS]
    texts = {f"command.{i}": word for i, word in enumerate(file.command)}
    texts |= {f"env.{name}": text for name, text in file.env.items()}
    problems = [
        f"{key}: no such parameter: {{{name}}}{nearest(name, known) or '; there are ' + ', '.join(known)}; "
        "two braces stand for one"
        for key, text in texts.items()
        for name in placeholders([text])
        if name not in known
    ]
    if len(file.command) == 1 and "/" not in file.command[0] and not file.env:
        problems.append(
            f"command: must have at least two words or be a path, got {shown_value(file.command[0])}; "
            "add {flags} to pass the parameters"
        )
    if (script := missing_script(file)) is not None:
        problems.append(f"command: no such file in the current folder: {script}")
    return problems


def _metric_problems(file: StudyFile) -> list[str]:
    if file.metric is None or file.metric.file is not None:
        return []
    groups = file.metric.groups()
    if file.objective in groups:
        return []
    found = f"the groups {', '.join(sorted(groups))}" if groups else "no named group"
    return [
        f"metric.pattern: must have a group of the name of the objective, (?P<{file.objective}>\\S+), got {found}; "
        "add the group, or set objective"
    ]


def _baseline_problems(file: StudyFile) -> list[str]:
    """Return the problems of baselines and arms that leave a parameter without a value."""
    defaults = flat(command_config(file.command or (), file.env, file.base, file.space, (file.arms or {}).values())())
    optional = {p for p, entry in file.space.items() if isinstance(entry, Choices) and None in entry.choices}
    lacking = [path for path, value in defaults.items() if value is None and path not in optional]
    rows = {f"baseline.{i}": values for i, values in enumerate(file.baseline if file.arms is None else ())}
    rows |= {f"arms.{name}": values for name, values in (file.arms or {}).items()}
    problems = []
    for key, values in rows.items():
        given = flatten(values)
        if missing := [path for path in lacking if given.get(path) is None and flatten(file.base).get(path) is None]:
            what = "every parameter of the space" if file.arms is None else "every parameter"
            problems.append(f"{key}: must name {what}, because a command has no defaults; add {', '.join(missing)}")
    return problems
