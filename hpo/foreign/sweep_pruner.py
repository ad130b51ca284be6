"""The rule `early_terminate` of a W&B sweep as the pruner of a study."""

import math
from collections.abc import Mapping
from typing import Any

from hpo.config.validation import nearest, shown_value
from hpo.foreign.lines import Notes

KEYS = ("min_iter", "max_iter", "eta", "s")
LENGTHS = ("epochs", "num_epochs", "n_epochs", "max_epochs", "num_train_epochs")
MOST_RUNGS = 50
EXAMPLE = "{type: hyperband, min_iter: 3}"


def read_pruner(
    sweep: Mapping[str, Any],
    base: Mapping[str, Any],
    tree: dict[str, Any],
    notes: Notes,
    comments: dict[str, list[str]],
) -> None:
    """Add the pruner of `early_terminate`, or a comment that says what the sweep lacks for it.

    W&B's hyperband has one bracket, which is successive halving.

    Raises:
        Problem: the rule has a value that W&B does not accept.
    """
    tree["pruner"] = "none"
    rule = _hyperband(sweep.get("early_terminate"), notes)
    if rule is None:
        return
    numbers = {key: _number(rule[key], key, notes) for key in KEYS if rule.get(key) is not None}
    factor = _factor(numbers.get("eta", 3), notes)
    length = next((n for key in LENGTHS if type(n := base.get(key)) is int and n > 0), None)
    last, first = numbers.get("max_iter", length), _first_mark(numbers, factor)
    if last is None or first is None or first > last:
        notes.add(("early_terminate",), "needs the number of steps of a run, which the sweep does not say")
        comments["pruner"] = [
            "To end weak trials early, write the last step that the script reports, and remove `pruner: none`:",
            "steps: {last: 1000, rungs: 8}",
            f"pruner: {{name: halving, factor: {factor}}}",
        ]
        return
    rungs = max(1, round(min(MOST_RUNGS, last, last / first)))
    tree["steps"] = {"last": last, "rungs": rungs}
    tree["pruner"] = {"name": "halving", "min_rungs": max(1, round(first / last * rungs)), "factor": factor}
    notes.add(("early_terminate",), f"counts calls of wandb.log; the study counts the steps that it reports, to {last}")


def _hyperband(rule: Any, notes: Notes) -> Mapping[str, Any] | None:
    """Return the rule if it is one that W&B knows, after notes of what is left out.

    Raises:
        Problem: the rule is no mapping.
    """
    if rule is None:
        return None
    if not isinstance(rule, Mapping):
        got = f"must be a mapping such as {EXAMPLE}, got {shown_value(rule)}"
        raise notes.problem(("early_terminate",), f"{got}; omit the key to prune no trial")
    if rule.get("type") != "hyperband":
        notes.add(("early_terminate",), f"type {shown_value(rule.get('type'))} is not known; the study prunes no trial")
        return None
    for key in rule.keys() - {"type", *KEYS}:
        text = "the study prunes every trial that is not among the best" if key == "strict" else "no such key"
        notes.add(("early_terminate", key), f"is left out; {text}{nearest(key, KEYS)}")
    return rule


def _number(value: Any, key: str, notes: Notes) -> float:
    """Return a number of the rule.

    Raises:
        Problem: the value is no finite number greater than 0, or `s` is not whole.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value < math.inf and (key != "s" or isinstance(value, int)):
        return float(value) if isinstance(value, float) else int(value)
    kind = "a whole number" if key == "s" else "a finite number"
    got = f"must be {kind} greater than 0, got {shown_value(value)}"
    raise notes.problem(("early_terminate", key), f"{got}; write a number, or omit the key")


def _factor(eta: float, notes: Notes) -> int:
    factor = max(2, round(eta))
    if factor != eta:
        text = f"must be a whole number of at least 2 here, got {shown_value(eta)}; the study has factor {factor}"
        notes.add(("early_terminate", "eta"), text)
    return factor


def _first_mark(numbers: Mapping[str, float], factor: int) -> float | None:
    """Return the first iteration at which W&B's rule ends runs."""
    if "min_iter" in numbers:
        return numbers["min_iter"]
    if "max_iter" not in numbers:
        return None
    first = numbers["max_iter"]
    for _ in range(int(numbers.get("s", 1))):  # A power would overflow with a large s.
        if first < factor:
            return 1
        first //= factor
    return first
