"""hpo why: one sentence for each decision about a trial, from the records that were made with the decisions."""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.snapshot import Snapshot, find_trial, trial_status, trial_value
from hpo.console import as_text, number
from hpo.search.pruning_rules import Comparison, compare, place, unfolded
from hpo.storage.attributes import (
    ARM,
    ATTEMPTS,
    END_REASON,
    ERROR,
    FIXED_VALUES,
    FORKED,
    PRUNING_DECISION,
    SEED,
    SUGGESTED_BY,
)
from hpo.storage.trials import State, Trial

LISTED = 12  # peers that a sentence names
WHOLE = {"baseline": "a baseline", "seed": "a baseline", "arm": "an arm"}  # kinds that no rule may prune


def decisions(snapshot: Snapshot, number: int) -> list[dict[str, Any]]:
    """Return the decisions about a trial in their order: each in a word, in a sentence, and as it was recorded."""
    trial = find_trial(snapshot, number)
    found = [("suggested", f"trial {number} {_suggested(snapshot, trial)}", trial.user_attrs.get(SUGGESTED_BY))]
    # The last attempt is the one that ended it.
    found += [
        ("interrupted", f"attempt {attempt} ended without it: {said}", None)
        for attempt, said, _ in trial.user_attrs.get(ATTEMPTS, ())
        if attempt < trial.user_attrs["attempt"]
    ]
    found.append(
        (trial_status(snapshot, trial), f"it {_ended(snapshot, trial)}", trial.user_attrs.get(PRUNING_DECISION))
    )
    if (again := recompute(snapshot, trial)) is not None and not again.prunes:
        a, b = distinct_text(again.value, again.threshold)
        found.append(
            ("recomputed", f"the stored curves do not give this decision again: {a} is held against {b}", None)
        )
    return [
        {"trial": number, "decision": decision, "sentence": sentence, "record": record or {}}
        for decision, sentence, record in found
    ]


def recompute(snapshot: Snapshot, trial: Trial) -> Comparison | None:
    """Return the comparison that pruned a trial, made again from the stored curves; None where none was recorded."""
    record = _pruning(trial)
    if record is None:
        return None
    own = {rung: v for rung, v in trial.intermediate_values.items() if rung <= record["rung"]}
    peers = [find_trial(snapshot, number).intermediate_values for number in unfolded(record["peers"])]
    return compare(snapshot.spec["pruner"], own, peers)


def _pruning(trial: Trial) -> Mapping[str, Any] | None:
    """Return the record of what pruned a trial, None where something else ended it or none was kept."""
    if trial.state != State.PRUNED or trial.user_attrs.get(END_REASON) != "pruned":
        return None
    found: Mapping[str, Any] | None = trial.user_attrs.get(PRUNING_DECISION)
    return found


def distinct_text(a: float, b: float) -> tuple[str, str]:
    """Return two numbers as text, with as many digits as show that they differ."""
    told = number(a), number(b)
    for digits in range(5, 18):
        x, y = (float(text.replace(",", "")) for text in told)
        if x != y or a == b:
            break
        told = f"{a:.{digits}g}", f"{b:.{digits}g}"
    return told


def _suggested(snapshot: Snapshot, trial: Trial) -> str:
    """Return what a trial's parameters come from, as the rest of a sentence about it."""
    attrs = trial.user_attrs
    if attrs.get("kind") == FORKED:
        study, _, origin = str(attrs["forked_from"]).rpartition("/")
        return f"was carried over from study {study}, where it was trial {origin}"
    record = attrs.get(SUGGESTED_BY)
    if record is None:
        return "was suggested before records of it were kept"
    given = ", ".join(f"{path}={as_text(v)}" for path, v in (attrs.get(FIXED_VALUES) or {}).items())
    match record["by"]:
        case "baseline":
            return f"is a baseline: {given or 'the base of the study as it stands'}"
        case "seed":
            return f"is the baseline again with another seed, to see what chance does: {given}"
        case "arm":
            return f"is the run of arm {attrs.get(ARM)} with seed {attrs.get(SEED)}"
        case "enqueued":
            return f"was enqueued by hand: {given}"
        case "retry":
            return f"tries trial {record['of']} again, which ended as {trial_status(snapshot, find_trial(snapshot, record['of']))}"
    return _sampled(record)


def _sampled(record: Mapping[str, Any]) -> str:
    """Return what a sampler had to go by."""
    by = record["by"]
    if "point" in record:
        return f"is point {record['point']} of the {record['of']:,} of sampler {by}"
    if "finished" not in record:
        return (
            "was drawn at random" if by == "random" else f"is the next point of sampler {by}, which looks at no trial"
        )
    finished, running = record["finished"], f"{record['running']} running"
    if (first := record.get("random_until")) is None:
        return f"was suggested by {by} from {finished:,} finished trials, {running}"
    if finished < first:
        return f"was drawn at random, since {by} waits for {first} finished trials and knew {finished}, {running}"
    return f"was drawn at random by {by}, which knew {finished:,} finished trials, {running}"


def _ended(snapshot: Snapshot, trial: Trial) -> str:
    """Return how a trial ended or where it stands, as the rest of a sentence about it."""
    ended, at = trial_status(snapshot, trial), f"at rung {trial.last_step or 0} of {snapshot.rungs}"
    error = str(trial.user_attrs.get(ERROR, "")).strip().splitlines()
    reason = f": {error[-1]}" if error else ""
    if ended == "complete":
        whole = WHOLE.get(str(snapshot.kind(trial)))
        spared = f", as no rule may prune {whole}" if whole else ""
        return f"ran to its end, rung {snapshot.rungs}{spared}: {snapshot.objective} {as_text(trial_value(trial))}"
    if ended == "pruned":
        return _pruned(snapshot, trial)
    told = {
        "running": f"is running, {at}",
        "waiting": "waits for a worker",
        "interrupted": f"was interrupted {at}; the next worker goes on with it",
        "diverged": f"diverged {at}: its {snapshot.objective} there was no finite number",
        "invalid": f"was not begun, since its values do not go together{reason}",
        "oom": f"was ended {at}, since it needs more memory than there is{reason}",
        "timeout": f"was ended {at}, since it took too long{reason}",
        "killed": f"was killed by hand {at}",
        "lost": f"was given up {at}{reason}",
    }
    return told.get(ended, f"failed {at}{reason}")


def _pruned(snapshot: Snapshot, trial: Trial) -> str:
    record = _pruning(trial)
    if record is None:
        return f"was pruned at rung {trial.last_step} of {snapshot.rungs}; what it was compared with was not kept"
    rule = snapshot.spec["pruner"]
    a, b = distinct_text(record["value"], record["threshold"])
    peers = _named(record)
    match rule["name"]:
        case "median":
            said = f"its best {snapshot.objective} so far, {a}, was above {b}, the median of {peers} there"
        case "percentile":
            share = f"{rule['percentile']:g} %"
            said = (
                f"its best {snapshot.objective} so far, {a}, was above {b}, below which {share} of {peers} were there"
            )
        case "halving" | "hyperband":
            n = record["n"] + 1
            kept, marked = place(n, rule["factor"]), f"with {peers} it made {n} at that mark"
            said = f"its {snapshot.objective} there, {a}, was above {b}: {marked}, of which the best {kept} go on"
        case "patient":
            least = f" and {rule['min_delta']:g}" if rule["min_delta"] else ""
            last = f"the last {rule['patience'] + 1} rungs"
            said = f"its best {snapshot.objective} of {last}, {a}, was above {b}, its best before{least}"
        case "threshold":
            side = "above" if record["value"] > record["threshold"] else "below"
            said = f"its {snapshot.objective} there, {a}, was {side} {b}, where the study's threshold is"
        case _:
            said = f"its curve was worse than that of {peers}, then the best: p = {a}, below {b}, in a signed-rank test"
    return f"was pruned at rung {record['rung']} of {snapshot.rungs}: {said}"


def _named(record: Mapping[str, Any]) -> str:
    """Return the peers of a decision, by number where they are few."""
    numbers = unfolded(record["peers"])
    if len(numbers) > LISTED:
        return f"{len(numbers):,} trials"
    return f"trial{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers)) or 'none'}"
