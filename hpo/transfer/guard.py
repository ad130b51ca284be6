"""Say what does not carry over when a configuration is trained at another scale than the one at which it was found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hpo.config.validation import explain_errors
from hpo.console import format_value
from hpo.errors import Problem
from hpo.study.scale import scale_fields
from hpo.transfer.lookup import Fitted
from hpo.transfer.rule import Rule
from hpo.transfer.rules import L2_PENALTIES, SOURCES, Move, rule_values
from model.config import TrainConfig
from model.section import changes, flat, updated

COST = "in 1,911 public runs, copying both to 4 times the compute or more cost 0.007 to 0.036 nats (arXiv:2503.04715)"


def carried_config(move: Move, rule: Rule, fitted: Fitted) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the configuration at the new scale, and the fields that the rule has changed.

    Raises:
        Problem: there is no ladder for the rule `fitted`, or the rule gives no valid configuration.
    """
    if rule is Rule.fitted and fitted.missing:
        raise Problem(f"--rule fitted: {fitted.missing}")
    try:
        values = rule_values(move, rule, fitted.values)
        return updated(move.goal, values), values
    except ValidationError as error:
        problems = explain_errors(error, TrainConfig)
        raise Problem(*(f"--rule {rule}: {': '.join(filter(None, pair))}" for pair in problems)) from None


def length_problems(error: ValidationError) -> list[str]:
    """Return the problems of --tokens, a length that a configuration cannot have."""
    return [f"--tokens: {rule.removeprefix('run.tokens ')}" for _, rule in explain_errors(error, TrainConfig)]


def guard_lines(what: str, move: Move, applied: Rule | TrainConfig, fitted: Fitted) -> list[str]:
    """Return what changes with the scale, what does not carry over, and the values that each rule gives.

    what: the configuration, such as "trial 7 of beta2_sweep". applied: the rule that is applied, or the configuration
    of a file in which another rule has changed fields for another scale.
    """
    lines = [f"note: {what} was found at another scale: {', '.join(scale_changes(move))}"]
    lines += [f"  {line}" for line in _effects(move)]
    lines += [f"  {line}" for line in _rule_table(move, fitted, None if isinstance(applied, Rule) else applied)]
    if fitted.missing:
        lines.append(f"  rule fitted: {fitted.missing}")
    others = ", ".join(f"--rule {other}" for other in Rule if other is not applied)
    name = applied if isinstance(applied, Rule) else "the values of the file"
    return [*lines, f"  applied: {name}{' (the default)' if applied is Rule.copy else ''}; other rules: {others}"]


def scale_changes(move: Move) -> Iterator[str]:
    """Yield each part of the scale that differs, with both values, as text."""
    found, goal = move.found, move.goal
    parts = {
        "run.tokens": (found.run.tokens, goal.run.tokens),
        "tokens per update": (found.update_tokens(), goal.update_tokens()),
        "model.n_embd": (found.model.n_embd, goal.model.n_embd),
        "model.n_layer": (found.model.n_layer, goal.model.n_layer),
    }
    for name, (old, new) in parts.items():
        if old != new:
            yield f"{name} {old:,} -> {new:,} ({new / old:.3g} times)"


def _effects(move: Move) -> Iterator[str]:
    """Yield one line for each group of fields that does not carry over, or that does by construction."""
    copied = [path for path in ("optimizer.lr", "run.batch_size") if path not in move.kept]
    if move.length() != 1 and copied:
        verb = "do" if copied[1:] else "does"
        yield f"{' and '.join(copied)} {verb} not carry over to another length: {COST}"
    yield from _horizon_line(move)
    if move.batch() != 1:
        yield from _batch_lines(move)
    kind = getattr(move.goal.model, "parametrization", None)
    for field, kinds in (("n_embd", ("mup", "completep")), ("n_layer", ("completep",))):
        if not move.resizes(field):
            continue
        if kind in kinds and field == "n_embd" and (heads := _other_heads(move)):
            yield heads
        elif kind in kinds:
            yield f"model.{field}: carries over by construction, with model.parametrization {kind}"
        else:
            remedy = "" if kind is None else f"; a search with model.parametrization {kinds[-1]} finds one that does"
            rule = "only the rule fitted changes it"
            yield f"optimizer.lr does not carry over to another model.{field}, and {rule}{remedy}"


def _other_heads(move: Move) -> str:
    """Return that a parametrization does not cover heads of another size, "" if they have the same size."""
    found, goal = move.found.model, move.goal.model
    size = found.n_embd // found.n_head
    if goal.n_embd == size * goal.n_head:
        return ""
    remedy = f"set model.n_head={goal.n_embd // size}" if goal.n_embd % size == 0 else f"use a multiple of {size}"
    return f"model.n_embd: carries over only with heads of {size} channels, as where it was found; {remedy}"


def _horizon_line(move: Move) -> Iterator[str]:
    """Yield how the share of the run changes over which weight decay averages the weights."""
    shares = [_horizon_share(config) for config in (move.found, move.goal)]
    if None not in shares and f"{shares[0]:.3g}" != f"{shares[1]:.3g}":
        old, new = (f"{share:.3g}" for share in shares)
        field = "weight_decay" if move.goal.optimizer.weight_decay is not None else "decay_horizon"
        yield f"optimizer.{field} averages the weights over {old} times the run where it was found, {new} times here"


def _horizon_share(config: TrainConfig) -> float | None:
    """Return the horizon of weight decay as a multiple of the run, None if the run has no such decay."""
    optimizer = config.with_raw_fields().optimizer
    if not optimizer.weight_decay or optimizer.name in L2_PENALTIES:
        return None
    rate = optimizer.lr * optimizer.scale(config.update_tokens())
    return config.update_tokens() / (rate * optimizer.weight_decay * config.run.tokens)


def _batch_lines(move: Move) -> Iterator[str]:
    """Yield what another batch changes."""
    if move.goal.optimizer.scale_lr == "none" and "optimizer.lr" not in move.kept:
        yield "optimizer.lr does not carry over to another batch; optimizer.scale_lr can state how the rate follows it"
    found, goal = flat(move.found), flat(move.goal)
    raw = ("optimizer.beta1", "optimizer.beta2", "optimizer.momentum", "regularization.ema")
    shorter = [path for path in raw if found.get(path) and found.get(path) == goal.get(path)]
    if shorter:
        yield f"{', '.join(shorter)}: the half-life in tokens is {move.batch():.3g} times as long as where it was found"
    searched = [path for path, value in goal.items() if path.endswith("_half_life") and value is not None]
    if searched:
        yield f"{', '.join(searched)}: {'carry' if searched[1:] else 'carries'} over"


def _rule_table(move: Move, fitted: Fitted, file: TrainConfig | None) -> list[str]:
    """Return the values of every field that a rule changes: where they were found, in the file, and by each rule."""
    rules = [rule for rule in Rule if rule is not Rule.fitted or not fitted.missing]
    by_rule = {rule: _values_or_none(move, rule, fitted) for rule in rules}
    known = [values for values in (*by_rule.values(), changes(move.goal, file or move.goal)) if values]
    paths = list(dict.fromkeys(path for values in known for path in values))
    if not paths:
        return ["no rule changes a field here"]
    found, goal = flat(move.found), flat(move.goal)
    rows = [["rule", *paths, "source"], ["(found)", *(format_value(found.get(path)) for path in paths), ""]]
    if file is not None:
        rows.append(["(file)", *(format_value(flat(file).get(path)) for path in paths), ""])
    for rule, values in by_rule.items():
        source = SOURCES.get(rule, fitted.source)
        if values is None:
            rows.append([rule, *("-" for _ in paths), "gives no valid configuration here"])
        else:
            rows.append([rule, *(format_value(values.get(path, goal.get(path))) for path in paths), source])
    return _aligned(rows)


def _values_or_none(move: Move, rule: Rule, fitted: Fitted) -> dict[str, Any] | None:
    try:
        return carried_config(move, rule, fitted)[1]
    except Problem:
        return None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def transfer_record(
    config: TrainConfig, move: Move, rule: Rule, values: Mapping[str, Any], fitted: Fitted
) -> dict[str, Any]:
    """Return what an exported file says about how its configuration was carried over.

    Each changed field has the value that copying gives and the value of the rule.

    config: the configuration by the rule.
    """
    goal = flat(move.goal)
    changed = {path: [goal.get(path), value] for path, value in values.items()}
    return {
        "rule": str(rule),
        "source": SOURCES.get(rule, fitted.source),
        "to": scale_fields(config),
        "changed": changed,
    }
