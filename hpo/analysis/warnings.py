"""Warn about results of a study that may mislead: a best value at the end of its range, or one that chance explains."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from hpo.analysis.effects import is_number, without_effect
from hpo.analysis.progress import has_ended, searched_trials
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import objective_text
from hpo.console import format_number, format_value
from hpo.search.scale import unit_position
from hpo.storage.attributes import ARM, SEED
from hpo.storage.trials import State
from hpo.study.engines import engine_text, engines_of, is_gpt

NEAR = 0.02  # share of a range, on its own scale, within which a value counts as at the end
MIN_SEARCHED = 10  # searched trials of a running study before its best trial is worth a warning
MANY_ROWS = 0.1  # share of the rows without text, or of repeats, above which there is a warning
FEW_TOKENS = 5_000  # of the validation split, below which there is a warning: a standard error of 0.03 nats
TOKEN_SIGMA = 2.0  # nats, about the standard deviation of the loss of one token
MAX_TRIALS = 1000  # above this, warnings do not read the parameters and curves of all trials


def study_warnings(snapshot: Snapshot) -> list[str]:
    """Return the warnings about the result of a study, one sentence each; none before a trial is complete.

    Effects of hyperparameters are tested only once the study has ended, because the test imports scipy, which takes
    longer to load than everything else here.
    """
    if snapshot.best() is None:
        return []
    small = len(snapshot.trials) <= MAX_TRIALS
    engines = mixed_engines(snapshot) if small else ()
    if snapshot.spec.get("arms"):
        equal = equal_arms(snapshot) if small else ()
        return [
            *lost_rows(snapshot),
            *engines,
            *small_validation(snapshot),
            *worse_than_bigrams(snapshot),
            *equal,
        ]
    ineffective = without_effect(snapshot) if small and has_ended(snapshot) else {}
    return [
        *lost_rows(snapshot),
        *engines,
        *small_validation(snapshot),
        *worse_than_baseline(snapshot),
        *worse_than_bigrams(snapshot),
        *best_within_noise(snapshot),
        *at_range_ends(snapshot, ineffective),
        *ineffective_fields(snapshot, ineffective),
    ]


def lost_rows(snapshot: Snapshot) -> Iterator[str]:
    """Warn that many rows of the data have no text, or repeat an earlier row."""
    read = snapshot.rows.get("read", 0)
    for key, what in (
        ("missing", "have no text in the column"),
        ("repeated", "repeat an earlier one"),
    ):
        if (n := snapshot.rows.get(key, 0)) > MANY_ROWS * read:
            yield f"{n:,} of {read:,} rows of the data {what}, and are left out."


def mixed_engines(snapshot: Snapshot) -> Iterator[str]:
    """Warn that the trials were trained by different versions of the trainer's arithmetic."""
    trained = Counter(tuple(engines_of(t.user_attrs)) for t in snapshot.trials if t.intermediate_values)
    if len(trained) > 1 and is_gpt(snapshot.spec):
        counts = ", ".join(f"{n} with {engine_text(engines)}" for engines, n in sorted(trained.items()))
        yield (
            f"the trials were trained with different engines ({counts}). Their losses are not comparable to the last "
            "bit, and differ as if each engine had its own seeds."
        )


def small_validation(snapshot: Snapshot) -> Iterator[str]:
    """Warn that the validation split has so little text that its choice decides about the losses."""
    tokens, documents = snapshot.rows.get("val_tokens"), snapshot.rows.get("val_documents", 0)
    if tokens is not None and tokens < FEW_TOKENS:
        n, error = f"{documents:,} document{'s' if documents != 1 else ''}", TOKEN_SIGMA / math.sqrt(max(1, tokens))
        yield (
            f"the validation split has only {tokens:,} tokens in {n}. A loss on so little text has a standard error of "
            f"about {error:.1g} nats per token, whatever the seed. Use more text, or a larger data.val_fraction."
        )


def _has_result(snapshot: Snapshot) -> bool:
    """Return whether enough trials have ended that the best trial is not an accident of the first few."""
    return has_ended(snapshot) or len(searched_trials(snapshot)) >= MIN_SEARCHED


def worse_than_baseline(snapshot: Snapshot) -> Iterator[str]:
    """Warn that no searched trial is better than the baseline."""
    best, n = snapshot.best(), len(searched_trials(snapshot))
    if best is not None and snapshot.kind(best) == "baseline" and n and _has_result(snapshot):
        value = objective_text(snapshot, best.values[0])
        yield (
            f"none of the {n} searched trials is better than the baseline (trial {best.number}, {snapshot.objective} "
            f"{value})."
        )


def worse_than_bigrams(snapshot: Snapshot) -> Iterator[str]:
    """Warn that the best trial is worse than a bigram model."""
    best, anchor = snapshot.best(), "bigram_bpb" if snapshot.objective.endswith("val_bpb") else "bigram"
    bigram = snapshot.anchors.get(anchor)
    if best is not None and bigram is not None and best.values[0] > bigram:
        yield (
            f"a bigram model reaches {format_number(bigram)}, which is better. The training runs are too short or the "
            "model is too small."
        )


def best_within_noise(snapshot: Snapshot) -> Iterator[str]:
    """Warn that as many runs of the baseline alone are expected to reach the value of the best trial."""
    best, floor, n = snapshot.best(), snapshot.noise, len(searched_trials(snapshot))
    if best is None or floor is None or floor.sigma == 0 or not n or snapshot.kind(best) == "baseline":
        return
    lucky = floor.expected_best(n)
    if snapshot.loss(best) >= snapshot.direction.loss(lucky):
        value, chance, sigma = (objective_text(snapshot, v) for v in (best.values[0], lucky, floor.sigma))
        yield (
            f"the best trial, with {snapshot.objective} {value}, is within the noise: the best of {n} runs of the "
            f"baseline is expected to reach {chance} by chance (sigma {sigma} from {floor.n} seeds). `hpo confirm` "
            "tests whether the gain is real."
        )


def at_range_ends(snapshot: Snapshot, ineffective: Collection[str] = ()) -> Iterator[str]:
    """Warn about values of the best trial at an end of their range, where better values may lie outside.

    ineffective: hyperparameters without a measurable effect, for which the range does not matter. There is no warning
    at an end beyond which the field has no values, such as a dropout of 0.
    """
    best = snapshot.best()
    if best is None or snapshot.kind(best) == "baseline" or not _has_result(snapshot):
        return
    for path, entry in snapshot.spec["space"].items():
        share = position(entry, best.params[path]) if path in best.params and path not in ineffective else None
        if share is None or min(share, 1 - share) > NEAR:
            continue
        side, distance = ("lower", share) if share < 0.5 else ("upper", 1 - share)
        end = _ends(entry)[share >= 0.5]
        if ("low" if end == min(_ends(entry)) else "high") in snapshot.spec.get("closed", {}).get(path, ()):
            continue
        place = f"the {side} end of its range"
        place = f"is {place}" if distance == 0 else f"is {100 * distance:.2g} % from {place}, {format_value(end)}"
        yield f"{path} of the best trial, {format_value(best.params[path])}, {place}. Values beyond it were not tried."


def position(entry: Mapping[str, Any], value: Any) -> float | None:
    """Return the position of a value in its range, in [0, 1] on the scale of the range.

    None for choices without an order, and for ranges of two values, where every value is an end.
    """
    if "choices" in entry:
        choices = entry["choices"]
        if len(choices) < 3 or not all(map(is_number, choices)) or not _is_sorted(choices):
            return None
        return float(choices.index(value) / (len(choices) - 1))
    low, high = entry["low"], entry["high"]
    step = entry.get("step") or (1 if isinstance(value, int) else 0)
    if step and (high - low) / step < 2:
        return None
    scales = {scale: bool(entry.get(scale)) for scale in ("log", "complement_log")}
    return unit_position(value, low, high, **scales)


def _ends(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    return (entry["choices"][0], entry["choices"][-1]) if "choices" in entry else (entry["low"], entry["high"])


def _is_sorted(values: Sequence[Any]) -> bool:
    return list(values) in (sorted(values), sorted(values, reverse=True))


def ineffective_fields(snapshot: Snapshot, evidence: Mapping[str, tuple[int, int] | float]) -> Iterator[str]:
    """Warn about hyperparameters without a measurable effect; evidence: as `without_effect` returns it."""
    n = len(searched_trials(snapshot))
    for path, pair in evidence.items():
        if isinstance(pair, tuple):
            yield f"{path} has no effect: trials {pair[0]} and {pair[1]} differ only in it, and their curves are equal."
    p_values = {path: f"p = {p:.2g}" for path, p in evidence.items() if isinstance(p, float)}
    if len(p_values) == 1:
        path, p = next(iter(p_values.items()))
        yield f"{path} has no measurable effect in these {n} trials ({p})."
    elif p_values:
        fields = ", ".join(f"{path} ({p})" for path, p in p_values.items())
        yield f"these fields have no measurable effect in these {n} trials: {fields}."


def equal_arms(snapshot: Snapshot) -> Iterator[str]:
    """Warn about pairs of arms whose curves are equal, bit by bit, on every seed that both have completed."""
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for trial in snapshot.in_state(State.COMPLETE):
        attrs = trial.user_attrs
        if ARM in attrs:  # a retry of a failed run has no arm, only its values
            curves.setdefault(attrs[ARM], {})[attrs[SEED]] = trial.intermediate_values
    for a, b in combinations(curves, 2):
        seeds = curves[a].keys() & curves[b].keys()
        if seeds and all(curves[a][seed] == curves[b][seed] for seed in seeds):
            yield f"arms {a} and {b} have equal curves: the fields in which they differ have no effect."
