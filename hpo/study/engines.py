"""Which versions of the GPT trainer's arithmetic, its engines, trained a trial.

This module loads nothing of the model, because `hpo status` uses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.config.permission import BUILT_IN
from hpo.storage.attributes import MACHINE

Attrs = Mapping[str, Any]
"""User attributes of a trial."""


def is_gpt(spec: Mapping[str, Any]) -> bool:
    """Return whether a definition uses the GPT trainer."""
    return (spec["config"], spec["train"]) == (BUILT_IN["config"], BUILT_IN["train"])


def engines_of(attrs: Attrs) -> list[int]:
    """Return the engines that trained a trial, in their order. A trial without a number was trained by engine 1."""
    machine = attrs.get(MACHINE) or {}
    return list(machine.get("engines") or [machine.get("engine", 1)])


def engine_text(engines: Sequence[int]) -> str:
    """Return engines as text, such as "engine 1" or "engines 1 and 2"."""
    return f"engine{'s' if len(engines) > 1 else ''} {' and '.join(map(str, engines))}"
