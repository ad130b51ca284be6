"""What asha decided at its marks: the places of paused trials now, and the recorded decisions as sentences."""

import math
from collections.abc import Mapping
from typing import Any

from hpo.analysis.probes import compared_curve, compared_objective, is_probed, probe_plan
from hpo.analysis.snapshot import Snapshot, trial_status
from hpo.console import format_number
from hpo.search.marks import Standing, mark_rungs, ranking
from hpo.search.pruning_rules import parse_spans
from hpo.storage.attributes import MARKS
from hpo.storage.trials import State, Trial

MAX_PAUSED = 6  # paused trials that `hpo status` names

Row = tuple[str, str, Mapping[str, Any] | None]  # decision, sentence, record


def paused_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the paused trials, those at the last mark first."""
    paused = [trial for trial in snapshot.own if trial_status(snapshot, trial) == "paused"]
    return sorted(paused, key=lambda trial: (-(trial.last_step or 0), trial.number))


def places(snapshot: Snapshot) -> dict[int, Standing]:
    """Return the places of the paused trials at their marks as they are now, by number of the trial."""
    paused, rule = paused_trials(snapshot), snapshot.spec["pruner"]
    if not paused or rule["name"] != "asha":
        return {}
    marks = mark_rungs(rule["min_rungs"], rule["factor"], snapshot.rungs)
    plan, probed = probe_plan(snapshot), is_probed(snapshot)
    marks = [mark for mark in marks if not probed or (plan and mark in plan.rungs)]
    curves = {t.number: _losses(snapshot, t, probed) for t in snapshot.trials if t.state != State.FAIL}
    found: dict[int, Standing] = {}
    for mark in {trial.last_step or 0 for trial in paused} & set(marks):
        ranked = ranking(curves, marks, mark)
        ranks = {number: rank for rank, number in enumerate(ranked, 1)}
        at_mark = [trial.number for trial in paused if trial.last_step == mark]
        found |= {n: Standing(mark, ranks[n], len(ranked), len(ranked) // rule["factor"]) for n in at_mark}
    return found


def _losses(snapshot: Snapshot, trial: Trial, probed: bool) -> dict[int, float]:
    return {rung: snapshot.direction.loss(value) for rung, value in compared_curve(trial, probed).items()}


def paused_lines(snapshot: Snapshot) -> list[str]:
    """Return a line that names the paused trials with their places, nothing where no trial is paused."""
    trials = paused_trials(snapshot)
    if not trials:
        return []
    now = places(snapshot)
    best = sorted(trials, key=lambda t: (-(t.last_step or 0), now[t.number].rank if t.number in now else math.inf))
    named = [f"trial {t.number} {pause_text(now.get(t.number), t)}" for t in best[:MAX_PAUSED]]
    more = [f"{len(trials) - MAX_PAUSED} more"] if len(trials) > MAX_PAUSED else []
    return [f"paused: {'; '.join([*named, *more])}"]


def pause_text(place: Standing | None, trial: Trial) -> str:
    """Return where a trial is paused, and its rank there where it is known."""
    rank = f", rank {place.rank} of {place.n}" if place is not None else ""
    return f"at rung {trial.last_step or 0}{rank}"


def paused_records(snapshot: Snapshot) -> list[dict[str, int]]:
    """Return number, rung, rank and number of trials there for each paused trial."""
    return [
        {"number": number, "rung": place.rung, "rank": place.rank, "of": place.n}
        for number, place in sorted(places(snapshot).items())
    ]


def mark_rows(snapshot: Snapshot, trial: Trial) -> list[Row]:
    """Return the decisions about a trial at its marks in order, and a row for each that its curves do not reproduce."""
    rows: list[Row] = []
    for record in trial.user_attrs.get(MARKS, ()):
        rows.append((record["decision"], _mark_sentence(snapshot, record), record))
        if "peers" in record and (rank := _recomputed_rank(snapshot, trial, record)) != record["rank"]:
            text = f"the stored curves do not reproduce this decision: they give rank {rank}, not {record['rank']}"
            rows.append(("recomputed", text, None))
    return rows


def _mark_sentence(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    match record["decision"]:
        case "promoted":
            return f"it was promoted from rung {record['rung']}, where it ranked {_rank_text(snapshot, record)}"
        case "continued":
            return f"at rung {record['rung']} it continued: {_value_text(snapshot, record)}"
    if record.get("tokens"):
        return (
            f"at rung {record['rung']} it paused, because the budget had too few tokens left to continue; "
            f"{_value_text(snapshot, record)}"
        )
    return f"at rung {record['rung']} it paused: {_value_text(snapshot, record)}"


def _value_text(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    objective, value = compared_objective(snapshot, record), format_number(record["value"])
    return f"its {objective}, {value}, ranked {_rank_text(snapshot, record)}"


def _rank_text(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    rank, n, n_kept = record["rank"], record["n"], record["n_kept"]
    if not n_kept:
        return f"{rank} of {n}; no trial continues before {snapshot.spec['pruner']['factor']} have reached the rung"
    return f"{rank} of {n}; {'only the best continues' if n_kept == 1 else f'the best {n_kept} continue'}"


def pruned_text(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    """Return why a paused trial was pruned, from its record, as the predicate of a sentence."""
    at = f"at rung {record['rung']} of {snapshot.rungs}"
    return f"was pruned {at}: it was paused when the study ended, with rank {_rank_text(snapshot, record)}"


def paused_text(snapshot: Snapshot, trial: Trial) -> str:
    """Return that a trial is paused, with its place now, as the predicate of a sentence."""
    place = places(snapshot).get(trial.number)
    ranks = f", with rank {_rank_text(snapshot, place._asdict())}" if place is not None else ""
    return f"is paused at rung {trial.last_step or 0} of {snapshot.rungs}{ranks}"


def _recomputed_rank(snapshot: Snapshot, trial: Trial, record: Mapping[str, Any]) -> int:
    """Return the rank of a trial at a mark among the recorded trials, from the stored curves."""
    rung, numbers = record["rung"], set(parse_spans(record["peers"]))
    probed = bool(record.get("probe"))
    curves = {t.number: _losses(snapshot, t, probed) for t in snapshot.trials if t.number in numbers}
    losses = {number: curve.get(rung, math.inf) for number, curve in curves.items()}
    losses = {number: loss if math.isfinite(loss) else math.inf for number, loss in losses.items()}
    own = (_losses(snapshot, trial, probed)[rung], trial.number)
    return 1 + sum((loss, number) < own for number, loss in losses.items())
