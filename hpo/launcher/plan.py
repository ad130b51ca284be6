"""Describe a study before its launch, so that the user can check it."""

from collections.abc import Mapping
from typing import Any

from hpo.config.permission import command_text
from hpo.console import format_number, format_value
from hpo.study.command_checks import command_notes
from hpo.study.harmful_pairs import harmful_pairs
from hpo.study.sequential import KEY
from hpo.study.spec import Study, StudyFile


def describe_plan(study: Study, anchors: Mapping[str, float], rows: str = "") -> str:
    """Return a description of a study: search space or arms, budget, targets, rungs, rows of the data and anchors."""
    file = study.file
    lines = [f"{study.name}  ({study.source})"]
    objective = f"objective {file.objective}" + (", maximized" if file.direction == "maximize" else "")
    if file.arms is not None:
        lines += [f"  {name:28} {_values(values)}" for name, values in file.arms.items()]
        at_most = "at most " if KEY in file.about else ""
        lines.append(f"  {len(file.arms)} arms x {at_most}{len(file.seeds)} seeds, {objective}")
    else:
        lines += _search_lines(study, objective)
    if file.targets:
        lines.append("  targets " + ", ".join(f"{name} {format_number(value)}" for name, value in file.targets.items()))
    if file.milestones:
        shares = sorted(file.milestones.items())
        lines.append(
            "  milestones " + ", ".join(f"{format_number(value)} by {share * 100:g} %" for share, value in shares)
        )
    if file.command is not None:
        lines.append(f"  command {command_text(file.command, file.env)}")
    lines += _rung_lines(study)
    if rows:
        lines.append(f"  data: {rows}")
    if anchors:
        lines.append("  anchors: " + ", ".join(f"{name} {format_number(value)}" for name, value in anchors.items()))
    return "\n".join([*lines, ""])


def _rung_lines(study: Study) -> list[str]:
    """Return where the rungs of a run are, one line or none."""
    numbers, steps = range(1, study.rungs + 1), study.file.steps
    if steps is not None:
        marks = [format_value(steps.mark(rung)) for rung in numbers]
    elif study.rung_tokens:
        marks = [f"{round(rung * study.rung_tokens):,}" for rung in numbers]
    else:
        return []
    shown = ", ".join(marks) if len(marks) < 5 else f"{marks[0]}, {marks[1]}, ... {marks[-1]}"
    where = f"at {shown} tokens" if steps is None else f"at steps {shown}"
    return [f"  {study.rungs} rung{'s' * (study.rungs != 1)}, {where}"]


def _search_lines(study: Study, objective: str) -> list[str]:
    """Return what a search chooses from, how it ends, chooses and prunes, and notes on it."""
    file, budget = study.file, study.file.budget.model_dump(exclude_none=True)
    lines = [f"  {path:28} {_range(entry.model_dump(exclude_defaults=True))}" for path, entry in file.space.items()]
    lines.append(
        f"  budget {', '.join(_amount(k, v) for k, v in budget.items())}; sampler {file.sampler.name}, "
        f"pruner {file.pruner.name}{_peers(file)}, {objective}"
    )
    plan = study.probe_plan(None)
    if plan is None:
        lines.append("  probes: auto, by the number of updates or the first finished runs")
    elif plan.rungs:
        lines.append(f"  {plan.text()}")
    return lines + [f"  note: {note}" for note in [*harmful_pairs(file), *command_notes(file)]]


def _peers(file: StudyFile) -> str:
    """Return that a pruner compares with finished trials only, as studies of earlier versions do; "" otherwise."""
    return " of finished trials" if getattr(file.pruner, "peers", "") == "finished" else ""


def _amount(key: str, value: Any) -> str:
    return f"target {value}" if key == "target" else f"{format_value(value)} {key}"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={format_value(value)}" for path, value in values.items()) or "the base itself"


def _range(entry: Mapping[str, Any]) -> str:
    prior = entry.get("prior")
    expected = f"prior {format_value(prior['at'])} ({prior.get('trust', 'weak')})" if prior else ""
    if "choices" in entry:
        return ", ".join(["one of " + ", ".join(format_value(c) for c in entry["choices"]), *filter(None, [expected])])
    scale = "log" if entry.get("log") else "log in 1 - x" if entry.get("complement_log") else ""
    step = f"step {entry['step']}" if entry.get("step") else ""
    return " ".join(word for word in (f"{entry['low']} to {entry['high']}", scale, step, expected) if word)
