"""Estimate how far a study is and how long it still takes."""

from datetime import datetime

from hpo.analysis.progress import has_ended, token_counts, trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.console import format_duration

RECENT = 50  # ended trials whose duration predicts that of the next


def elapsed_seconds(snapshot: Snapshot, since_read: float) -> float:
    """Return the seconds from the first launch until now, or until the last trial of a study that has ended.

    since_read: seconds since the snapshot was read.
    """
    ends = [trial.ended for trial in snapshot.own if trial.ended]
    if has_ended(snapshot) and ends:
        return max(0.0, snapshot.elapsed - max(0.0, (datetime.now() - max(ends)).total_seconds() - since_read))
    return snapshot.elapsed + since_read


def limits(snapshot: Snapshot, elapsed: float, running: float) -> dict[str, tuple[float, str]]:
    """Return by limit of the budget the share that is used, in [0, 1], and the share as text.

    elapsed: seconds since the first launch. running: progress of the running trials, each in [0, 1], summed.
    """
    budget, n, used = snapshot.budget, trial_counts(snapshot), {}
    ended = n["complete"] + n["pruned"] + n["failed"]
    if budget.get("trials"):
        total = max(1, sum(snapshot.slots.values()))
        used["trials"] = (ended + running) / total, f"{ended}/{total} trials"
    if budget.get("tokens") and snapshot.rung_tokens:
        trained = token_counts(snapshot)["trained"] or 0
        used["tokens"] = trained / budget["tokens"], f"{_short(trained)} of {_short(budget['tokens'])} tokens"
    if budget.get("hours"):
        seconds = 3600 * float(budget["hours"])
        shown = f"{format_duration(min(elapsed, seconds))} of {format_duration(seconds)}"
        used["hours"] = elapsed / seconds, shown
    return {name: (1.0 if has_ended(snapshot) else min(share, 1.0), text) for name, (share, text) in used.items()}


def seconds_left(snapshot: Snapshot, elapsed: float) -> float | None:
    """Return an estimate of the seconds until the first limit of the budget ends the study, None if unknown."""
    if has_ended(snapshot):
        return None
    budget, estimates = snapshot.budget, []
    per_trial = _seconds_per_trial(snapshot, elapsed)
    if per_trial is not None:
        n = trial_counts(snapshot)
        if budget.get("trials"):
            estimates.append(
                (n["waiting"] + n["running"] / 2) * per_trial
            )  # half of a running trial is left on average
        if budget.get("tokens") and snapshot.rung_tokens:
            trained, ended = token_counts(snapshot)["trained"] or 0, n["complete"] + n["pruned"] + n["failed"]
            if trained:
                estimates.append((budget["tokens"] - trained) / (trained / max(1, ended)) * per_trial)
    if budget.get("hours"):
        estimates.append(3600 * float(budget["hours"]) - elapsed)
    return max(0.0, min(estimates)) if estimates else None


def _seconds_per_trial(snapshot: Snapshot, elapsed: float) -> float | None:
    """Return the seconds in which the study ends one trial, None before the first one has ended."""
    ended = sorted((t for t in snapshot.own if t.duration is not None), key=lambda t: t.number)[-RECENT:]
    if not ended:
        return None
    if trial_counts(snapshot).get("paused") is not None:  # from start to end, trials that pause take arbitrarily long
        return elapsed / sum(1 for t in snapshot.own if t.ended)
    seconds = sum(t.duration.total_seconds() for t in ended if t.duration) / len(ended)
    return seconds / max(1, trial_counts(snapshot)["running"])


def _short(n: float) -> str:
    """Return a number of tokens with three digits and a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"
