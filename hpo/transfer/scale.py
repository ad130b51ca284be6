"""Length and size of a run, and the target that `--to` names."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo.config.validation import error_messages, nearest
from hpo.config.yaml import parse_value
from hpo.errors import Problem
from model.config import TrainConfig
from model.section import flat, updated

TOKENS = "run.tokens"
SIZES = ("model.n_embd", "model.n_layer")  # fields that make a network larger
HEADS = "model.n_head"


def size_of(config: BaseModel) -> float:
    """Return the number of weights in the matrices of all blocks; 1 for a configuration without a network of ours.

    The experts of a mixture count as far as a token uses them. The embeddings do not count, as in Kaplan et al. 2020,
    arXiv:2001.08361.
    """
    if not isinstance(config, TrainConfig):
        return 1.0
    fields = flat(config)
    width, used = fields["model.n_embd"], fields.get("model.top_k", 1)
    hidden = config.model.hidden()
    matrices = 3 if fields.get("model.mlp") == "swiglu" else 2
    return float(fields["model.n_layer"] * (4 * width**2 + used * matrices * width * hidden))


def tokens_of(config: BaseModel) -> float:
    """Return the number of tokens of a run."""
    return float(flat(config)[TOKENS])


def scale_of(config: BaseModel) -> tuple[float, float]:
    """Return log tokens and log size of a run: the two variables of every law."""
    return math.log(tokens_of(config)), math.log(size_of(config))


def compute_of(config: BaseModel) -> float:
    """Return the compute of a run up to a constant factor: tokens times size."""
    return tokens_of(config) * size_of(config)


def parse_target(text: str) -> dict[str, Any]:
    """Return PATH=VALUE,PATH=VALUE as a mapping.

    Raises:
        Problem: the text has another form.
    """
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        path, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise Problem(f"--to: must be PATH=VALUE,PATH=VALUE, such as {TOKENS}=8_000_000, got {part!r:.60}")
        values[path.strip()] = parse_value(value)
    if not values:
        raise Problem(f"--to: must be PATH=VALUE,PATH=VALUE, such as {TOKENS}=8_000_000, got {text!r:.60}")
    return values


def target_config(base: BaseModel, target: Mapping[str, Any]) -> BaseModel:
    """Return a configuration at the length and size of a target. Its heads keep their size if only the width is given.

    Raises:
        Problem: a field is neither a length nor a size, or its value does not fit the configuration.
    """
    fields = flat(base)
    if TOKENS not in fields:
        raise Problem(f"--study: must have a config with the field {TOKENS}, because a ladder has runs of many lengths")
    known = [TOKENS, *SIZES, HEADS] if isinstance(base, TrainConfig) else [TOKENS]
    if unknown := [path for path in target if path not in known]:
        raise Problem(f"--to {unknown[0]}: must be one of {', '.join(known)}{nearest(unknown[0], known)}")
    problems = [
        f"--to {path}: must be a whole number above 0, got {value!r:.60}"
        for path, value in target.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    if problems:
        raise Problem(*problems)
    try:
        return updated(base, {**with_heads(base, target), **_unaligned(base)})
    except ValidationError as error:
        raise Problem(*(f"--to: {line}" for line in error_messages(error, type(base)))) from None


def with_heads(base: BaseModel, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the number of heads that keeps their size, unless it is given."""
    fields = flat(base)
    if SIZES[0] not in values or HEADS in values or HEADS not in fields:
        return dict(values)
    head = fields[SIZES[0]] // fields[HEADS]
    return {**values, HEADS: max(1, round(values[SIZES[0]] / head))}


def _unaligned(base: BaseModel) -> dict[str, Any]:
    """Return the alignment of rungs that runs of many lengths share: each reports at its first update past a mark."""
    return {"run.align": 1} if "run.align" in flat(base) else {}


def between(base: BaseModel, target: BaseModel, share: float) -> dict[str, Any]:
    """Return the size fields at a share of the way from one configuration to a larger one, on a logarithmic scale.

    The width is a multiple of the size of a head, or of the number of heads if both have the same. The number of layers
    is even if that of both is.
    """
    low, high = flat(base), flat(target)
    values: dict[str, Any] = {}
    for path in SIZES:
        if low.get(path) == high.get(path):
            continue
        exact = low[path] ** (1 - share) * high[path] ** share
        unit = 1
        if path == SIZES[0]:
            same_heads = low[HEADS] == high[HEADS]
            unit = low[HEADS] if same_heads else low[path] // low[HEADS]
        elif low[path] % 2 == 0 and high[path] % 2 == 0:
            unit = 2
        values[path] = max(low[path], unit * round(exact / unit))
    if SIZES[0] in values and low[HEADS] != high[HEADS]:
        values[HEADS] = values[SIZES[0]] // (low[SIZES[0]] // low[HEADS])
    return values
