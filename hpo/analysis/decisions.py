"""Explain each decision about a trial in one sentence, from the record that was stored with the decision."""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.looks import reason_for_pair
from hpo.analysis.marks import mark_rows, paused_text, pruned_text
from hpo.analysis.probes import compared_curve, compared_objective
from hpo.analysis.snapshot import Snapshot, find_trial, trial_status, trial_value
from hpo.console import format_number, format_value
from hpo.errors import error_summary
from hpo.search.direction import Direction
from hpo.search.pruning_rules import (
    Comparison,
    compare_at_last_rung,
    compares_all,
    n_continuing,
    n_promoted,
    parse_spans,
)
from hpo.storage.attributes import (
    ARM,
    ATTEMPTS,
    END_REASON,
    ERROR,
    FIXED_VALUES,
    FORKED,
    IMPORTED,
    PRUNING_DECISION,
    SEED,
    SUGGESTED_BY,
)
from hpo.storage.trials import State, Trial

MAX_PEERS = 12  # longest list of trial numbers in a sentence; more trials are counted instead
NEVER_PRUNED = {"baseline": "baselines", "seed": "baselines", "arm": "arms"}  # kind -> what the sentence calls it


def decisions(snapshot: Snapshot, number: int) -> list[dict[str, Any]]:
    """Return the decisions about a trial in order: each as a word, as a sentence, and as it was recorded."""
    trial = find_trial(snapshot, number)
    rows = [("suggested", f"trial {number} {_suggested(snapshot, trial)}", trial.user_attrs.get(SUGGESTED_BY))]
    rows += [
        ("interrupted", f"attempt {attempt} was interrupted: {reason}", None)
        for attempt, reason, _ in trial.user_attrs.get(ATTEMPTS, ())
        if attempt < trial.user_attrs["attempt"] and reason != "paused_at_rung"  # the last attempt ended the trial
    ]
    rows += mark_rows(snapshot, trial)
    rows.append(
        (trial_status(snapshot, trial), f"it {_ended(snapshot, trial)}", trial.user_attrs.get(PRUNING_DECISION))
    )
    if (repeated := recompute(snapshot, trial)) is not None and not repeated.prunes:
        a, b = distinct_text(repeated.value, repeated.threshold)
        rows.append(
            ("recomputed", f"the stored curves do not reproduce this decision: they compare {a} with {b}", None)
        )
    return [
        {"trial": number, "decision": decision, "sentence": sentence, "record": record or {}}
        for decision, sentence, record in rows
    ]


def recompute(snapshot: Snapshot, trial: Trial) -> Comparison | None:
    """Repeat the comparison that pruned a trial, from the stored curves; None where no comparison was recorded."""
    record = _pruning_record(trial)
    if record is None or record["rule"] == "asha":  # `mark_rows` checks the ranks
        return None
    probed = bool(record.get("probe"))
    own = {rung: v for rung, v in compared_curve(trial, probed).items() if rung <= record["rung"]}
    return compare_at_last_rung(snapshot.spec["pruner"], own, _peer_curves(snapshot, record), snapshot.direction)


def _peer_curves(snapshot: Snapshot, record: Mapping[str, Any]) -> list[Mapping[int, float]]:
    numbers = set(parse_spans(record["peers"]))
    probed = bool(record.get("probe"))
    return [compared_curve(trial, probed) for trial in snapshot.trials if trial.number in numbers]


def _pruning_record(trial: Trial) -> Mapping[str, Any] | None:
    """Return the recorded comparison that pruned a trial, None where the pruner did not end it or left no record."""
    if trial.state != State.PRUNED or trial.user_attrs.get(END_REASON) != "pruned":
        return None
    record: Mapping[str, Any] | None = trial.user_attrs.get(PRUNING_DECISION)
    return record


def distinct_text(a: float, b: float) -> tuple[str, str]:
    """Return two numbers as text, with as many digits as show that they differ."""
    texts = format_number(a), format_number(b)
    for digits in range(5, 18):
        x, y = (float(text.replace(",", "")) for text in texts)
        if x != y or a == b:
            break
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
    return texts


def _suggested(snapshot: Snapshot, trial: Trial) -> str:
    """Return where the parameters of a trial come from, as the predicate of a sentence."""
    attrs = trial.user_attrs
    if IMPORTED in attrs:
        return f"was imported: {attrs[IMPORTED]}"
    if attrs.get("kind") == FORKED:
        study, _, origin = str(attrs["forked_from"]).rpartition("/")
        return f"was copied from trial {origin} of study {study}"
    record = attrs.get(SUGGESTED_BY)
    if record is None:
        return "has no record of how its parameters were chosen"
    values = ", ".join(f"{path}={format_value(v)}" for path, v in (attrs.get(FIXED_VALUES) or {}).items())
    match record["by"]:
        case "baseline":
            return f"is a baseline: {values or 'the base configuration'}"
        case "seed":
            return f"repeats the baseline with another seed, to measure the noise: {values}"
        case "arm":
            reason = reason_for_pair(snapshot, attrs[SEED])
            return f"is the run of arm {attrs.get(ARM)} with seed {attrs.get(SEED)}{reason}"
        case "enqueued":
            return f"was enqueued by the user: {values}"
        case "retry":
            status = trial_status(snapshot, find_trial(snapshot, record["of"]))
            return f"retries trial {record['of']}, which ended with status {status}"
    return _sampled(record) + _followed(snapshot, record)


def _followed(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    """Return which fields follow a prior instead of the sampler, as a further clause; "" if no field does."""
    priors = {name: snapshot.spec["space"][name]["prior"] for name in record.get("prior", ())}
    stated = ", ".join(f"{name} ({format_value(p['at'])}, {p['trust']})" for name, p in priors.items())
    return f"; instead, it follows the prior of {stated}" if stated else ""


def _sampled(record: Mapping[str, Any]) -> str:
    """Return how a sampler chose parameters, and from how many trials, as the predicate of a sentence."""
    sampler = record["by"]
    if "auto" in record:
        known = f"{record['finished']:,} finished trials, {record['running']} running"
        source = "is a point of a Sobol design" if sampler == "sobol" else f"was suggested by {sampler} from {known}"
        return f"{source}: sampler auto took {sampler}, because {record['auto']}"
    if "point" in record:
        return f"is point {record['point']} of the {record['of']:,} points of sampler {sampler}"
    if "finished" not in record:
        independent = f"is the next point of sampler {sampler}, which does not depend on other trials"
        return "was drawn at random" if sampler == "random" else independent
    finished, running = record["finished"], f"{record['running']} running"
    if (first := record.get("random_until")) is None:
        return f"was suggested by {sampler} from {finished:,} finished trials, {running}"
    if finished < first:
        return f"was drawn at random, because {sampler} needs {first} finished trials and had {finished:,} ({running})"
    return f"was drawn at random by {sampler}, which had {finished:,} finished trials ({running})"


def _ended(snapshot: Snapshot, trial: Trial) -> str:
    """Return how a trial ended, or its status while it has not ended, as the predicate of a sentence."""
    status, at = trial_status(snapshot, trial), f"at rung {trial.last_step or 0} of {snapshot.rungs}"
    if status == "complete":
        kind = NEVER_PRUNED.get(str(snapshot.kind(trial)))
        reason = f" ({kind} are never pruned)" if kind else ""
        rungs = f"all {snapshot.rungs} rungs" if snapshot.rungs != 1 else "its one rung"
        return f"completed {rungs}{reason}: {snapshot.objective} {format_value(trial_value(trial))}"
    if status == "pruned":
        return _pruned(snapshot, trial)
    error = error_summary(str(trial.user_attrs.get(ERROR, "")))
    cause = f": {error}" if error else ""
    predicates = {
        "running": f"is running, {at}",
        "waiting": "waits for a worker",
        "paused": paused_text(snapshot, trial) if status == "paused" else "",
        "interrupted": f"was interrupted {at}; the next worker resumes it",
        "diverged": f"diverged {at}: its {snapshot.objective} is not finite",
        "invalid": f"did not start, because its values are invalid together{cause}",
        "oom": f"was stopped {at}, because it needs more memory than is available{cause}",
        "timeout": f"was stopped {at}, because it exceeded its time limit{cause}",
        "killed": f"was killed by the user {at}",
        "lost": f"was abandoned {at}{cause}",
    }
    return predicates.get(status, f"failed {at}{cause}")


def _pruned(snapshot: Snapshot, trial: Trial) -> str:
    """Return why the pruner stopped a trial, as the predicate of a sentence."""
    record = _pruning_record(trial)
    if record is None:
        return f"was pruned at rung {trial.last_step} of {snapshot.rungs}; the comparison was not recorded"
    if record["rule"] == "asha":
        return pruned_text(snapshot, record)
    return f"was pruned at rung {record['rung']} of {snapshot.rungs}: {_comparison(snapshot, record)}"


def _comparison(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    """Return the comparison of a pruning rule as a clause: the value of the trial, then the threshold."""
    rule, objective, peers = snapshot.spec["pruner"], compared_objective(snapshot, record), _peer_text(record)
    a, b = distinct_text(record["value"], record["threshold"])
    worse = f"{a}, was {snapshot.direction.worse_side} {b}"
    match rule["name"]:
        case "median" | "percentile" if compares_all(rule):
            n = record["n"] + 1
            best = f"only the best {n_continuing(n, rule.get('percentile', 50))} of {n:,} trials continue"
            ended = _ended_before(snapshot, record)
            return f"its best {objective} so far, {worse}; {best} (compared with {peers} at that rung{ended})"
        case "median":
            return f"its best {objective} so far, {worse}, the median of {peers} at that rung"
        case "percentile":
            share = rule["percentile"] if snapshot.direction is Direction.MINIMIZE else 100 - rule["percentile"]
            return f"its best {objective} so far, {worse}, percentile {share:g} of {peers} there"
        case "halving" | "hyperband":
            n = record["n"] + 1
            best = f"only the best {n_promoted(n, rule['factor'])} of {n} trials continue"
            return f"its {objective}, {worse}; {best} (compared with {peers})"
        case "patient":
            sign = "plus" if snapshot.direction is Direction.MINIMIZE else "minus"
            margin = f" {sign} {rule['min_delta']:g}" if rule["min_delta"] else ""
            recent = f"the last {rule['patience'] + 1} rungs"
            return f"its best {objective} of {recent}, {worse}, its best before{margin}"
        case "threshold":
            side = "above" if record["value"] > record["threshold"] else "below"
            return f"its {objective}, {a}, was {side} the study's threshold, {b}"
    return f"its curve was worse than that of {peers}, the best trial then: p = {a}, below {b}, in a signed-rank test"


def _ended_before(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    """Return how many of the peers of a comparison ended before its rung, as a clause; "" for none."""
    n = sum(record["rung"] not in curve for curve in _peer_curves(snapshot, record))
    return f"; {n:,} of them pruned or diverged before it" if n else ""


def _peer_text(record: Mapping[str, Any]) -> str:
    """Return the trials of a comparison by number, or only their count above `MAX_PEERS`."""
    numbers = parse_spans(record["peers"])
    if len(numbers) > MAX_PEERS:
        return f"{len(numbers):,} trials"
    return f"trial{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers)) or 'none'}"
