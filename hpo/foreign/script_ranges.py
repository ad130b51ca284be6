"""Ranges for the parameters of a training script, from their names and defaults."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hpo.foreign.script import Parameter
from hpo.foreign.sweep_command import study_name

Entry = dict[str, Any]


class Proposal(NamedTuple):
    """The space that `hpo init` proposes: ranges of the usual parameters, and ranges of others as comments."""

    space: dict[str, Entry]
    others: dict[str, Entry]
    baseline: dict[str, Any]


def propose(parameters: Iterable[Parameter]) -> Proposal:
    """Return ranges around the defaults of parameters."""
    space: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    defaults: dict[str, Any] = {}
    for parameter in parameters:
        if (
            study_name(parameter.name) != parameter.name
            or _LENGTH.search(parameter.name)
            or _NOT.search(parameter.name)
        ):
            continue
        if parameter.choices is not None and len(set(map(str, parameter.choices))) > 1:
            others[parameter.name] = {"choices": parameter.choices}
        elif isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            usual = next((rule(parameter.default) for name, rule in _RULES if name.search(parameter.name)), None)
            (others if usual is None else space)[parameter.name] = usual or _around(parameter.default)
            defaults[parameter.name] = parameter.default
    if not space:
        space = {name: entry for name, entry in others.items() if name in defaults}
        others = {name: entry for name, entry in others.items() if name not in space}
    baseline = {name: defaults[name] for name in space}
    return Proposal(space, others, baseline)


def length_of(parameters: Iterable[Parameter]) -> float | None:
    """Return the number of steps or epochs of a run, None if no parameter says it."""
    lengths = [p for p in parameters if _LENGTH.search(p.name) and isinstance(p.default, int) and p.default > 0]
    return max((p.default for p in lengths), default=None)


_LENGTH = re.compile(r"^(max_|num_|n_|total_|train_)*(iters|iterations|steps|epochs)$|^num_train_epochs$|^max_iters$")
_NOT = re.compile(r"seed|interval|every|iters$|steps$|port|rank|workers|gpu|device|log|save|print|patience|version")


def _rate(default: float) -> Entry | None:
    return {"low": _short(default / 10), "high": _short(default * 10), "log": True} if default > 0 else None


def _decay(default: float) -> Entry | None:
    """Return a range of decays around a default such as 0.95, evenly spaced in log (1 - x)."""
    if not 0.5 <= default < 1:
        return {"low": 0.0, "high": 0.95} if 0 <= default < 0.5 else None
    rest = 1 - default
    return {"low": _short(1 - min(0.5, 4 * rest)), "high": _short(1 - rest / 10), "complement_log": True}


def _dropout(default: float) -> Entry:
    return {"low": 0.0, "high": max(0.5, _short(float(default)))}


def _weight_decay(default: float) -> Entry | None:
    return _rate(default) or {"choices": [0.0, 0.01, 0.1]}


def _batch(default: float) -> Entry | None:
    return {"choices": [default // 2, default, default * 2]} if isinstance(default, int) and default >= 2 else None


def _around(default: float) -> Entry:
    if isinstance(default, int):
        return (
            {"low": default // 2, "high": max(default * 2, default // 2 + 1)}
            if default >= 0
            else {"low": default * 2, "high": 0}
        )
    if default == 0:
        return {"low": 0.0, "high": 1.0}
    ends = sorted((_short(default / 3), _short(default * 3)))
    return {"low": ends[0], "high": ends[1]}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


_RULES: list[tuple[re.Pattern[str], Callable[[float], Entry | None]]] = [
    (re.compile(r"(^|_|-)(lr|learning[_-]rate)$"), _rate),
    (re.compile(r"beta_?[12]$|momentum$"), _decay),
    (re.compile(r"drop"), _dropout),
    (re.compile(r"(weight[_-]decay|(^|_)wd)$"), _weight_decay),
    (re.compile(r"batch[_-]size$"), _batch),
]
