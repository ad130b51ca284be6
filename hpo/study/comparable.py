"""Whether the losses of two runs can be compared: the one answer for searches, arms, enqueued trials and claims.

Two losses can be compared if both runs

- are validated on the same text, so every field of `data` is equal except those in `COMPARABLE_DATA_FIELDS`;
- measure the loss in the same unit: nats per token need equal tokenizers, bits per byte do not;
- report at the same fractions of a run, and train for the same length, unless the comparison sets another measure.

For a training function of the user, only the length and the rungs are checked. The function decides about the rest.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpo.study.spec import Study
from model.config import COMPARABLE_DATA_FIELDS, TrainConfig
from model.section import flat

_RUN_FIELDS = {"run.tokens": "lengths", "run.rungs": "rungs", "run.align": "rungs"}


def incomparable_reason(path: str, objective: str) -> str:
    """Return what makes runs with different values of a field incomparable, such as "data"; "" for all other fields.

    path: dotted field of TrainConfig. objective: the metric that is compared, such as val_loss.
    """
    section, _, field = path.partition(".")
    if section == "data" and field not in COMPARABLE_DATA_FIELDS:
        return "data"
    if section == "tokenizer" and not objective.endswith("val_bpb"):
        return "tokenizers"
    return _RUN_FIELDS.get(path, "")


def incomparable_fields(one: BaseModel, other: BaseModel, objective: str) -> dict[str, str]:
    """Return the fields that differ between two TrainConfigs and must not, with the reason for each."""
    fields, other_fields = flat(one), flat(other)
    reasons = {path: incomparable_reason(path, objective) for path in {**other_fields, **fields}}
    return {path: why for path, why in reasons.items() if why and fields.get(path) != other_fields.get(path)}


def training_lengths(one: TrainConfig, other: TrainConfig, equal: str) -> tuple[int, int] | None:
    """Return the lengths of two runs if they differ, None if they are equal.

    equal: the unit, tokens or updates; None is returned for seconds, because each run then stops at the same second.
    With run.align 1, a run ends at its first update past the last mark. Lengths in tokens may then differ by one
    update.
    """
    if equal == "seconds":
        return None
    n, n_other = (config.marks()[-1] for config in (one, other))
    if equal == "updates":
        return (n, n_other) if n != n_other else None
    tokens, other_tokens = n * one.update_tokens(), n_other * other.update_tokens()
    slack = 0 if one.run.align > 1 else max(one.update_tokens(), other.update_tokens())
    return (tokens, other_tokens) if abs(tokens - other_tokens) > slack else None


def different_measures(old: Study, new: Study) -> Mapping[str, tuple[Any, Any]]:
    """Return what differs in how two studies train and measure their trials: key -> values of both.

    The trials of the studies can be compared if the result is empty and both studies have the same data.
    """
    measures = [
        {
            "train": study.file.train,
            "config": study.file.config,
            "command": _command(study),
            "objective": study.file.objective,
            "direction": study.file.direction,
            "rungs": study.rungs,
            "tokens of a rung": study.rung_tokens,
        }
        for study in (old, new)
    ]
    pairs = {key: (measures[0][key], measures[1][key]) for key in measures[0]}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _command(study: Study) -> str | None:
    """Return a command with everything that its runs depend on besides their parameters."""
    plan = study.file.training
    return None if isinstance(plan, str) else f"{plan.text} {plan.metric or ''} {plan.steps or ''}".strip()
