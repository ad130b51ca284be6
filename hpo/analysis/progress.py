"""Count the trials and tokens of a study, and decide whether the study has ended."""

import math

from hpo.analysis.probes import full_rungs, is_probed, probe_rungs, probe_tokens
from hpo.analysis.snapshot import GIVEN_KINDS, Snapshot, trial_status
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.trials import State, Trial


def trial_counts(snapshot: Snapshot) -> dict[str, int]:
    """Return a copy of the number of trials by state, with "waiting" for trials and slots that wait for a worker."""
    return dict(snapshot.state_counts)


def has_ended(snapshot: Snapshot) -> bool:
    """Return whether a study has used its budget or reached its target, and no trial is running or interrupted."""
    n, budget = trial_counts(snapshot), snapshot.budget
    over = bool(budget.get("hours")) and snapshot.elapsed >= 3600 * float(budget["hours"])
    if (
        budget.get("tokens") and snapshot.rung_tokens
    ):  # a trial starts only if the rest of the budget pays for all of it
        spent = sum(t.last_step or 0 for t in snapshot.own) + probe_rungs(snapshot)
        over = over or spent + full_rungs(snapshot) > math.ceil(budget["tokens"] / snapshot.rung_tokens)
    over = over or snapshot.target is not None
    if n["running"] or snapshot.in_state(State.WAITING):
        return False
    return over or (bool(budget.get("trials")) and not n["waiting"])


def searched_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the complete and pruned trials, without the baselines.

    A diverged trial counts as pruned. Repeated runs of a baseline, and arms, count as baselines, because no search
    chose their values. Trials that failed, have invalid values or exceeded a limit of memory or time are excluded.
    """
    ended = [t for t in snapshot.in_state(State.COMPLETE, State.PRUNED) if snapshot.kind(t) not in GIVEN_KINDS]
    return [t for t in ended if trial_status(snapshot, t) in ("complete", "pruned", "diverged")]


def token_counts(snapshot: Snapshot) -> dict[str, int | None]:
    """Return the tokens trained, with those of probes, and the tokens saved by pruning.

    The values are None where the training function counts no tokens. A study with probes also has their tokens.
    """
    if snapshot.rung_tokens is None:
        return {"trained": None, "saved_by_pruning": None}
    trained = sum(_rung_tokens(snapshot, t) * (t.last_step or 0) for t in snapshot.own)
    pruned = [t for t in snapshot.own if t.state == State.PRUNED]
    saved = sum(_rung_tokens(snapshot, t) * (snapshot.rungs - (t.last_step or 0)) for t in pruned)
    probed = probe_tokens(snapshot)
    return {
        "trained": round(trained) + probed,
        "saved_by_pruning": round(saved),
        **({"probes": probed} if is_probed(snapshot) else {}),
    }


def _rung_tokens(snapshot: Snapshot, trial: Trial) -> float:
    """Return the tokens between two rungs of a trial. The trials of a ladder have different lengths."""
    length = (trial.user_attrs.get(FIXED_VALUES) or {}).get("run.tokens")
    return length / snapshot.rungs if length else float(snapshot.rung_tokens or 0)


def tokens_text(snapshot: Snapshot) -> str:
    """Return the tokens of a study as a clause, "" where the training function counts no tokens."""
    tokens = token_counts(snapshot)
    if tokens["trained"] is None:
        return ""
    probed = f" ({tokens['probes']:,} of them in probes)" if "probes" in tokens else ""
    return f"{tokens['trained']:,} tokens trained{probed}, {tokens['saved_by_pruning']:,} saved by pruning"
